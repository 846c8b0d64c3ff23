"""The page of pictures stands alone, and shows what it says."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.data import Dataset, DecodedSequence, write_dataset
from model.evaluation.contenders import preset_contender
from model.evaluation.page import CROP_PX, part_of, save_png, where_they_differ, write_page
from model.evaluation.report import make_report, provenance_of
from model.evaluation.scores import evaluate

CPU = torch.device("cpu")


@pytest.fixture
def page_folder(tmp_path: Path) -> Path:
    """The page of three sequences, one with an awkward name, in the folder of its data set."""
    generator = torch.Generator().manual_seed(0)
    names = ("a/one.mp4", "a/<two> & three.mp4", "a/four.mp4")
    write_dataset(
        [
            DecodedSequence(
                name, name, "CC0", "val", torch.randint(256, (3, 3, 72, 64), generator=generator, dtype=torch.uint8)
            )
            for name in names
        ],
        tmp_path,
        seed=0,
    )
    dataset, tiny = Dataset.open(tmp_path), preset_contender("tiny-random", None)
    provenance = provenance_of(
        dataset,
        [tiny],
        command="vsr evaluate",
        commit=None,
        data="data",
        split="val",
        frames_per_sequence=None,
        device=CPU,
    )
    report = make_report(provenance, evaluate(dataset, [tiny]), [], [tiny])
    write_page(report, dataset, [tiny], tmp_path, CPU)
    return tmp_path


def test_the_page_needs_nothing_but_its_own_pictures(page_folder: Path) -> None:
    page = (page_folder / "index.html").read_text()

    assert "://" not in page
    assert "<script" not in page
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert len(pictures) == len(set(pictures)) == 3 * (6 + 6 + 6)  # frames, parts and errors of three sequences
    for picture in pictures:
        with Image.open(page_folder / picture) as image:
            assert image.size == ((CROP_PX, CROP_PX) if "part" in picture else (64, 72))


def test_names_are_shown_as_they_are_and_not_read_as_html(page_folder: Path) -> None:
    page = (page_folder / "index.html").read_text()

    assert "a/&lt;two&gt; &amp; three.mp4" in page
    assert "<two>" not in page


def test_the_best_the_middle_and_the_worst_sequence_are_shown(page_folder: Path) -> None:
    page = (page_folder / "index.html").read_text()

    assert [page.count(f"the {which} gain of 3 sequences") for which in ("largest", "middle", "smallest")] == [1, 1, 1]
    assert page.index("the largest gain") < page.index("the smallest gain")


def test_the_part_is_where_two_pictures_differ_most() -> None:
    one, other = torch.zeros(1, 3, 100, 120), torch.zeros(1, 3, 100, 120)
    other[..., 60, 90] = 1

    top, left = where_they_differ(one, other)

    assert float(part_of(other, (top, left)).sum()) == 3
    assert part_of(other, (top, left)).shape[-2:] == (CROP_PX, CROP_PX)


def test_a_png_holds_the_pixels(tmp_path: Path) -> None:
    picture = torch.zeros(1, 3, 4, 5)
    picture[0, 0, 1, 2] = 1.5  # beyond white

    save_png(picture, tmp_path / "picture.png")

    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (5, 4)
        assert image.getpixel((2, 1)) == (255, 0, 0)
        assert image.getpixel((0, 0)) == (0, 0, 0)
