"""Results that are pictures in a zip: every picture at its place, every time exact, the same bytes every time."""

import json
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import VideoCodec
from worker.video.mux import SegmentOrder, UpscaledVideo
from worker.video.pictures import read_png
from worker.video.png_sequence import SequenceFacts, check_zip, picture_name, read_facts, unpack, write_zip
from worker.video.values import Colour, Encoding, FrameTable, Picture

Upscaled = Callable[..., UpscaledVideo]
NTSC = Fraction(1001, 30000)
TAG = "twostep-vsr 0123456789abcdef"


def picture_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8, endpoint=True)


def write_segment(path: Path, numbers: Sequence[int]) -> Path:
    """A file whose packets are PNG files, as the encoder writes it."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture_of(number), "rgb24")
            frame.pts, frame.time_base = place, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def upscaled(tmp_path: Path) -> Upscaled:
    """Ten pictures in three segments, at 29.97 per second or at the times given."""

    def make(*, pts: Sequence[int] = tuple(range(10)), time_base: Fraction = NTSC) -> UpscaledVideo:
        parts = [range(4), range(4, 7), range(7, 10)]
        segments = [write_segment(tmp_path / f"{place}.mov", numbers) for place, numbers in enumerate(parts)]
        colour = Colour(matrix=0, range=2, primaries=9, transfer=16, conversion="bt2020", chroma_location="unspecified")
        return UpscaledVideo(
            segments,
            SegmentOrder([list(range(len(numbers))) for numbers in parts], 0, "pixel-repeater"),
            FrameTable(pts=tuple(pts), stamps=None, crc32=(0,) * 10, time_base=time_base, last_duration=1),
            Picture(
                width=64,
                height=48,
                pixel_format="rgb24",
                bit_depth=8,
                colour=colour,
                sample_aspect_ratio=Fraction(4, 3),
                display_matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
                field_order="progressive",
            ),
            Encoding(
                codec=VideoCodec.PNG, crf=None, encoder_preset="medium", average_rate=1 / time_base, time_base=time_base
            ),
        )

    return make


@pytest.fixture
def pack(tmp_path: Path, make_video: Callable[..., Path]) -> Callable[..., Path]:
    """Write the archive of an upscaled video, whose source has a title and chapters."""

    def write(video: UpscaledVideo, name: str = "frames.zip") -> Path:
        with av.open(str(make_video("source.mkv", metadata={"title": "A film"}, chapters=2))) as source:
            write_zip(tmp_path / name, source, video, TAG)
        return tmp_path / name

    return write


def test_every_picture_is_there_in_the_order_of_display(
    upscaled: Upscaled, pack: Callable[..., Path], tmp_path: Path
) -> None:
    archive = pack(upscaled())
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    names = [f"frame-{number:06d}.png" for number in range(1, 11)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*names, "timestamps.txt", "sequence.json"]
    )
    for number, name in enumerate(names):
        assert np.array_equal(read_png(tmp_path / "out" / name, 10_000), picture_of(number))


def test_other_programs_read_the_archive(upscaled: Upscaled, pack: Callable[..., Path], tmp_path: Path) -> None:
    # given Python's own reader of zips as a program, and Debian's ffmpeg for the pictures
    archive = pack(upscaled())
    tested = subprocess.run(["python3", "-m", "zipfile", "-t", archive], check=True, capture_output=True, text=True)
    assert tested.stdout.strip() == "Done testing"
    unpack(archive, tmp_path)
    show = ["-show_entries", "stream=width,height,pix_fmt,nb_read_frames", "-count_frames", "-of", "csv=p=0"]
    command = ["ffprobe", "-v", "error", "-start_number", "1", *show, tmp_path / "frame-%06d.png"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "64,48,rgb24,10"


def test_times_are_exact_in_one_file_and_to_the_nanosecond_in_the_other(
    upscaled: Upscaled, pack: Callable[..., Path]
) -> None:
    # given times before zero, of a rate that no decimal holds, and with a gap
    pts = [-2, -1, 0, 1, 5, 6, 7, 8, 9, 30]
    with zipfile.ZipFile(pack(upscaled(pts=pts))) as archive:
        lines = archive.read("timestamps.txt").decode().splitlines()
        facts = read_facts(archive.read("sequence.json"))
    assert facts is not None
    assert [time * facts.time_base for time in facts.pts] == [time * NTSC for time in pts]
    assert lines[:4] == ["# timestamp format v2", "-66.733333", "-33.366667", "0"]
    for line, time in zip(lines[1:], pts, strict=True):
        assert abs(Fraction(line) / 1000 - time * NTSC) <= Fraction(1, 2 * 10**9)


def test_what_pictures_cannot_say_stands_beside_them(upscaled: Upscaled, pack: Callable[..., Path]) -> None:
    with zipfile.ZipFile(pack(upscaled())) as archive:
        assert archive.comment.decode() == TAG
        facts = json.loads(archive.read("sequence.json"))
    assert facts["made_by"] == TAG
    assert facts["time_base"] == "1001/30000"
    assert facts["sample_aspect_ratio"] == "4/3"
    assert facts["display_matrix"] == [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    assert (facts["colour"]["primaries"], facts["colour"]["transfer"]) == (9, 16)
    assert facts["metadata"]["title"] == "A film"
    assert [chapter["start"] for chapter in facts["chapters"]] == ["0/1", "1/10"]


def test_the_same_pictures_give_the_same_bytes(upscaled: Upscaled, pack: Callable[..., Path]) -> None:
    video = upscaled()
    assert pack(video, "one.zip").read_bytes() == pack(video, "two.zip").read_bytes()


def test_names_sort_as_they_are_shown_whatever_their_number() -> None:
    assert picture_name(0, 1) == "frame-000001.png"
    assert picture_name(999_998, 1_000_000) == "frame-0999999.png"
    assert picture_name(999_999, 1_000_000) == "frame-1000000.png"


def test_a_good_archive_passes_its_check(upscaled: Upscaled, pack: Callable[..., Path]) -> None:
    video = upscaled()
    check_zip(pack(video), video)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("picture lost", "11 files are there instead of 12"),
        ("pictures swapped", "frame-000003.png is not what was encoded"),
        ("picture of another size", "frame-000003.png is 32x48 instead of 64x48"),
        ("other times", "sequence.json holds other times"),
        ("other lines", "timestamps.txt holds other times"),
    ],
)
def test_any_difference_fails_the_check(
    upscaled: Upscaled, pack: Callable[..., Path], tmp_path: Path, damage: str, complaint: str
) -> None:
    # given an archive in which one thing is not as it was written
    video = upscaled()
    with zipfile.ZipFile(pack(video)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    if damage == "picture lost":
        del files["frame-000010.png"]
    elif damage == "pictures swapped":
        files["frame-000003.png"] = files["frame-000004.png"]
    elif damage == "picture of another size":
        encoder = av.CodecContext.create("png", "w")
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 48, "rgb24", Fraction(1, 25)
        packets = [*encoder.encode(av.VideoFrame(32, 48, "rgb24")), *encoder.encode(None)]
        files["frame-000003.png"] = b"".join(bytes(packet) for packet in packets)
    elif damage == "other times":
        facts = SequenceFacts.model_validate_json(files["sequence.json"])
        later = facts.model_copy(update={"pts": (*facts.pts[:-1], 99)})
        files["sequence.json"] = later.model_dump_json().encode()
    else:
        files["timestamps.txt"] += b"999\n"
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    # then the check names it
    with pytest.raises(JobFailureError, match=complaint) as failure:
        check_zip(tmp_path / "damaged.zip", video)
    assert failure.value.code is FailureCode.VERIFICATION_FAILED


def test_a_file_of_the_same_name_by_somebody_else_is_not_taken_for_ours() -> None:
    assert read_facts(b'{"frames": 3}') is None
    assert read_facts(b"\xff\x00 nonsense") is None
