"""The networks as the pipeline sees them: whole numbers in, whole numbers out, and a name for what goes wrong."""

import numpy as np
import pytest
import torch

from model.presets import load_upscaler
from model.upscaler import TwoStepUpscaler
from worker.contract.failure import FailureCode, JobFailureError
from worker.network import NetworkUpscaler
from worker.upscaler import FrameBatch


@pytest.fixture
def networks() -> TwoStepUpscaler:
    return load_upscaler("tiny-random", torch.device("cpu"), None)


def frames(dtype: type[np.uint8] | type[np.uint16], count: int = 2) -> FrameBatch:
    levels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, 16, 24, 3), endpoint=True)
    return levels.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_come_back_twice_as_large_in_their_own_type(
    networks: TwoStepUpscaler, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    batch = frames(dtype)
    result = NetworkUpscaler(networks, 2)(batch, batch, batch)
    assert (result.shape, result.dtype) == ((2, 32, 48, 3), dtype)


def test_every_one_of_the_three_frames_leaves_its_mark(networks: TwoStepUpscaler) -> None:
    # Given a triplet, and the same with one frame changed
    upscaler = NetworkUpscaler(networks, 2)
    batch = frames(np.uint8)
    other = 255 - batch
    plain = upscaler(batch, batch, batch)

    # When / then: no frame may be swapped or left out without a difference
    changed = [upscaler(other, batch, batch), upscaler(batch, other, batch), upscaler(batch, batch, other)]
    assert all(not np.array_equal(plain, result) for result in changed)
    assert not np.array_equal(changed[0], changed[2])


def test_the_fingerprint_names_the_weights_and_the_tiles(networks: TwoStepUpscaler) -> None:
    plain = NetworkUpscaler(networks, 1).fingerprint
    networks.use_tiles(32)
    tiled = NetworkUpscaler(networks, 1).fingerprint
    next(networks.unet.parameters()).data.add_(1e-3)
    trained_further = NetworkUpscaler(networks, 1).fingerprint
    assert len({plain, tiled, trained_further}) == 3


def test_the_fingerprint_names_device_precision_and_batch(networks: TwoStepUpscaler) -> None:
    fingerprint = NetworkUpscaler(networks, 4).fingerprint
    assert fingerprint.endswith("-cpu-f32-torch-b4")
    assert " " not in fingerprint


def test_memory_that_is_too_small_is_named_with_the_ways_out(
    networks: TwoStepUpscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given networks that run out of memory
    def fails(*frames: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(networks, "forward", fails)
    batch = frames(np.uint8, count=4)

    # When they are asked for a batch; then the failure says for what, and what to change
    with pytest.raises(JobFailureError, match="4 frames of 24x16 at a time: use tiles") as caught:
        NetworkUpscaler(networks, 2)(batch, batch, batch)
    assert caught.value.code is FailureCode.OUT_OF_MEMORY


def test_memory_that_the_processor_cannot_give_is_named_too(
    networks: TwoStepUpscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given networks that need more memory than any machine has
    monkeypatch.setattr(networks, "forward", lambda *frames: torch.empty(2**60, dtype=torch.uint8))
    batch = frames(np.uint8)

    # When they are asked for a batch; then torch's plain RuntimeError gets its name
    with pytest.raises(JobFailureError, match="2 frames of 24x16") as caught:
        NetworkUpscaler(networks, 2)(batch, batch, batch)
    assert caught.value.code is FailureCode.OUT_OF_MEMORY


def test_an_error_of_another_kind_keeps_its_own_name(
    networks: TwoStepUpscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*frames: object) -> None:
        raise RuntimeError("the sizes do not match")

    monkeypatch.setattr(networks, "forward", fails)
    batch = frames(np.uint8)
    with pytest.raises(RuntimeError, match="the sizes do not match"):
        NetworkUpscaler(networks, 2)(batch, batch, batch)


@pytest.mark.parametrize(
    "words",
    [
        # of torch's allocator, and of oneDNN: what a 1080p frame met in a process of 4 GiB
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "could not create a primitive",
    ],
)
def test_want_of_memory_is_known_by_its_words(
    networks: TwoStepUpscaler, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def fail(*frames: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(networks, "forward", fail)
    batch = frames(np.uint8)
    with pytest.raises(JobFailureError, match="the memory is too small for 2 frames of 24x16") as failed:
        NetworkUpscaler(networks, 2)(batch, batch, batch)
    assert failed.value.code is FailureCode.OUT_OF_MEMORY
