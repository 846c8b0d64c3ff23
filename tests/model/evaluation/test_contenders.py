"""What is compared: each method under its own name, each control with the neighbours it is called after."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints import CheckpointError, save_checkpoint
from model.evaluation.contenders import Contender, as_served, file_contender, outputs, preset_contender, two_steps
from model.presets import PresetUnavailableError
from model.sampling import Batch
from model.upscaler import TwoStepUpscaler


def frames(seed: int) -> Tensor:
    return torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> Batch:
    return Batch(frames(0), frames(1), frames(2), torch.zeros(2, 3, 24, 32))


@pytest.fixture
def strangers() -> Batch:
    return Batch(frames(10), frames(11), frames(12), torch.zeros(2, 3, 24, 32))


def test_every_method_has_a_row_that_names_its_networks(batch: Batch, strangers: Batch) -> None:
    results = outputs([preset_contender("tiny-random", None)], batch, strangers)

    assert [method.name for method in results] == [
        "nearest",
        "bicubic",
        "Lanczos",
        "HAT alone (tiny-random)",
        "two steps, residual (tiny-random)",
        "two steps, residual, no neighbours (tiny-random)",
        "two steps, residual, foreign neighbours (tiny-random)",
    ]
    assert {output.shape for output in results.values()} == {(2, 3, 24, 32)}


def test_each_control_sees_what_its_name_says(batch: Batch, strangers: Batch) -> None:
    tiny = preset_contender("tiny-random", None)
    assert tiny.unet is not None
    center_sr = as_served(tiny.hat, batch.center_lr)

    results = outputs([tiny], batch, strangers)

    for kind, previous_lr, next_lr in (
        ("two-step", batch.previous_lr, batch.next_lr),
        ("no-neighbours", batch.center_lr, batch.center_lr),
        ("foreign-neighbours", strangers.previous_lr, strangers.next_lr),
    ):
        expected = as_served(tiny.unet, center_sr, previous_lr, next_lr)
        assert torch.equal(results[two_steps(tiny, kind)], expected)  # type: ignore[arg-type]
    assert len({float(results[two_steps(tiny, kind)].sum()) for kind in ("two-step", "no-neighbours")}) == 2


def test_two_steps_are_what_the_service_makes(batch: Batch, upscaler: TwoStepUpscaler) -> None:
    tiny = preset_contender("tiny-random", None)

    results = outputs([tiny], batch, None)

    served = upscaler(batch.previous_lr, batch.center_lr, batch.next_lr)
    assert torch.equal(results[two_steps(tiny, "two-step")].clamp(0, 1), served)


def test_without_another_video_there_are_no_foreign_neighbours(batch: Batch) -> None:
    results = outputs([preset_contender("tiny-random", None)], batch, None)

    assert not any(method.kind == "foreign-neighbours" for method in results)


def test_networks_with_the_same_hat_share_its_row(batch: Batch) -> None:
    one = preset_contender("tiny-random", None)
    other = Contender("other", one.hat, one.unet, one.weights_sha256, one.hat_sha256)

    names = [method.name for method in outputs([one, other], batch, None)]

    assert [name for name in names if name.startswith("HAT")] == ["HAT alone (tiny-random)"]
    assert "two steps, residual (other)" in names


def test_a_control_that_was_trained_without_neighbours_never_sees_any(batch: Batch, strangers: Batch) -> None:
    one = preset_contender("tiny-random", None)
    assert one.unet is not None
    control = replace(one, label="control", is_control=True)

    results = outputs([one, control], batch, strangers)

    of_control = [method for method in results if method.networks == "control"]
    assert [method.name for method in of_control] == ["two steps, residual, trained without neighbours (control)"]
    center_sr = as_served(one.hat, batch.center_lr)
    assert torch.equal(results[of_control[0]], as_served(one.unet, center_sr, batch.center_lr, batch.center_lr))


def test_a_hat_alone_has_no_two_steps(batch: Batch, upscaler: TwoStepUpscaler, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine.safetensors", upscaler.hat, None, {})

    results = outputs([file_contender(tmp_path / "mine.safetensors")], batch, None)

    assert [method.name for method in results][3:] == ["HAT alone (mine)"]
    with pytest.raises(CheckpointError, match="a control has a U-Net"):
        file_contender(tmp_path / "mine.safetensors", is_control=True)


def test_the_weights_of_a_run_are_called_after_its_folder(upscaler: TwoStepUpscaler, tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    run.mkdir()
    info = save_checkpoint(run / "weights.safetensors", upscaler.hat, upscaler.unet, {})

    contender = file_contender(run / "weights.safetensors")

    assert (contender.label, contender.weights_sha256) == ("my-run", info.sha256)
    # And the same networks have the same digests, wherever they come from.
    tiny = preset_contender("tiny-random", None)
    assert (tiny.weights_sha256, tiny.hat_sha256) == (contender.weights_sha256, contender.hat_sha256)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(PresetUnavailableError, match="preset 'paper' needs weights"):
        preset_contender("paper", tmp_path)
    with pytest.raises(CheckpointError, match="there is no weight file"):
        file_contender(tmp_path / "none.safetensors")
