"""A preset is loaded once, and what cannot be loaded is a failure with a name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from redis import Redis

from model.checkpoints import save_checkpoint
from model.hat import HAT
from model.presets import PRESETS
from model.unet import ConditionalUNet
from worker.assemble import network_name
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.presets import loaded_models
from worker.cpu_environment import CPU_ENVIRONMENT
from worker.loaded_models import LoadedModels, usable_device

CPU = torch.device("cpu")


def test_a_preset_is_loaded_once_and_told_to_those_who_ask(redis: Redis, tmp_path: Path) -> None:
    # Given
    models = LoadedModels(CPU, tmp_path, None)

    # When
    first, second = models.get("tiny-random"), models.get("tiny-random")
    models.announce(redis, ttl_seconds=20)

    # Then
    assert first is second
    [told] = loaded_models(redis).values()
    assert (told.preset, told.scale, told.device) == ("tiny-random", 2, "cpu")
    assert told.network == network_name(first.fingerprint)


def test_the_stand_in_repeats_pixels_and_is_told_like_networks(redis: Redis, tmp_path: Path) -> None:
    # Given
    models = LoadedModels(CPU, tmp_path, None)
    frames = np.arange(2 * 2 * 3 * 3, dtype=np.uint16).reshape(2, 2, 3, 3)

    # When
    enlarged = models.get("repeat-pixels")(frames, frames, frames)
    models.announce(redis, ttl_seconds=20)

    # Then
    assert enlarged.dtype == np.uint16
    assert enlarged.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(enlarged[:, ::2, ::2], frames)
    np.testing.assert_array_equal(enlarged[:, 1::2, 1::2], frames)
    assert loaded_models(redis)["repeat-pixels"].scale == 2


def test_weights_that_nobody_imported_are_named(tmp_path: Path) -> None:
    with pytest.raises(JobFailureError, match="vsr weights import") as caught:
        LoadedModels(CPU, tmp_path, None).get("paper")
    assert caught.value.code is FailureCode.WEIGHTS_MISSING


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "paper.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(JobFailureError, match=r"paper\.safetensors") as caught:
        LoadedModels(CPU, tmp_path, None).get("paper")
    assert caught.value.code is FailureCode.WEIGHTS_DAMAGED


def test_an_unknown_preset_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(JobFailureError, match="compact") as caught:
        LoadedModels(CPU, tmp_path, None).get("enormous")
    assert caught.value.code is FailureCode.UNKNOWN_PRESET


def test_weights_that_a_user_trained_are_a_preset_too(tmp_path: Path) -> None:
    # Given
    preset = PRESETS["tiny-random"]
    save_checkpoint(tmp_path / "mine.safetensors", HAT(preset.hat), ConditionalUNet(preset.unet), {})
    models = LoadedModels(CPU, tmp_path, None)

    # When
    first, second = models.get("mine"), models.get("mine")

    # Then
    assert first is second


def test_a_gpu_that_cannot_be_used_is_never_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(JobFailureError, match="cuda") as caught:
        usable_device("cuda")
    assert caught.value.code is FailureCode.DEVICE_UNAVAILABLE


def test_tiles_that_do_not_fit_the_networks_are_refused_with_the_multiple(tmp_path: Path) -> None:
    models = LoadedModels(CPU, tmp_path, tile_px=33)
    with pytest.raises(JobFailureError, match=r"33.*multiple.*--tile") as caught:
        models.get("tiny-random")
    assert caught.value.code is FailureCode.INVALID_OPTION


@pytest.mark.skipif(sys.platform != "linux", reason="what is given back is glibc's")
def test_memory_of_what_did_not_fit_is_given_back_to_the_system() -> None:
    # Given a process with the allocator's settings of a worker, that has used and freed half a gigabyte in layers
    program = """
import gc, pathlib, torch
from worker.loaded_models import LoadedModels

def megabytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

models = LoadedModels(torch.device("cpu"), pathlib.Path("none"), None, None)
layers = [torch.ones(16 * 2**20 // 4) for _ in range(32)]
del layers
gc.collect()
kept = megabytes()
# When it is asked to release it
models.release_memory()
print(kept, megabytes())
"""
    environment = os.environ | CPU_ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    # Then it does
    kept, left = map(int, done.stdout.split())
    assert kept - left > 400


def test_the_precision_that_was_asked_for_is_named_in_the_fingerprint(tmp_path: Path) -> None:
    # given two workers of one machine, told different things
    exact = LoadedModels(CPU, tmp_path, None, precision="float32").get("tiny-random")
    fast = LoadedModels(CPU, tmp_path, None, precision="bfloat16").get("tiny-random")

    # then nobody takes the one's segments for the other's
    assert "-cpu-f32-" in exact.fingerprint
    assert "-cpu-bf16-" in fast.fingerprint
    assert exact.maker != fast.maker
