"""`vsr prepare`: from videos to sequences, without losing or mixing frames."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data import Dataset, DatasetError
from worker.contract.failure import JobFailureError
from worker.dataset import prepare

MakeVideo = Callable[..., Path]


def grey_of_its_number(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 4 * number, dtype=np.uint8)


def test_a_video_becomes_runs_of_25_consecutive_frames(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a video of two runs and a rest, each frame as grey as its number
    video = make_video("numbered.mp4", frames=55, picture=grey_of_its_number)

    # when two runs are asked for
    prepare([video], tmp_path / "data", sequences_per_video=5)

    # then they are frames 0 to 24 and 25 to 49, low and high resolution alike
    data = Dataset.open(tmp_path / "data")
    runs = [(tensors["clean"], tensors["hr"]) for tensors in map(data.read, data.entries)]
    assert len(runs) == 2
    for first, (lr, hr) in zip((0, 25), runs, strict=True):
        expected = torch.tensor([4.0 * number for number in range(first, first + 25)])
        for frames in (lr, hr):
            assert float((frames.float().mean(dim=(1, 2, 3)) - expected).abs().max()) < 3
        assert hr.shape == (25, 3, 48, 64)
        assert lr.shape == (25, 3, 24, 32)


def test_odd_sides_lose_their_last_pixels(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("odd.mkv", frames=25, width=65, height=49, pixel_format="yuv444p")

    (entry,) = prepare([video], tmp_path / "data")

    assert (entry.width, entry.height) == (64, 48)


def test_an_index_decides_split_source_and_licence(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a folder of two sequences and its index
    (tmp_path / "material").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(f"material/{name}", frames=25)
    folder = tmp_path / "material"
    rows = [("a.mp4", "train", "one", "CC0"), ("b.mp4", "val", "two", "CC-BY-4.0")]
    with (folder / "index.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([("file", "split", "source", "licence"), *rows])

    entries = prepare([folder], tmp_path / "data")

    assert [(entry.name, entry.split, entry.source, entry.licence) for entry in entries] == rows


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("file,source\na.mp4,one\n", "lacks the columns licence, split"),
        ("", "lacks the columns file, licence, source, split"),
        ("file,split,source,licence\na.mp4,validation,one,CC0\n", r"puts a\.mp4 into 'validation'"),
        ("file,split,source,licence\na.mp4\n", r"puts a\.mp4 into None"),
    ],
)
def test_an_index_that_cannot_be_meant_so_is_refused_by_name(tmp_path: Path, index: str, named: str) -> None:
    (tmp_path / "material").mkdir()
    (tmp_path / "material" / "index.csv").write_text(index)

    with pytest.raises(DatasetError, match=rf"index\.csv {named}"):
        prepare([tmp_path / "material"], tmp_path / "data")


def test_a_folder_of_videos_is_split_by_video_and_progress_is_reported(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        make_video(f"videos/{number}.mp4", frames=50)
    seen: list[tuple[int, str]] = []

    entries = prepare(
        [tmp_path / "videos"],
        tmp_path / "data",
        sequences_per_video=2,
        on_progress=lambda done, name: seen.append((done, name)),
    )

    assert [name for _, name in seen] == ["0.mp4#0", "0.mp4#1", "1.mp4#0", "1.mp4#1", "2.mp4#0", "2.mp4#1"]
    assert all(len({entry.split for entry in entries if entry.source == source}) == 1 for source in ("0.mp4", "1.mp4"))


def test_a_source_without_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(DatasetError, match="no video and no"):
        prepare([tmp_path / "empty"], tmp_path / "data")
    with pytest.raises(DatasetError, match="does not exist"):
        prepare([tmp_path / "nothing"], tmp_path / "data")


def test_a_video_too_short_for_a_run_gives_no_data_set(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("short.mp4", frames=24)

    with pytest.raises(DatasetError, match="no usable sequence"):
        prepare([video], tmp_path / "data")


def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")

    with pytest.raises(JobFailureError):
        prepare([tmp_path / "text.mp4"], tmp_path / "data")
