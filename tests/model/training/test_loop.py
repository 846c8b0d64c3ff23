"""Training learns, resumes exactly, tells what it does, refuses to mix runs, and stops at a loss that is no number."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from model.checkpoints import load_checkpoint, read_passport, save_checkpoint
from model.data import Dataset, DatasetError, DecodedSequence, write_dataset
from model.hat import HAT, HATConfig
from model.presets import PRESETS
from model.sampling import Batch, TripletSampler
from model.training import loop
from model.training.loop import TRAIN_PRESETS, Progress, TrainConfig, TrainingError, learning_rate, train

COMPACT_HAT = TRAIN_PRESETS["compact-hat"]


@pytest.fixture
def config(data_folder: Path, tmp_path: Path, small_hat_config: HATConfig) -> TrainConfig:
    """A few steps of the first stage."""
    return replace(
        COMPACT_HAT(data_folder, tmp_path / "run", None),
        hat=small_hat_config,
        batch_size=2,
        patch_px=16,
        steps=6,
        ema_decay=None,
        gradient_clip_norm=None,
        bfloat16=False,
        report_every=1,
        checkpoint_every=3,
        device="cpu",
    )


@pytest.fixture
def hat_weights(tmp_path: Path, hat: HAT) -> Path:
    return save_checkpoint(tmp_path / "hat.safetensors", hat, None, {}).path


@pytest.fixture
def unet_config(config: TrainConfig, hat_weights: Path, two_conditions_folder: Path, tmp_path: Path) -> TrainConfig:
    """A few steps of the second stage, with all that our presets switch on."""
    return replace(
        config,
        stage="unet",
        unet=PRESETS["tiny-random"].unet,
        hat_weights=str(hat_weights),
        data_folder=str(two_conditions_folder),
        run_folder=str(tmp_path / "unet-run"),
        conditions={},
        ema_decay=0.9,
        gradient_clip_norm=0.01,
        cache_enlarged=True,
        cached_centers=2,
    )


def metrics_of(run_folder: str | Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(run_folder) / "metrics.jsonl").read_text().splitlines()]


def test_the_first_stage_gets_better_and_leaves_its_records(config: TrainConfig) -> None:
    # when forty steps are trained
    seen: list[Progress] = []
    info = train(replace(config, steps=40, checkpoint_every=20), seen.append)

    # then the loss went down, and everything promised is in the run folder
    first, last = (sum(p.loss for p in part) for part in (seen[:10], seen[-10:]))
    lines = metrics_of(config.run_folder)
    written = json.loads((Path(config.run_folder) / "config.json").read_text())
    assert last < first
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert [line["step"] for line in lines if "psnr_y_db" in line] == [20, 40]
    assert (written["config"]["seed"], written["starts"][0]["torch"]) == (0, torch.__version__)
    assert {"command", "commit", "uncommitted_changes", "cpu", "gpu", "threads"} <= set(written["starts"][0])
    assert (info.kind, info.notes["steps"]) == ("hat", "40")
    # and a report says how long it will take, and where the time goes
    assert seen[-1].seconds_left == 0 < seen[0].seconds_left
    for line in lines:
        shares = [line["data_wait_share"], line["forward_share"], line["backward_share"]]
        assert sum(shares) == pytest.approx(1, abs=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["hat", "unet"])
def test_a_run_killed_and_resumed_ends_with_the_same_weights(
    config: TrainConfig, unet_config: TrainConfig, tmp_path: Path, stage: str
) -> None:
    # given a run that nothing disturbed
    config = unet_config if stage == "unet" else config
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
    assert [progress.step for progress in seen] == [4, 5, 6]
    assert resumed.sha256 == undisturbed.sha256
    without, with_kill = (metrics_of(tmp_path / name) for name in ("undisturbed", "interrupted"))
    assert [(line["step"], line["loss"]) for line in with_kill] == [(line["step"], line["loss"]) for line in without]


def test_the_curves_go_on_where_a_resumed_run_does(config: TrainConfig) -> None:
    # given a run that died at step 5, past its checkpoint at step 3, and was started again
    def die(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, die)
    train(config)

    # when TensorBoard reads what both wrote
    curves = EventAccumulator(str(Path(config.run_folder) / "curves"))
    curves.Reload()

    # then each step is there once, with the values of metrics.jsonl
    lines = metrics_of(config.run_folder)
    assert [point.step for point in curves.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in curves.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])
    assert [point.step for point in curves.Scalars("bicubic/clean")] == [3, 6]


def test_every_validation_names_each_condition_beside_hat_alone_and_leaves_a_picture(unet_config: TrainConfig) -> None:
    # when a U-Net is trained and validated twice
    seen: list[Progress] = []
    train(unet_config, seen.append)

    # then both conditions were judged, ours and HAT alone, which does not change
    lines = [line for line in metrics_of(unet_config.run_folder) if "psnr_y_db" in line]
    assert [set(line["ours"]) for line in lines] == [{"clean", "dark"}] * 2  # type: ignore[call-overload]
    assert lines[0]["hat"] == lines[1]["hat"]
    assert set(seen[-1].psnr_y_db_by_condition) == {"clean", "dark"}
    # and there is a row of four 48x48 pictures for each of the two held-out frames
    pictures = sorted((Path(unet_config.run_folder) / "samples").iterdir())
    assert [picture.name for picture in pictures] == ["00000003.png", "00000006.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (4 * 48, 2 * 48)


def test_an_untrained_residual_is_validated_as_hat_alone(unet_config: TrainConfig) -> None:
    # given a U-Net that adds nothing yet, because its gradients are clipped to nothing
    train(replace(unet_config, gradient_clip_norm=1e-15))

    # then it has HAT's own score
    last = metrics_of(unet_config.run_folder)[-1]
    assert last["ours"] == pytest.approx(last["hat"], abs=1e-3)


def test_the_running_average_is_what_is_shipped(unet_config: TrainConfig, tmp_path: Path) -> None:
    # given a run that checkpoints every step, so that we see all its weights
    unet_config = replace(unet_config, checkpoint_every=1, steps=3)
    seen: list[dict[str, torch.Tensor]] = []

    def look(progress: Progress) -> None:
        seen.append(torch.load(Path(unet_config.run_folder) / "checkpoint.pt")["network"])

    _, _, unet = load_checkpoint(train(unet_config, look).path)
    assert unet is not None

    # when the average is worked out from the weights after steps 1 to 3, and those before (same seed)
    torch.manual_seed(unet_config.seed)
    average = loop.build(unet_config).trained.state_dict()
    for step, weights in enumerate(seen):
        decay = min(0.9, (1 + step) / (10 + step))
        average = {key: decay * value + (1 - decay) * weights[key] for key, value in average.items()}

    # then that is what the file holds
    for key, value in unet.state_dict().items():
        assert torch.allclose(value, average[key], atol=1e-6), key


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


def test_the_second_stage_trains_the_unet_and_only_it(unet_config: TrainConfig) -> None:
    # when the second stage is trained behind a HAT
    second = train(unet_config)

    # then the HAT of the result is the one it was given, and the U-Net does something
    _, hat_before, _ = load_checkpoint(Path(unet_config.hat_weights or ""))
    info, hat_after, unet = load_checkpoint(second.path)
    assert info.kind == "two-step"
    assert all(torch.equal(t, hat_after.state_dict()[key]) for key, t in hat_before.state_dict().items())
    assert unet is not None
    assert bool(unet.head.weight.any())


def test_cached_frames_train_nearly_as_hat_in_the_loop_does_where_a_patch_is_the_whole_frame(
    unet_config: TrainConfig, tmp_path: Path
) -> None:
    # given patches as large as the frames, so that HAT sees the same in both ways
    unet_config = replace(unet_config, patch_px=24, cached_centers=None)
    losses: dict[bool, list[object]] = {}

    # when one run caches HAT's outputs and another computes them at every step
    for cached in (True, False):
        folder = tmp_path / f"cached-{cached}"
        train(replace(unet_config, cache_enlarged=cached, run_folder=str(folder)))
        losses[cached] = [line["loss"] for line in metrics_of(folder)]

    # then they train the same, but for the rounding to float16 and for turns, after which HAT gives almost the same
    assert losses[True] == pytest.approx(losses[False], rel=0.06)


def test_a_finished_run_started_again_only_returns_its_weights(config: TrainConfig) -> None:
    finished = train(config)
    seen: list[Progress] = []

    assert train(config, seen.append).sha256 == finished.sha256
    assert seen == []


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        pytest.param(lambda output: output.sum() * float("nan"), "the loss is nan at step 4", id="the loss"),
        # Finite itself, but its slope is infinite: the root of 0.
        pytest.param(lambda output: (output * 0).sum().abs().sqrt(), "no longer numbers after step 4", id="its slope"),
    ],
)
def test_what_is_no_number_stops_the_run_and_never_reaches_the_checkpoint(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, loss: Callable[[Tensor], Tensor], message: str
) -> None:
    # given a run that went well up to its first checkpoint
    train(replace(config, steps=3))
    checkpoint = Path(config.run_folder) / "checkpoint.pt"
    before = checkpoint.read_bytes()

    # when the next step, which is saved, has a loss that is no number, or a slope
    monkeypatch.setattr(loop, "loss_of", lambda config, output, target, encoded: loss(output))
    with pytest.raises(TrainingError, match=f"{message}; the last checkpoint is intact"):
        train(replace(config, steps=4))

    # then what was there is there
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("file", ["checkpoint.partial", "metrics.jsonl", "config.partial"])
def test_a_full_disk_is_one_line_and_spares_the_checkpoint(config: TrainConfig, file: str) -> None:
    # given a run that went well up to its first checkpoint, and a disk that then takes no more
    train(replace(config, steps=3))
    folder = Path(config.run_folder)
    before = (folder / "checkpoint.pt").read_bytes()
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to("/dev/full")

    # when it goes on
    with pytest.raises(TrainingError, match=r"cannot write into .*: No space left on device; the last checkpoint is"):
        train(config)

    # then the checkpoint is there, and with room again the run ends well
    assert (folder / "checkpoint.pt").read_bytes() == before
    (folder / file).unlink(missing_ok=True)
    assert train(config).notes["steps"] == "6"


def test_a_folder_in_which_a_run_is_at_work_is_refused_to_another(config: TrainConfig) -> None:
    # given a run at work
    refused: list[str] = []

    def start_once_more(_: Progress) -> None:
        with pytest.raises(TrainingError, match="another process writes into") as caught:
            train(config)
        refused.append(str(caught.value))

    # when the same command is given at its every report
    finished = train(config, start_once_more)

    # then it is refused each time, and the run is not disturbed
    assert len(refused) == 6
    assert finished.notes["steps"] == "6"
    assert [line["step"] for line in metrics_of(config.run_folder)] == [1, 2, 3, 4, 5, 6]


def test_a_folder_of_another_run_is_refused(config: TrainConfig) -> None:
    train(replace(config, steps=1))

    with pytest.raises(TrainingError, match=r"holds another run: learning_rate was 0\.001, now 0\.5"):
        train(replace(config, learning_rate=0.5))


def test_a_run_does_not_go_on_with_other_data_of_the_same_name(
    config: TrainConfig, two_conditions_folder: Path
) -> None:
    train(replace(config, steps=1))

    with pytest.raises(TrainingError, match="holds another run: data_sha256 was"):
        train(replace(config, data_folder=str(two_conditions_folder)))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "bert"}'])
def test_a_folder_with_a_config_of_something_else_is_refused_and_left_alone(config: TrainConfig, content: str) -> None:
    folder = Path(config.run_folder)
    folder.mkdir()
    (folder / "config.json").write_text(content)

    with pytest.raises(TrainingError, match=r"config\.json is not a training run's, or is damaged"):
        train(config)

    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("config.json", content)]


def test_a_run_is_not_passed_off_as_a_shorter_one(config: TrainConfig) -> None:
    train(replace(config, steps=3))

    with pytest.raises(TrainingError, match="is at step 3 already: ask for that many or more, not 2"):
        train(replace(config, steps=2))


def test_a_prolonged_run_killed_before_it_shipped_does_not_return_the_weights_of_the_shorter_one(
    config: TrainConfig,
) -> None:
    # given a run that was prolonged, and the weights it had before
    shipped = Path(config.run_folder) / "weights.safetensors"
    train(replace(config, steps=3))
    shorter = shipped.read_bytes()
    longer = train(replace(config, steps=4))
    shipped.write_bytes(shorter)

    # when the same command is given again
    returned = train(replace(config, steps=4))

    # then it ships what the checkpoint holds
    assert (returned.sha256, returned.notes["steps"]) == (longer.sha256, "4")


def test_a_run_may_be_prolonged(config: TrainConfig) -> None:
    train(replace(config, steps=3))
    seen: list[Progress] = []

    train(replace(config, steps=4), seen.append)

    assert [progress.step for progress in seen] == [4]


def test_the_second_stage_without_a_first_is_refused(config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"name the weights of a trained one \(--hat\)"):
        train(replace(config, stage="unet", unet=PRESETS["tiny-random"].unet))


def test_a_hat_of_another_preset_is_refused_with_the_difference(unet_config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"is not the HAT of this preset: .*embed_dim 16, expected 48"):
        train(replace(unet_config, hat=PRESETS["compact"].hat))


def test_a_condition_that_the_data_lack_is_refused_with_those_they_have(unet_config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"has no condition 'jpeg', only clean, dark"):
        train(replace(unet_config, conditions={"jpeg": 1.0}))


def test_data_without_a_training_split_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    hr = torch.zeros(5, 3, 48, 48, dtype=torch.uint8)
    write_dataset([DecodedSequence("a", "a", "CC0", "val", hr)], tmp_path / "no-train", seed=0)

    with pytest.raises(DatasetError, match="has no sequence in the split 'train', only in val"):
        train(replace(config, data_folder=str(tmp_path / "no-train")))


def test_patches_larger_than_the_frames_are_refused(config: TrainConfig) -> None:
    with pytest.raises(DatasetError, match="has three frames of at least 32x32 low-resolution px"):
        train(replace(config, patch_px=32))


def test_data_without_held_out_sequences_are_trained_without_validation(config: TrainConfig, tmp_path: Path) -> None:
    # given a single video, which can only be trained on
    hr = torch.zeros(5, 3, 48, 48, dtype=torch.uint8)
    write_dataset([DecodedSequence("a", "a", "CC0", "train", hr)], tmp_path / "one", seed=0)

    # when it is trained on
    seen: list[Progress] = []
    train(replace(config, data_folder=str(tmp_path / "one"), steps=3), seen.append)

    # then the run ends well, and has no figure to show
    assert [progress.psnr_y_db for progress in seen] == [None, None, None]


@pytest.mark.parametrize("loss", ["mse", "mae", "mae_ssim", "encoder"])
def test_every_loss_trains(unet_config: TrainConfig, loss: str) -> None:
    seen: list[Progress] = []

    train(replace(unet_config, loss=loss, steps=1), seen.append)  # type: ignore[arg-type]

    assert 0 < seen[0].loss < 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "encoder"}, "the stage 'hat' has none"),
        ({"loss": "mae_ssim", "alpha": 2.0}, r"alpha is 2\.0: the loss 'mae_ssim' takes 0 to 1\.0"),
        ({"stage": "unet", "loss": "encoder", "alpha": 0.8}, r"alpha is 0\.8: the loss 'encoder' takes 0 to 0\.1"),
        ({"loss": "mae", "alpha": 0.5}, "the loss 'mae' has no alpha: only mae_ssim and encoder have one"),
        ({"neighbours": "current"}, "only a U-Net can be trained without neighbours"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0"),
        ({"batch_size": 0}, "batch_size is 0: expected at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    config: TrainConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(config, **changes)  # type: ignore[arg-type]


def test_training_never_sees_the_held_out_sequences(config: TrainConfig) -> None:
    dataset = Dataset.open(config.data_folder)

    sampler = TripletSampler(dataset, config.patch_px, seed=0)

    assert {entry.split for entry in sampler.entries} == {"train"}
    assert len(sampler.entries) == 5


def test_clean_frames_are_half_of_a_mixture_nobody_described() -> None:
    assert loop.mixed(["clean"]) == {"clean": 1.0}
    assert loop.mixed(["clean", "h264", "jpeg"]) == {"clean": 0.5, "h264": 0.25, "jpeg": 0.25}


def test_gradient_checkpointing_and_compiling_change_speed_and_memory_but_not_what_is_learnt(
    unet_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given compiling without code generation, which takes a minute and is torch's affair
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    # and networks with batch normalisation, which counts what it sees
    with_norm = replace(PRESETS["tiny-random"].unet, batch_norm=True)
    unet_config = replace(unet_config, unet=with_norm, steps=3, checkpoint_every=3)

    # when the same is trained plainly, with either, and with both
    finished = {}
    for checkpointing, compiled in ((False, False), (True, False), (False, True)):
        folder = tmp_path / f"{checkpointing}-{compiled}"
        changed = replace(unet_config, gradient_checkpointing=checkpointing, compile=compiled, run_folder=str(folder))
        _, _, finished[checkpointing, compiled] = load_checkpoint(train(changed).path)

    # then the weights are the same, the counts of batch normalisation among them
    plain = finished[False, False]
    assert plain is not None
    for other in finished.values():
        assert other is not None
        for key, value in plain.state_dict().items():
            assert torch.allclose(value, other.state_dict()[key], atol=1e-5), key


def test_checkpointed_hat_trains_the_same(config: TrainConfig, tmp_path: Path) -> None:
    plain = train(config)
    checkpointed = train(replace(config, gradient_checkpointing=True, run_folder=str(tmp_path / "checkpointed")))

    _, one, _ = load_checkpoint(plain.path)
    _, other, _ = load_checkpoint(checkpointed.path)
    for (key, value), same in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(value, same, atol=1e-6), key


@pytest.mark.parametrize("name", TRAIN_PRESETS)
def test_every_preset_describes_the_networks_it_is_named_after(name: str, tmp_path: Path) -> None:
    config = TRAIN_PRESETS[name](tmp_path, tmp_path, tmp_path / "hat.safetensors")

    preset = PRESETS[name.removesuffix("-hat").removesuffix("-unet")]
    assert config.hat == preset.hat
    assert config.unet == (preset.unet if config.stage == "unet" else None)


def test_a_unet_is_trained_behind_the_shipped_hat_unless_another_is_named(tmp_path: Path) -> None:
    # given no weights of a HAT
    config = TRAIN_PRESETS["compact-unet"](tmp_path, tmp_path, None)

    # then those of the preset are taken
    assert config.hat_weights is not None
    assert read_passport(Path(config.hat_weights)).hat == PRESETS["compact"].hat


def test_the_cosine_starts_warm_and_ends_at_zero(config: TrainConfig) -> None:
    config = replace(config, steps=1000)

    assert learning_rate(config, 0) == pytest.approx(1e-5, rel=0.01)
    assert learning_rate(config, 500) == pytest.approx(5e-4)
    assert learning_rate(config, 1000) == pytest.approx(0)
    assert learning_rate(replace(config, schedule="constant"), 0) == 1e-3


def test_the_paper_preset_is_the_papers(tmp_path: Path) -> None:
    config = TRAIN_PRESETS["paper"](tmp_path, tmp_path, tmp_path / "hat.safetensors")

    assert (config.learning_rate, config.betas, config.batch_size, config.patch_px) == (1e-4, (0.9, 0.999), 64, 64)
    assert (config.loss, config.alpha, config.schedule, config.epochs) == ("mae_ssim", 0.8, "constant", 10)
    assert (config.ema_decay, config.gradient_clip_norm, config.conditions) == (None, None, {"clean": 1.0})
    assert config.unet == PRESETS["paper"].unet
    assert config.unet.output == "direct"


def test_ten_epochs_of_the_papers_data_are_as_many_steps_as_the_paper_makes(data_folder: Path, tmp_path: Path) -> None:
    # given the training split of OpenVid-1M: 26,454 videos of 25 frames, so 23 triplets each
    dataset = Dataset.open(data_folder)
    dataset.entries = (replace(dataset.entries[1], frames=25),) * 26_454
    config = TRAIN_PRESETS["paper"](data_folder, tmp_path, tmp_path / "hat.safetensors")

    with loop.joined("cpu") as ranks:
        steps = loop.settled(config, dataset, ranks).steps

    assert steps == -(-10 * 23 * 26_454 // 64)


def test_the_control_is_trained_with_the_current_frame_in_place_of_both_neighbours(
    unet_config: TrainConfig, tmp_path: Path
) -> None:
    # given a data set in which nothing moves, and one in which only the neighbours do
    still = torch.randint(0, 255, (1, 3, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for name, frames in (("still", still.repeat(3, 1, 1, 1)), ("moving", torch.cat([255 - still, still, 255 - still]))):
        write_dataset([DecodedSequence("a", "a", "CC0", "train", frames)], tmp_path / name, seed=0)

    # when a control is trained on either
    sha256s = {
        train(
            replace(
                unet_config,
                data_folder=str(tmp_path / name),
                run_folder=str(tmp_path / f"run-{name}"),
                neighbours="current",
            )
        ).sha256
        for name in ("still", "moving")
    }

    # then both learn the same, as no neighbour was seen
    assert len(sha256s) == 1


def test_a_run_may_start_from_weights_trained_before(unet_config: TrainConfig, tmp_path: Path) -> None:
    # given a finished run
    before = train(replace(unet_config, steps=2))

    # when another starts from its weights and learns nothing
    still = replace(unet_config, run_folder=str(tmp_path / "second"), start_weights=str(before.path), seed=7)
    after = train(replace(still, steps=1, learning_rate=0.0))

    # then it holds them
    assert after.sha256 == before.sha256


def test_weights_of_another_network_are_no_start(unet_config: TrainConfig) -> None:
    # given weights of HAT alone
    start = str(unet_config.hat_weights)

    # when a U-Net is to start from them, then that is refused
    with pytest.raises(TrainingError, match=r"cannot be the start: it holds None, expected UNetConfig"):
        train(replace(unet_config, start_weights=start))


def test_the_sampler_is_told_how_many_patches_have_no_neighbours_of_their_own(
    unet_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an eye on the sampler that draws
    samplers: list[TripletSampler] = []
    draw = TripletSampler.batch

    def watched(sampler: TripletSampler, size: int) -> Batch:
        samplers.append(sampler)
        return draw(sampler, size)

    monkeypatch.setattr(TripletSampler, "batch", watched)

    # when a run names the shares
    train(replace(unet_config, steps=1, alone_share=0.25, foreign_share=0.5))

    # then those are what it draws by
    assert {(sampler.alone_share, sampler.foreign_share) for sampler in samplers} == {(0.25, 0.5)}
