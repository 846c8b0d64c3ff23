"""Training learns, resumes exactly, refuses to mix runs, and stops at a loss that is no number."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import training
from model.checkpoints import load_checkpoint
from model.data import Dataset
from model.hat import HATConfig
from model.presets import PRESETS
from model.training import Progress, TrainConfig, TrainingError, compact_hat, learning_rate, train


@pytest.fixture
def config(data_folder: Path, tmp_path: Path, small_hat_config: HATConfig) -> TrainConfig:
    """A few steps of the first stage."""
    return replace(
        compact_hat(data_folder, tmp_path / "run"),
        hat=small_hat_config,
        batch_size=2,
        patch_px=16,
        steps=6,
        bfloat16=False,
        report_every=1,
        checkpoint_every=3,
        device="cpu",
    )


def unet_config(config: TrainConfig, hat_weights: Path, run_folder: Path) -> TrainConfig:
    return replace(
        config,
        stage="unet",
        hat=None,
        unet=PRESETS["tiny-random"].unet,
        hat_weights=str(hat_weights),
        run_folder=str(run_folder),
    )


def test_the_first_stage_gets_better_and_leaves_its_records(config: TrainConfig) -> None:
    # when forty steps are trained
    seen: list[Progress] = []
    info = train(replace(config, steps=40, checkpoint_every=20), seen.append)

    # then the loss went down, and everything promised is in the run folder
    first, last = (sum(p.loss for p in part) for part in (seen[:10], seen[-10:]))
    lines = [json.loads(line) for line in (Path(config.run_folder) / "metrics.jsonl").read_text().splitlines()]
    written = json.loads((Path(config.run_folder) / "config.json").read_text())
    assert last < first
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert [line["step"] for line in lines if "psnr_y_db" in line] == [20, 40]
    assert (written["config"]["seed"], written["torch"]) == (0, torch.__version__)
    assert (info.kind, info.notes["steps"]) == ("hat", "40")


@pytest.mark.parametrize("stage", ["hat", "unet"])
def test_a_run_killed_and_resumed_ends_with_the_same_weights(config: TrainConfig, tmp_path: Path, stage: str) -> None:
    # given a run that nothing disturbed
    if stage == "unet":
        hat_weights = train(replace(config, steps=1)).path
        config = unet_config(config, hat_weights, tmp_path / "undisturbed")
    undisturbed = train(replace(config, run_folder=str(tmp_path / "undisturbed")))

    # when the same run dies after a step past its checkpoint and is started again
    class KilledError(Exception):
        pass

    def die(progress: Progress) -> None:
        if progress.step == 4:
            raise KilledError

    interrupted = replace(config, run_folder=str(tmp_path / "interrupted"))
    with pytest.raises(KilledError):
        train(interrupted, die)
    seen: list[Progress] = []
    resumed = train(interrupted, seen.append)

    # then it went on from the checkpoint, the weights are the same to the bit, and no step is recorded twice
    lines = [json.loads(line) for line in (tmp_path / "interrupted" / "metrics.jsonl").read_text().splitlines()]
    assert [progress.step for progress in seen] == [4, 5, 6]
    assert resumed.sha256 == undisturbed.sha256
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"cut off"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(config: TrainConfig, content: bytes) -> None:
    # given a run whose checkpoint has become something else, or lost its second half
    train(replace(config, steps=3))
    checkpoint = Path(config.run_folder) / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2] if content == b"cut off" else content)

    # when it goes on, then it says what is wrong and what to do
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is damaged .*: remove it"):
        train(config)


def test_the_second_stage_trains_the_unet_and_only_it(config: TrainConfig, tmp_path: Path) -> None:
    # given a trained first stage
    first = train(replace(config, steps=2))

    # when the second stage is trained on top
    second = train(unet_config(config, first.path, tmp_path / "second"))

    # then the HAT of the result is the one of the first stage, and the U-Net does something
    _, hat_before, _ = load_checkpoint(first.path)
    info, hat_after, unet = load_checkpoint(second.path)
    assert info.kind == "two-step"
    assert all(torch.equal(t, hat_after.state_dict()[key]) for key, t in hat_before.state_dict().items())
    assert unet is not None
    assert bool(unet.head.weight.any())


def test_a_finished_run_started_again_only_returns_its_weights(config: TrainConfig) -> None:
    finished = train(config)
    seen: list[Progress] = []

    assert train(config, seen.append).sha256 == finished.sha256
    assert seen == []


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run that went well up to its first checkpoint
    train(replace(config, steps=3))
    checkpoint = Path(config.run_folder) / "checkpoint.pt"
    before = checkpoint.read_bytes()

    # when the loss of the next step is not a number
    monkeypatch.setattr(training, "loss_of", lambda config, output, target: output.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 4"):
        train(config)

    # then what was there is there
    assert checkpoint.read_bytes() == before


def test_a_folder_of_another_run_is_refused(config: TrainConfig) -> None:
    train(replace(config, steps=1))

    with pytest.raises(TrainingError, match=r"holds another run: learning_rate was 0\.001, now 0\.5"):
        train(replace(config, learning_rate=0.5))


def test_a_run_may_be_prolonged(config: TrainConfig) -> None:
    train(replace(config, steps=3))
    seen: list[Progress] = []

    train(replace(config, steps=4), seen.append)

    assert [progress.step for progress in seen] == [4]


def test_the_second_stage_without_a_first_is_refused(config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match="needs the configuration of a U-Net and the weights of a trained HAT"):
        train(replace(config, stage="unet"))


@pytest.mark.parametrize("loss", ["mse", "mae", "mae_ssim"])
def test_every_loss_trains(config: TrainConfig, loss: str) -> None:
    seen: list[Progress] = []

    train(replace(config, loss=loss, steps=1), seen.append)  # type: ignore[arg-type]

    assert 0 < seen[0].loss < 10


def test_training_never_sees_the_held_out_sequences(config: TrainConfig, data_folder: Path) -> None:
    data = Dataset.open(data_folder)

    sampler = training.TripletSampler(data, config.patch_px, seed=0)

    assert {entry.split for entry in data.entries} == {"train", "val"}
    assert sampler.entries == [entry for entry in data.entries if entry.split == "train"]


def test_the_cosine_starts_warm_and_ends_at_zero(config: TrainConfig) -> None:
    config = replace(config, steps=1000)

    assert learning_rate(config, 0) == pytest.approx(1e-5, rel=0.01)
    assert learning_rate(config, 500) == pytest.approx(5e-4)
    assert learning_rate(config, 1000) == pytest.approx(0)
    assert learning_rate(replace(config, schedule="constant"), 0) == 1e-3


def test_the_paper_preset_is_the_papers(tmp_path: Path) -> None:
    config = training.paper_unet(tmp_path, tmp_path, tmp_path / "hat.safetensors")

    assert (config.learning_rate, config.betas, config.batch_size, config.patch_px) == (1e-4, (0.9, 0.999), 64, 64)
    assert (config.loss, config.alpha) == ("mae_ssim", 0.8)
