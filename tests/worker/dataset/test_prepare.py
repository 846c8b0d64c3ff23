"""`vsr prepare`: from videos to sequences, without losing or mixing frames, and the same whoever helps and whenever."""

import csv
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from model.data import Dataset, DatasetError, Skipped, shrink
from worker.contract.failure import FailureCode, JobFailureError
from worker.dataset.prepare import prepare
from worker.dataset.sources import find_sources
from worker.settings import VideoLimits

MakeVideo = Callable[..., Path]
LOSSLESS = {"codec": "ffv1", "pixel_format": "bgr0", "options": {}}
CONDITIONS = ["h264:crf=20-30", "noise:sigma=1-5+jpeg:quality=60"]


def grey_of_its_number(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 2 * number, dtype=np.uint8)


def greys(frames: Tensor) -> list[int]:
    """Which numbers frames of `grey_of_its_number` have."""
    return [round(grey / 2) for grey in frames.float().mean(dim=(1, 2, 3)).tolist()]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_index(folder: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with (folder / "index.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([("file", "split", "source", "licence"), *rows])


def write_png(path: Path, picture: np.ndarray, pixel_format: str = "rgb24") -> None:
    encoder = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(picture, pixel_format)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, pixel_format
    encoder.time_base = av.time_base
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))


def test_runs_of_25_consecutive_frames_are_spread_over_a_video(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a video of 110 frames, each as grey as its number
    video = make_video("numbered.mkv", frames=110, picture=grey_of_its_number, **LOSSLESS)

    # when two runs are asked for
    data = prepare([video], tmp_path / "data", sequences_per_video=2)

    # then they lie in the middle of each half, low and high resolution alike
    runs = [data.read(entry) for entry in data.entries]
    assert [greys(run["hr"]) for run in runs] == [list(range(15, 40)), list(range(70, 95))]
    assert [greys(run["clean"]) for run in runs] == [greys(run["hr"]) for run in runs]
    assert [entry.name for entry in data.entries] == ["numbered.mkv#0", "numbered.mkv#1"]
    assert (runs[0]["hr"].shape, runs[0]["clean"].shape) == ((25, 3, 48, 64), (25, 3, 24, 32))


def test_a_short_video_gives_as_many_runs_as_fit(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("short.mkv", frames=55, picture=grey_of_its_number, **LOSSLESS)

    data = prepare([video], tmp_path / "data", sequences_per_video=5)

    assert [greys(data.read(entry)["hr"])[0] for entry in data.entries] == [1, 28]


@pytest.mark.parametrize(("cut_at", "first"), [(20, 20), (35, 35), (36, 0), (40, 0)])
def test_no_sequence_crosses_a_cut(make_video: MakeVideo, tmp_path: Path, cut_at: int, first: int) -> None:
    # given a video of 60 frames with a hard cut, whose middle would begin at 17
    def two_shots(number: int, width: int, height: int) -> np.ndarray:
        return grey_of_its_number(number if number < cut_at else number + 60, width, height)

    video = make_video("cut.mkv", frames=60, picture=two_shots, **LOSSLESS)

    # when one run is asked for
    data = prepare([video], tmp_path / "data")

    # then it is one shot's: the first from the middle on, else the first before
    run = range(first, first + 25)
    assert greys(data.read(data.entries[0])["hr"]) == [number if number < cut_at else number + 60 for number in run]
    assert (first < cut_at) == (first + 24 < cut_at)


def test_a_video_of_short_shots_is_skipped(make_video: MakeVideo, tmp_path: Path) -> None:
    def shots_of_20(number: int, width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), 60 * (number // 20), dtype=np.uint8)

    videos = [make_video("cut.mp4", frames=80, picture=shots_of_20), make_video("whole.mp4", frames=25)]

    data = prepare(videos, tmp_path / "data")

    assert [entry.source for entry in data.entries] == ["whole.mp4"]
    assert data.skipped == (Skipped("cut.mp4", "no 25 consecutive frames without a scene cut"),)


def test_odd_sides_lose_their_last_pixels(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("odd.mkv", frames=25, width=65, height=49, pixel_format="yuv444p")

    (entry,) = prepare([video], tmp_path / "data").entries

    assert (entry.width, entry.height) == (64, 48)


def test_large_frames_are_cropped_at_a_place_of_the_seed(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video("large.mp4", frames=25, width=96, height=80)
    whole = prepare([video], tmp_path / "whole", fit="keep")
    frames = whole.read(whole.entries[0])["hr"]

    places = set()
    for seed in range(3):
        data = prepare([video], tmp_path / str(seed), size_px=32, seed=seed)
        crop = data.read(data.entries[0])["hr"]
        places |= {
            (y, x) for y in range(49) for x in range(65) if torch.equal(frames[:, :, y : y + 32, x : x + 32], crop)
        }

    assert len(places) == 3


def test_the_papers_form_is_resized_to_a_square(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a picture that is dark on the left and bright on the right
    def halves(number: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        picture[:, width // 2 :] = 200
        return picture

    video = make_video("wide.mp4", frames=25, width=256, height=128, picture=halves)

    data = prepare([video], tmp_path / "data", size_px=64, fit="resize")

    tensors = data.read(data.entries[0])
    left, right = (float(part.float().mean()) for part in (tensors["hr"][..., :30], tensors["hr"][..., 34:]))
    assert (tensors["hr"].shape, tensors["clean"].shape) == ((25, 3, 64, 64), (25, 3, 32, 32))
    assert (round(left), round(right)) == (0, 200)


def test_an_index_decides_split_source_and_licence_and_its_sequences_are_kept(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    # given a folder of two ready-made sequences, larger than a crop would be, and its index
    (tmp_path / "material").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(f"material/{name}", frames=25, width=272, height=264)
    rows = [("a.mp4", "train", "one", "CC0"), ("b.mp4", "val", "two", "CC-BY-4.0")]
    write_index(tmp_path / "material", rows)

    entries = prepare([tmp_path / "material"], tmp_path / "data").entries

    assert [(entry.name, entry.split, entry.source, entry.licence) for entry in entries] == rows
    assert {(entry.width, entry.height) for entry in entries} == {(272, 264)}


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("file,source\na.mp4,one\n", "lacks the columns licence, split"),
        ("", "lacks the columns file, licence, source, split"),
        ("file,split,source,licence\na.mp4,validation,one,CC0\n", r"puts a\.mp4 into 'validation'"),
        ("file,split,source,licence\na.mp4\n", r"puts a\.mp4 into None"),
        ("file,split,source,licence\na.mp4,train,M\udcfcller,CC0\n", "is not a CSV file in UTF-8"),
        (f"file,split,source,licence\n{'a' * 200_000}", "is not a CSV file in UTF-8"),
    ],
)
def test_an_index_that_cannot_be_meant_so_is_refused_by_name(tmp_path: Path, index: str, named: str) -> None:
    (tmp_path / "material").mkdir()
    (tmp_path / "material" / "index.csv").write_text(index, errors="surrogateescape")

    with pytest.raises(DatasetError, match=rf"index\.csv {named}"):
        prepare([tmp_path / "material"], tmp_path / "data")


def test_an_index_that_excel_wrote_begins_with_a_mark(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "material").mkdir()
    make_video("material/a.mp4", frames=25)
    rows = "file,split,source,licence\na.mp4,train,Müller,CC0\n"
    (tmp_path / "material" / "index.csv").write_text(rows, encoding="utf-8-sig")

    (entry,) = prepare([tmp_path / "material"], tmp_path / "data").entries

    assert (entry.name, entry.source) == ("a.mp4", "Müller")


def test_what_is_called_csv_but_is_no_list_of_videos_does_not_matter(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "videos" / "folder.csv").mkdir(parents=True)
    (tmp_path / "videos" / "binary.csv").write_bytes(bytes(range(256)))
    (tmp_path / "videos" / "long.csv").write_text("a" * 200_000)
    make_video("videos/a.mp4", frames=25)

    assert [video.name for video in find_sources([tmp_path / "videos"])[0]] == ["a.mp4"]


def test_a_file_name_that_is_no_utf_8_is_written_with_a_mark_in_its_place(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    make_video("whole.mp4", frames=25).rename(os.fsdecode(bytes(tmp_path / "videos") + b"/caf\xe9.mp4"))

    (video,) = find_sources([tmp_path / "videos"])[0]
    assert (video.name, video.path.is_file()) == ("caf\ufffd.mp4", True)
    data = prepare([tmp_path / "videos"], tmp_path / "data", conditions=["noise:sigma=1"])

    assert [entry.name for entry in data.entries] == ["caf\ufffd.mp4#0"]


def test_a_folder_that_may_not_be_read_is_listed(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a folder that even the tests' user, who may be root, cannot list
    (tmp_path / "videos" / "closed").mkdir(parents=True)
    make_video("videos/a.mp4", frames=25)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    # when its parent is searched
    videos, missing = find_sources([tmp_path / "videos"])

    # then the rest is found, and it is named
    assert [video.name for video in videos] == ["a.mp4"]
    assert missing == [Skipped("closed", "Permission denied")]


def test_a_folder_of_videos_is_split_by_video_and_progress_is_reported(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "videos" / "more").mkdir(parents=True)
    for name in ("0.mp4", "1.mp4", "more/2.mp4"):
        make_video(f"videos/{name}", frames=50)
    seen: list[tuple[int, int, str]] = []

    entries = prepare(
        [tmp_path / "videos"],
        tmp_path / "data",
        sequences_per_video=2,
        on_progress=lambda *progress: seen.append(progress),
    ).entries

    assert seen == [(1, 3, "0.mp4"), (2, 3, "1.mp4"), (3, 3, "more/2.mp4")]
    assert [entry.name for entry in entries][-2:] == ["more/2.mp4#0", "more/2.mp4#1"]
    splits = [
        {entry.split for entry in entries if entry.source == source} for source in ("0.mp4", "1.mp4", "more/2.mp4")
    ]
    assert sorted(splits, key=str) == [{"test"}, {"train"}, {"val"}]


def test_folders_of_numbered_pngs_are_videos_of_their_own(tmp_path: Path) -> None:
    # given two such folders, of 8 and of 16 bits, whose numbers have no leading zeros
    for depth, folder in ((8, tmp_path / "frames" / "shallow"), (16, tmp_path / "frames" / "deep")):
        folder.mkdir(parents=True)
        for number in range(25):
            grey = grey_of_its_number(number, 64, 48)
            deep = grey.astype(np.uint16) * 257
            picture, pixel_format = (grey, "rgb24") if depth == 8 else (deep, "rgb48be")
            write_png(folder / f"frame_{number}.png", picture, pixel_format)

    data = prepare([tmp_path / "frames"], tmp_path / "data")

    assert [entry.name for entry in data.entries] == ["deep#0", "shallow#0"]
    for entry in data.entries:
        hr = data.read(entry)["hr"]
        assert hr.shape == (25, 3, 48, 64)
        assert torch.equal(hr[:, 0, 0, 0], torch.arange(0, 50, 2, dtype=torch.uint8))
        assert bool((hr == hr[:, :1, :1, :1]).all())


def test_pngs_that_are_damaged_or_change_their_size_are_skipped(tmp_path: Path) -> None:
    for name in ("whole", "damaged", "changing"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(25):
            width = 66 if (name, number) == ("changing", 7) else 64
            write_png(tmp_path / "frames" / name / f"{number:03d}.png", grey_of_its_number(number, width, 48))
    (tmp_path / "frames" / "damaged" / "009.png").write_bytes(b"no picture")

    data = prepare([tmp_path / "frames"], tmp_path / "data")

    assert [entry.name for entry in data.entries] == ["whole#0"]
    assert [(skipped.name, skipped.reason[:24]) for skipped in data.skipped] == [
        ("changing", "its pictures are of diff"),
        ("damaged", "009.png is not a PNG of "),
    ]


def test_openvids_list_says_which_videos_are_taken_and_clips_of_one_video_stay_together(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    # given the list with its real columns, and three of the four videos it names
    (tmp_path / "openvid" / "video_folder").mkdir(parents=True)
    columns = (
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds,new_id"
    )
    names = ["IIvwqskxtdE_0.mp4", "IIvwqskxtdE_13_0to241.mp4", "celebv_x_1.mp4"]
    rows = [
        f'{name},"A man, who talks.",5.1,3.0,1.0,static,30,25.0,1.2,{n}' for n, name in enumerate([*names, "no.mp4"])
    ]
    (tmp_path / "openvid" / "OpenVid-1M.csv").write_text("\n".join([columns, *rows]) + "\n")
    for name in [*names, "not-listed.mp4"]:
        make_video(f"openvid/video_folder/{name}", frames=30)

    data = prepare([tmp_path / "openvid"], tmp_path / "data")

    assert [(entry.name, entry.source) for entry in data.entries] == [
        ("IIvwqskxtdE_0.mp4#0", "IIvwqskxtdE"),
        ("IIvwqskxtdE_13_0to241.mp4#0", "IIvwqskxtdE"),
        ("celebv_x_1.mp4#0", "celebv_x_1.mp4"),
    ]
    assert data.skipped == (Skipped("OpenVid-1M.csv", "1 of its 4 videos are not in openvid"),)


def test_a_video_given_twice_counts_once_and_namesakes_are_told_apart(make_video: MakeVideo, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make_video(f"{folder}/clip.mp4", frames=25)

    data = prepare([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "clip.mp4"], tmp_path / "data")

    assert [(entry.name, entry.source) for entry in data.entries] == [
        ("clip.mp4#0", "clip.mp4"),
        ("clip.mp4 (2)#0", "clip.mp4 (2)"),
    ]


def test_a_source_without_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(DatasetError, match=r"no video, no folder of numbered PNG frames and no index\.csv"):
        prepare([tmp_path / "empty"], tmp_path / "data")
    with pytest.raises(DatasetError, match="does not exist"):
        prepare([tmp_path / "nothing"], tmp_path / "data")
    (tmp_path / "empty" / "openvid.csv").write_text("video,caption\nno.mp4,a man\n")
    with pytest.raises(DatasetError, match=r"\(openvid\.csv: 1 of its 1 videos are not in empty\)"):
        prepare([tmp_path / "empty"], tmp_path / "data")


def test_what_cannot_be_used_is_skipped_and_listed_with_its_reason(make_video: MakeVideo, tmp_path: Path) -> None:
    # given one good video among others that each have another fault
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video("videos/good.mp4", frames=25)
    make_video("videos/short.mp4", frames=24)
    make_video("videos/small.mp4", frames=25, width=64, height=16)
    make_video("videos/large.mp4", frames=25, width=640, height=48)
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    whole = make_video("videos/whole.mp4", frames=40).read_bytes()
    (folder / "whole.mp4").unlink()
    (folder / "cut-off.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "list.ts").write_text("#EXTM3U\nfile:///etc/passwd\n")

    data = prepare([folder], tmp_path / "data", limits=VideoLimits(max_width=320))

    assert [entry.source for entry in data.entries] == ["good.mp4"]
    reasons = {skipped.name: skipped.reason for skipped in data.skipped}
    assert reasons.keys() == {path.name for path in folder.iterdir()} - {"good.mp4"}
    assert reasons["short.mp4"] == "it has 24 frames, 25 are needed"
    assert reasons["small.mp4"] == "it is too small: 64x16, 32 px are needed"
    assert reasons["large.mp4"].startswith("the video is 640x48; the limit is 320x")
    assert reasons["empty.mp4"] == "the file is empty"
    assert "playlist" in reasons["list.ts"]


def test_a_line_of_the_index_without_its_file_is_skipped(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "material").mkdir()
    make_video("material/a.mp4", frames=25)
    write_index(tmp_path / "material", [("a.mp4", "train", "one", "CC0"), ("gone.mp4", "val", "two", "CC0")])

    data = prepare([tmp_path / "material"], tmp_path / "data")

    assert data.skipped == (Skipped("gone.mp4", "No such file or directory"),)


def test_nothing_usable_at_all_is_one_line_with_the_first_reason(make_video: MakeVideo, tmp_path: Path) -> None:
    videos = [make_video(f"{name}.mp4", frames=24) for name in "ab"]

    with pytest.raises(DatasetError, match=r"^no usable sequence .*: a\.mp4: it has 24 .*, and 1 more were skipped$"):
        prepare(videos, tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_conditions_lie_beside_the_clean_frames_with_what_was_drawn(make_video: MakeVideo, tmp_path: Path) -> None:
    videos = [make_video(f"{name}.mp4", frames=25) for name in "ab"]

    data = prepare(videos, tmp_path / "data", conditions=CONDITIONS)

    assert data.conditions == ("clean", *CONDITIONS)
    for entry in data.entries:
        tensors = data.read(entry)
        assert torch.equal(tensors["clean"], shrink(tensors["hr"]))
        assert entry.degradations.keys() == set(CONDITIONS)
        for condition in CONDITIONS:
            error = (tensors[condition].float() - tensors["clean"].float()).abs().mean()
            assert 0.3 < float(error) < 12
    first, second = data.entries
    assert first.degradations != second.degradations


@pytest.mark.parametrize("size_px", [31, 65, 16])
def test_sizes_that_cannot_be_halved_or_are_tiny_are_refused(tmp_path: Path, size_px: int) -> None:
    with pytest.raises(JobFailureError, match="even number from 32 on"):
        prepare([tmp_path], tmp_path / "data", size_px=size_px)


def test_a_size_for_what_keeps_its_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFailureError, match="leave out one of the two"):
        prepare([tmp_path], tmp_path / "data", size_px=64, fit="keep")


@pytest.fixture
def five_videos(make_video: MakeVideo, tmp_path: Path) -> Path:
    """A folder of five videos, one of which cannot be used."""
    (tmp_path / "videos").mkdir()
    for number in range(5):
        make_video(f"videos/{number}.mp4", frames=24 if number == 2 else 25 + number)
    return tmp_path / "videos"


def test_one_process_and_two_make_the_same_bytes(five_videos: Path, tmp_path: Path) -> None:
    # given shards with room for two sequences
    how = {"conditions": CONDITIONS, "shard_bytes": 1_000_000, "seed": 3}

    prepare([five_videos], tmp_path / "one", workers=1, **how)  # type: ignore[arg-type]
    prepare([five_videos], tmp_path / "two", workers=2, **how)  # type: ignore[arg-type]

    one = files_in(tmp_path / "one")
    assert list(one) == ["manifest.json", "shards/00000.tar", "shards/00001.tar"]
    assert one == files_in(tmp_path / "two")


def test_another_seed_makes_other_degradations(five_videos: Path, tmp_path: Path) -> None:
    first, second = (
        prepare([five_videos], tmp_path / str(seed), conditions=CONDITIONS, seed=seed).entries for seed in range(2)
    )

    assert [entry.degradations for entry in first] != [entry.degradations for entry in second]


def test_killed_in_the_middle_and_called_again_it_ends_with_the_same_bytes(five_videos: Path, tmp_path: Path) -> None:
    # given a data set made in one go
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    prepare([five_videos], undisturbed, conditions=CONDITIONS)

    # when a process that makes the same is killed behind its second video
    code = (
        "import sys, time; from pathlib import Path; from worker.dataset.prepare import prepare\n"
        "def stop(done, total, name):\n"
        "    if done == 2: print('there', flush=True); time.sleep(600)\n"
        f"prepare([Path(sys.argv[1])], Path(sys.argv[2]), conditions={CONDITIONS!r}, on_progress=stop)\n"
    )
    command = [sys.executable, "-c", code, str(five_videos), str(disturbed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
    assert not (disturbed / "manifest.json").exists()
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        Dataset.open(disturbed)

    # then calling it again does the rest only, and all bytes are the same
    done: list[int] = []
    prepare([five_videos], disturbed, conditions=CONDITIONS, on_progress=lambda number, *_: done.append(number))
    assert done == [3, 4, 5]
    assert files_in(disturbed) == files_in(undisturbed)


def test_a_finished_data_set_is_returned_as_it_is_and_another_is_not_put_over_it(
    five_videos: Path, tmp_path: Path
) -> None:
    made = prepare([five_videos], tmp_path / "data")
    before = files_in(tmp_path / "data")

    again = prepare([five_videos], tmp_path / "data", on_progress=lambda *_: pytest.fail("it was made again"))

    assert again.entries == made.entries
    with pytest.raises(DatasetError, match="holds a data set already"):
        prepare([five_videos], tmp_path / "data", seed=1)
    assert files_in(tmp_path / "data") == before


def test_an_unfinished_data_set_is_not_gone_on_with_from_other_videos(five_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare([five_videos], tmp_path / "data", on_progress=interrupt)
    (five_videos / "4.mp4").unlink()

    with pytest.raises(DatasetError, match=r"made otherwise .*sources_sha256"):
        prepare([five_videos], tmp_path / "data")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_one_line_and_what_was_finished_stays(
    five_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a disk that is full at the fourth time that something is made sure to be on it
    fsync, calls = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)

    # when the data set is made
    with pytest.raises(JobFailureError, match="is full; what was finished stays") as caught:
        prepare([five_videos], tmp_path / "data")
    assert caught.value.code is FailureCode.OUT_OF_DISK

    # then the same command goes on from there
    done: list[int] = []
    prepare([five_videos], tmp_path / "data", on_progress=lambda number, *_: done.append(number))
    assert 0 < len(done) < 5


def test_a_helper_that_dies_is_one_line_and_the_same_command_goes_on(
    five_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given helpers that are killed after the first video, as by a lack of memory, while others are not yet asked for
    monkeypatch.setattr("worker.dataset.prepare._VIDEOS_AHEAD", 1)

    def kill_helpers(*_: object) -> None:
        helpers = multiprocessing.active_children()
        for helper in helpers:
            helper.kill()
        deadline = time.monotonic() + 30
        while any(type(thread).__name__ == "_ExecutorManagerThread" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    # when the pool has noticed
    with pytest.raises(
        JobFailureError, match=r"read videos from 1\.mp4 on died, .*: the same command goes on"
    ) as caught:
        prepare([five_videos], tmp_path / "data", workers=2, on_progress=kill_helpers)

    # then it is called by its name, and nothing that was finished is lost
    assert caught.value.code == FailureCode.WORKER_LOST
    done: list[int] = []
    prepare([five_videos], tmp_path / "data", on_progress=lambda number, *_: done.append(number))
    assert done == [2, 3, 4, 5]


def test_the_helpers_of_a_killed_process_end_with_it(five_videos: Path, tmp_path: Path) -> None:
    # given a process with two helpers
    code = (
        "import multiprocessing, sys, time; from pathlib import Path; from worker.dataset.prepare import prepare\n"
        "def stop(*_):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True); time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    prepare([Path(sys.argv[1])], Path(sys.argv[2]), workers=2, on_progress=stop)\n"
    )
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, str(tmp_path / "main.py"), str(five_videos), str(tmp_path / "data")]
    repository = Path(__file__).parents[3]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(repository)},
    ) as process:
        assert process.stdout is not None
        helpers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(helpers) == 2

        # when it is killed
        process.kill()

    # then they do not stay
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
