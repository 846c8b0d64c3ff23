"""A sweep trains each run once, keeps its score, and sets it beside the paper's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import load_checkpoint, save_checkpoint
from model.data import Dataset, DecodedSequence, write_dataset
from model.evaluation import sweep
from model.evaluation.contenders import Contender, two_steps
from model.evaluation.scores import evaluate
from model.evaluation.sweep import PAPER_TABLE_II, Scorer, Sweep, arms_of, row_of, run_sweep
from model.presets import PRESETS, random_upscaler
from model.training.config import TrainConfig, TrainingError

TINY = PRESETS["tiny-random"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """One small sequence to train on and one held out."""
    generator = torch.Generator().manual_seed(0)
    write_dataset(
        [
            DecodedSequence(
                f"{split}/0", split, "CC0", split, torch.randint(256, (4, 3, 40, 40), generator=generator).byte()
            )
            for split in ("train", "val")
        ],
        tmp_path / "data",
        seed=0,
    )
    return Dataset.open(tmp_path / "data")


@pytest.fixture
def base(tmp_path: Path) -> TrainConfig:
    """Two steps behind a random HAT."""
    path = tmp_path / "hat.safetensors"
    save_checkpoint(path, random_upscaler(TINY).hat, None, {})
    return TrainConfig(
        stage="unet",
        data_folder="",
        run_folder="",
        hat=None,
        unet=TINY.unet,
        hat_weights=str(path),
        batch_size=2,
        patch_px=16,
        learning_rate=1e-2,
        schedule="constant",
        loss="mae",
        steps=2,
        validation_frames=0,
        device="cpu",
        bfloat16=False,
    )


def test_the_tables_have_every_a_of_the_paper(base: TrainConfig) -> None:
    table_i, table_ii, table_iii = (arms_of(table, base) for table in ("I", "II", "III"))

    assert [arm.config.loss for arm in table_i] == ["mse", "mae"]
    assert [arm.config.alpha for arm in table_ii[:10]] == pytest.approx([a / 10 for a in range(10)])
    assert [arm.paper_db for arm in table_ii] == 2 * list(PAPER_TABLE_II)
    assert {arm.config.ssim_data_range for arm in table_ii[:10]} == {"true"}
    assert {arm.config.ssim_data_range for arm in table_ii[11:21]} == {"published"}
    assert [arm.config.alpha for arm in table_iii] == pytest.approx([a / 100 for a in range(11)])
    assert (table_iii[0].paper_db, table_iii[10].paper_db) == (30.55, 30.745)
    # All else is as in the base.
    for arm in (*table_i, *table_ii, *table_iii):
        assert replace(arm.config, loss="mae", alpha=None, ssim_data_range="true") == base


def test_the_same_training_is_one_run_in_several_tables(base: TrainConfig) -> None:
    arms = [arm for table in sweep.TABLES for arm in arms_of(table, base)]

    configs = {arm.run: arm.config for arm in arms}

    # MAE is also a = 1 of Table II with either range, the preset's own output, and that with true neighbours.
    assert [arm.label for arm in arms if arm.run == "mae"] == [
        "MAE",
        "a = 1.0, true range",
        "a = 1.0, published range",
        "residual",
        "true neighbours",
    ]
    assert all(configs[arm.run] == arm.config for arm in arms)
    assert len(configs) == 2 + 20 + 11 + 1 + 1


def test_a_sweep_trains_each_run_with_each_seed_and_tells_mean_and_spread(
    dataset: Dataset, base: TrainConfig, tmp_path: Path
) -> None:
    progress: list[tuple[float, int, str]] = []

    result = run_sweep(
        dataset,
        base,
        tmp_path / "out",
        tables=["I", "neighbours"],
        seeds=2,
        frames_per_sequence=1,
        on_progress=lambda *now: progress.append(now),
    )

    runs = sorted(folder.name for folder in (tmp_path / "out" / "runs").iterdir())
    assert runs == [f"{run}-seed{seed}" for run in ("mae-current", "mae", "mse") for seed in (0, 1)]
    assert [(row.table, row.label) for row in result.rows] == [
        ("I", "HAT alone"),
        ("I", "MSE"),
        ("I", "MAE"),
        ("neighbours", "HAT alone"),
        ("neighbours", "true neighbours"),
        ("neighbours", "the current frame for both"),
    ]
    hat, mse, mae = result.rows[:3]
    assert (hat.over_hat_rgb_db, hat.psnr_rgb_spread_db, hat.paper_db) == (0, None, 28.97)
    assert mae.psnr_rgb_spread_db is not None
    assert mae.psnr_rgb_spread_db > 0
    assert mae.psnr_rgb_db != mse.psnr_rgb_db
    assert mae.over_hat_y_db == pytest.approx(mae.psnr_y_db - hat.psnr_y_db)
    assert progress[0] == (0, 6, "enlarging with HAT, once for all runs, 1 of 1 frames")
    assert progress[-1] == (6, 6, "mae-current-seed1")


def test_a_finished_run_is_not_repeated_and_another_length_is(
    dataset: Dataset, base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a finished sweep
    before = run_sweep(dataset, base, tmp_path / "out", tables=["I"], seeds=1, frames_per_sequence=1)

    # when it is called again without being able to train
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(sweep, "train", refuse)
    again = run_sweep(dataset, base, tmp_path / "out", tables=["I"], seeds=1, frames_per_sequence=1)

    # then it tells the same, and only runs that are not there are trained
    assert again == before
    with pytest.raises(AssertionError, match="it trains"):
        run_sweep(dataset, replace(base, steps=3), tmp_path / "out", tables=["I"], seeds=1, frames_per_sequence=1)
    with pytest.raises(AssertionError, match="it trains"):
        run_sweep(dataset, base, tmp_path / "out", tables=["I"], seeds=2, frames_per_sequence=1)


def test_a_score_is_the_one_that_evaluation_gives(dataset: Dataset, base: TrainConfig, tmp_path: Path) -> None:
    upscaler = random_upscaler(TINY)
    scorer = Scorer(dataset, upscaler.hat, "val", ["clean"], 2, tmp_path / "enlarged", torch.device("cpu"))
    scorer.fill_cache(upscaler.hat)
    contender = Contender("tiny", upscaler.hat, upscaler.unet, "a", "b")

    expected = {row.method: row for row in evaluate(dataset, [contender])}  # four frames have two with neighbours

    for score, kind in (
        (scorer.score(upscaler.unet), "two-step"),
        (scorer.score(upscaler.unet, "current"), "no-neighbours"),
    ):
        row = expected[two_steps(contender, kind)]  # type: ignore[arg-type]
        # HAT's outputs are cached in float16.
        assert score["clean"]["psnr_rgb_db"] == pytest.approx(row.psnr_rgb_db, abs=0.01)
        assert score["clean"]["psnr_y_db"] == pytest.approx(row.psnr_y_db, abs=0.01)


def test_the_spread_is_the_sample_standard_deviation(base: TrainConfig) -> None:
    of_seeds = [{"clean": {"psnr_rgb_db": rgb_db, "psnr_y_db": 30.0}} for rgb_db in (29.0, 31.0)]

    row = row_of(arms_of("I", base)[0], "clean", of_seeds, {"psnr_rgb_db": 28.0, "psnr_y_db": 29.5})

    assert (row.psnr_rgb_db, row.psnr_rgb_spread_db) == (30, pytest.approx(2**0.5))
    assert (row.over_hat_rgb_db, row.over_hat_y_db) == (2, 0.5)
    assert row.paper_over_hat_db == pytest.approx(1.58)


def test_the_numbers_of_the_json_are_those_of_the_table(base: TrainConfig, tmp_path: Path) -> None:
    of_seeds = [{"clean": {"psnr_rgb_db": rgb_db, "psnr_y_db": 31.234}} for rgb_db in (29.0, 31.0)]
    hat = {"psnr_rgb_db": 28.0, "psnr_y_db": 29.5}
    rows = [row_of(arm, "clean", of_seeds, hat) for arm in arms_of("III", base)]

    Sweep({"seeds": 2}, rows).write(tmp_path)

    content, markdown = json.loads((tmp_path / "sweep.json").read_text()), (tmp_path / "sweep.md").read_text()
    assert "### Table III: a of the encoder loss; clean" in markdown
    for row in content["rows"]:
        spread = f"{row['psnr_rgb_db']:.2f} ± {row['psnr_rgb_spread_db']:.2f}"
        assert f"| {row['label']} | {spread} | 31.23 ± 0.00 | +2.00 | +1.73 | {row['paper_db']:.2f} |" in markdown


def test_a_sweep_without_a_hat_is_refused(dataset: Dataset, base: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="name its weights"):
        run_sweep(dataset, replace(base, hat_weights=None), tmp_path)


def test_a_run_of_a_sweep_leaves_usable_weights(dataset: Dataset, base: TrainConfig, tmp_path: Path) -> None:
    run_sweep(dataset, base, tmp_path / "out", tables=["I"], seeds=1, frames_per_sequence=1)

    info, _, unet = load_checkpoint(tmp_path / "out" / "runs" / "mae-seed0" / "weights.safetensors")

    assert unet is not None
    assert info.unet == TINY.unet
