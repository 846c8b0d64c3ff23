"""Fields are found by their motion, whatever the flags say, and whole frames are made of them within each shot."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.frames import RgbFrame
from worker.video.survey import survey
from worker.video.values import Survey

Scene = Callable[[int], RgbFrame]
LIMITS = VideoLimits()
FRAMES = 36
WIDTH, HEIGHT = 96, 64
FLAGS = {"top": "tff", "bottom": "bff", "": "prog"}


def pan(time: int, seed: int = 0, *, height: int = HEIGHT) -> RgbFrame:
    """A camera that turns over blobs of colour; `time` counts fields."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, 60, 3), dtype=np.uint8)
    return coarse.repeat(7, axis=0).repeat(9, axis=1)[:height, 3 * time : 3 * time + WIDTH]


def fall(time: int) -> RgbFrame:
    """A camera that looks down over the same."""
    return pan(0, height=400)[3 * time : 3 * time + HEIGHT]


def write_fields(
    path: Path, first: str, scene: Scene = pan, pixel_format: str = "yuv420p", frames: int = FRAMES
) -> Path:
    """Write frames of two fields each without loss, the `first` ("top", "bottom") being the earlier; "": whole ones.

    The planes are woven, as cameras and capture cards do: the chroma of each field is its own.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = scene(0).shape[:2]
        stream.pix_fmt = pixel_format
        for number in range(frames):
            early, late = (
                av.VideoFrame.from_ndarray(np.ascontiguousarray(scene(time)), "rgb24").reformat(format=pixel_format)
                for time in (2 * number, 2 * number + 1)
            )
            for plane, plane_of_late in zip(early.planes, late.planes, strict=True) if first else ():
                rows, rows_of_late = (
                    np.frombuffer(memoryview(one), np.uint8).reshape(one.height, -1) for one in (plane, plane_of_late)
                )
                second = slice(1 if first == "top" else 0, None, 2)
                rows[second] = rows_of_late[second]
            early.pts = number
            container.mux(stream.encode(early))
        container.mux(stream.encode(None))
    return path


def flagged(frames: Path, flag: str, *, suffix: str = ".mkv", start_seconds: float = 0) -> Path:
    """Encode a video as H.264, or MPEG-2 in a transport stream; every frame is flagged as `flag` says."""
    target = frames.with_name(f"flagged-{frames.stem}{suffix}")
    h264 = "-c:v libx264 -preset ultrafast -crf 10" + (f" -x264-params {FLAGS[flag]}=1" if flag else "")
    mpeg2 = "-c:v mpeg2video -q:v 2" + (" -flags +ilme+ildct" if flag else "")
    options = f"-vf setfield={FLAGS[flag]} {mpeg2 if suffix == '.ts' else h264} -output_ts_offset {start_seconds}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", frames, *options.split(), target], check=True)
    return target


def decoded(source: Path, facts: Survey, first: int = 0, stop: int | None = None) -> list[RgbFrame]:
    stop = len(facts.frames) if stop is None else stop
    return [frame.rgb for frame in decode_frames(source, facts, first, stop, max_pixels=LIMITS.max_pixels)]


@pytest.mark.parametrize("first", ["top", "bottom"])
@pytest.mark.parametrize("flag", ["top", "bottom", ""])
def test_woven_fields_are_found_whether_they_are_flagged_wrongly_or_not_at_all(
    tmp_path: Path, first: str, flag: str
) -> None:
    source = flagged(write_fields(tmp_path / "fields.mkv", first), flag)

    facts = survey(source, LIMITS)

    assert facts.picture.field_order == f"{first}_first"
    assert "deinterlaced with bwdif" in facts.notes[0]


@pytest.mark.parametrize("first", ["top", "bottom"])
@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_flags_are_followed_where_nothing_moves(tmp_path: Path, first: str, suffix: str) -> None:
    still = write_fields(tmp_path / "still.mkv", "", lambda time: pan(0))

    assert survey(flagged(still, first, suffix=suffix), LIMITS).picture.field_order == f"{first}_first"


@pytest.mark.parametrize("flag", ["top", "bottom", ""])
@pytest.mark.parametrize("scene", [pan, fall])
def test_whole_pictures_are_left_as_they_are_even_if_flagged(tmp_path: Path, scene: Scene, flag: str) -> None:
    source = flagged(write_fields(tmp_path / "film.mkv", "", scene), flag)

    facts = survey(source, LIMITS)

    assert facts.picture.field_order == "progressive"
    assert [("whole pictures" in note) for note in facts.notes] == ([True] if flag else [])


def test_a_short_video_without_flags_is_no_evidence(tmp_path: Path) -> None:
    source = write_fields(tmp_path / "short.mkv", "top", frames=20)

    assert survey(source, LIMITS).picture.field_order == "progressive"


def test_the_user_has_the_last_word(tmp_path: Path) -> None:
    fields = write_fields(tmp_path / "fields.mkv", "bottom")
    film = write_fields(tmp_path / "film.mkv", "")

    never, always = survey(fields, LIMITS, deinterlace="never"), survey(film, LIMITS, deinterlace="always")

    assert (never.picture.field_order, always.picture.field_order) == ("progressive", "top_first")
    assert "as asked" in never.notes[0]
    assert "assumed" in always.notes[0]


@pytest.mark.parametrize("first", ["top", "bottom"])
@pytest.mark.parametrize(("pixel_format", "height"), [("bgr0", 64), ("yuv420p", 64), ("yuv420p", 61)])
def test_the_first_field_is_kept_and_the_second_made_anew(
    tmp_path: Path, first: str, pixel_format: str, height: int
) -> None:
    # given fields, and beside them the whole pictures that the first ones were taken from
    fields = write_fields(tmp_path / "fields.mkv", first, lambda time: pan(time, height=height), pixel_format)
    film = write_fields(tmp_path / "film.mkv", "", lambda time: pan(time, height=height), pixel_format)
    facts = survey(fields, LIMITS)
    assert facts.picture.field_order == f"{first}_first"

    made, expected = decoded(fields, facts), decoded(film, survey(film, LIMITS))
    left_woven = decoded(fields, survey(fields, LIMITS, deinterlace="never"))

    # then each frame shows the time of its first field, in its colours too
    rows = slice(0 if first == "top" else 1, None, 2)
    if pixel_format == "bgr0":
        assert all(np.array_equal(there[rows], wanted[rows]) for there, wanted in zip(made, expected, strict=True))
    error, error_woven = (
        np.mean([np.abs(there.astype(int) - wanted).mean() for there, wanted in zip(frames, expected, strict=True)])
        for frames in (made, left_woven)
    )
    assert error < 0.6 * error_woven


@pytest.mark.parametrize("pixel_format", ["yuv422p10le", "yuv444p", "bgr0"])
def test_every_range_is_the_same_as_in_one_run(tmp_path: Path, pixel_format: str) -> None:
    source = write_fields(tmp_path / "fields.mkv", "top", pixel_format=pixel_format)
    facts = survey(source, LIMITS).model_copy(update={"cuts": (17, 18, 30)})
    assert facts.picture.field_order == "top_first"
    everything = decoded(source, facts)

    for first in range(0, FRAMES, 2):
        for stop in (first + 1, first + 2, first + 9):
            part = decoded(source, facts, first, min(stop, FRAMES))
            assert len(part) == min(stop, FRAMES) - first
            assert all(np.array_equal(*pair) for pair in zip(part, everything[first:], strict=False)), (first, stop)


def test_no_field_of_another_shot_gets_in(tmp_path: Path) -> None:
    # given one shot behind two different ones, and before two different ones
    results = {}
    for before, behind in ((1, 2), (3, 2), (1, 3)):
        source = write_fields(
            tmp_path / f"{before}{behind}.mkv",
            "top",
            lambda time, before=before, behind=behind: pan(time, before if time < 40 else behind),  # type: ignore[misc]
        )
        facts = survey(source, LIMITS)
        assert (facts.cuts, facts.picture.field_order) == ((20,), "top_first")
        results[before, behind] = decoded(source, facts)

    # then it is the same beside each
    assert all(np.array_equal(*pair) for pair in zip(results[1, 2][20:], results[3, 2][20:], strict=True))
    assert all(np.array_equal(*pair) for pair in zip(results[1, 2][:20], results[1, 3][:20], strict=True))


def test_whole_frames_among_fields_are_left_as_they_are(tmp_path: Path) -> None:
    # given a broadcast that goes over from fields to film
    fields = flagged(write_fields(tmp_path / "fields.mkv", "top"), "top", suffix=".ts")
    film = flagged(write_fields(tmp_path / "film.mkv", ""), "", suffix=".ts", start_seconds=2)
    source = tmp_path / "both.ts"
    source.write_bytes(fields.read_bytes() + film.read_bytes())

    facts = survey(source, LIMITS)

    assert facts.picture.field_order == "top_first"
    assert facts.frames.progressive == tuple(range(FRAMES, 2 * FRAMES))
    untouched = decoded(source, survey(source, LIMITS, deinterlace="never"))
    made = decoded(source, facts)
    same = [np.array_equal(*pair) for pair in zip(made, untouched, strict=True)]
    assert same == [False] * FRAMES + [True] * FRAMES


def test_a_picture_too_small_for_the_filter_is_left_as_it_is(tmp_path: Path) -> None:
    tiny = write_fields(tmp_path / "tiny.mkv", "top", lambda time: pan(time)[:4, :4])

    facts = survey(flagged(tiny, "top"), LIMITS, deinterlace="always")

    assert facts.picture.field_order == "progressive"
    assert "does not take" in facts.notes[0]
