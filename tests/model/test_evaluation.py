"""Evaluation compares like with like, and its plain enlargements are what they are called."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.data import DatasetError
from model.evaluation import bicubic, evaluate, lanczos, spread, to_markdown
from model.hat import HAT
from model.presets import PRESETS, random_upscaler


@pytest.mark.parametrize(("ours", "name"), [(bicubic, "BICUBIC"), (lanczos, "LANCZOS")])
def test_plain_enlargements_are_those_of_pillow(ours: object, name: str) -> None:
    # given a smooth picture, for Pillow clips to 8 bits between rows and columns
    y, x = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
    picture = (127 + 60 * torch.sin(x / 3 + y / 5)).round().clamp(0, 255)
    frame = picture.expand(1, 3, 24, 20) / 255

    # when both enlarge it
    image = Image.fromarray(picture.to(torch.uint8).numpy()).resize((40, 48), getattr(Image.Resampling, name))
    expected = torch.from_numpy(np.array(image)).float()
    enlarged = ours(frame)[0, 1] * 255  # type: ignore[operator]

    # then they agree to the rounding, the rim aside, which every library treats in its own way
    assert enlarged.shape == expected.shape
    assert float((enlarged - expected)[6:-6, 6:-6].abs().max()) < 1.5


def test_every_method_is_scored_per_group_and_over_all(data_folder: Path) -> None:
    upscaler = random_upscaler(PRESETS["tiny-random"])
    progress: list[tuple[int, int]] = []

    scores = evaluate(upscaler.hat, upscaler.unet, data_folder, on_progress=lambda *done: progress.append(done))

    methods = ["bicubic", "Lanczos", "HAT alone", "two steps", "two steps, no neighbours"]
    assert [row.method for row in scores if row.group == "all"] == methods
    assert {row.group for row in scores} == {"all", "waves"}
    assert {row.frames for row in scores} == {3}  # five frames have three triplets
    assert progress == [(1, 1)]
    assert all(row.psnr_y_db > 5 and 0 < row.ssim_y <= 1 for row in scores)


def test_the_control_without_neighbours_differs_where_neighbours_differ(data_folder: Path) -> None:
    upscaler = random_upscaler(PRESETS["tiny-random"])

    scores = {row.method: row for row in evaluate(upscaler.hat, upscaler.unet, data_folder, split="train")}

    assert scores["two steps"].psnr_y_db != scores["two steps, no neighbours"].psnr_y_db


def test_a_hat_alone_is_evaluated_without_two_steps(data_folder: Path, hat: HAT) -> None:
    scores = evaluate(hat, None, data_folder, frames_per_sequence=1)

    assert [row.method for row in scores if row.group == "all"] == ["bicubic", "Lanczos", "HAT alone"]
    assert {row.frames for row in scores} == {1}


def test_a_split_without_sequences_is_refused(data_folder: Path, hat: HAT) -> None:
    with pytest.raises(DatasetError, match="no sequence in the split 'test'"):
        evaluate(hat, None, data_folder, split="test")


def test_the_table_has_a_row_per_method(data_folder: Path, hat: HAT) -> None:
    table = to_markdown(evaluate(hat, None, data_folder))

    assert table.count("| bicubic |") == 2
    assert "all, 3 frames" in table


@pytest.mark.parametrize(
    ("count", "expected"), [(None, [1, 2, 3, 4, 5, 6]), (9, [1, 2, 3, 4, 5, 6]), (3, [2, 4, 6]), (1, [4])]
)
def test_frames_are_spread_evenly(count: int | None, expected: list[int]) -> None:
    assert spread(range(1, 7), count) == expected
