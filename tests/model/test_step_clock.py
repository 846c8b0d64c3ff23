"""What the two steps take is told, and changes nothing else."""

from pathlib import Path

import pytest
import torch

from model.presets import load_upscaler
from model.step_clock import StepClock


def test_each_step_is_counted_until_somebody_takes_the_count(tmp_path: Path) -> None:
    # Given networks with a clock, and without
    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, timed = (load_upscaler("tiny-random", torch.device("cpu"), tmp_path) for _ in range(2))
    timed.clock = clock = StepClock()

    # When both enlarge the same, in whole frames and in tiles
    with torch.inference_mode():
        whole = [networks(frames, frames, frames) for networks in (plain, timed)]
        clock.note_finished()
        of_whole = clock.take()
        for networks in (plain, timed):
            networks.use_tiles(networks.tile_alignment_px, 0)
        tiled = [networks(frames, frames, frames) for networks in (plain, timed)]
        clock.note_finished()

    # Then the results are the same to the bit, and every call has its seconds, once
    assert torch.equal(*whole)
    assert torch.equal(*tiled)
    for seconds in (of_whole, clock.take()):
        assert set(seconds) == {"hat", "unet"}
        assert min(seconds.values()) > 0
    assert clock.take() == {}


def test_a_step_that_fails_is_not_counted() -> None:
    clock = StepClock()
    with pytest.raises(ZeroDivisionError), clock.timed("hat", torch.device("cpu")):
        raise ZeroDivisionError
    assert clock.take() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_what_it_took_and_not_what_its_caller_waited() -> None:
    clock, gpu = StepClock(), torch.device("cuda")
    square = torch.rand(4096, 4096, device=gpu)
    with clock.timed("hat", gpu):
        for _ in range(10):
            square = square @ square
    square.cpu()
    clock.note_finished()
    assert clock.take()["hat"] > 0
