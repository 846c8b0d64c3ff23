"""Damage fails a job by name, or is concealed on demand: a frame for every packet, the same ones from any point."""

from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.contract.report import Report
from worker.plan import Plan
from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.frames import RgbFrame
from worker.video.survey import survey
from worker.video.values import Survey

MakeVideo = Callable[..., Path]
LIMITS = VideoLimits()
FRAMES = 36

SOURCES: dict[str, dict[str, object]] = {
    "h264.mp4": {"options": {"preset": "medium", "g": "15", "bf": "2"}},
    "mpeg4.avi": {"time_base": Fraction(1, 25), "codec": "mpeg4", "options": {"bf": "2", "g": "15"}},
    "vp8.webm": {"time_base": Fraction(1, 1000), "codec": "libvpx", "options": {"g": "15"}},
    "vp9.webm": {"time_base": Fraction(1, 1000), "codec": "libvpx-vp9", "options": {"g": "15", "cpu-used": "8"}},
    "hevc.mkv": {
        "time_base": Fraction(1, 1000),
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "keyint=15:log-level=error"},
    },
}
PLACES = {"start": (0,), "middle": (20, 21), "end": (FRAMES - 1,), "everywhere": (0, 1, 2, 33)}


def noisy_picture(number: int, width: int, height: int) -> RgbFrame:
    """No two packets have the same bytes."""
    return (
        np.random.default_rng(number)
        .integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        .repeat(4, axis=0)
        .repeat(4, axis=1)
    )


def zeros(payload: bytes) -> bytes:
    return bytes(len(payload))


def noise(payload: bytes) -> bytes:
    """All but the first byte, in which VP8 and VP9 may say that the picture is not to be shown at all."""
    return payload[:1] + np.random.default_rng(1).integers(0, 256, len(payload) - 1, dtype=np.uint8).tobytes()


def damage(source: Path, packets: Collection[int], made_of: Callable[[bytes], bytes] = zeros) -> None:
    """Overwrite some packets."""
    with av.open(str(source)) as container:
        payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    file = bytearray(source.read_bytes())
    for number in packets:
        payload = payloads[number]
        begin = file.index(payload[:100])
        file[begin : begin + len(payload)] = made_of(payload)
    source.write_bytes(file)


def decoded(source: Path, facts: Survey, first: int, stop: int) -> list[RgbFrame]:
    return [frame.rgb for frame in decode_frames(source, facts, first, stop, max_pixels=LIMITS.max_pixels)]


@pytest.mark.parametrize(
    ("place", "made_of"), [*((place, zeros) for place in PLACES), ("start", noise), ("middle", noise)]
)
@pytest.mark.parametrize("name", SOURCES)
def test_every_packet_has_a_frame_at_its_time_the_same_from_any_point(
    make_video: MakeVideo, name: str, place: str, made_of: Callable[[bytes], bytes]
) -> None:
    # given a video with damaged packets
    source = make_video(name, frames=FRAMES, picture=noisy_picture, **SOURCES[name])
    whole = survey(source, LIMITS)
    damage(source, PLACES[place], made_of)

    facts = survey(source, LIMITS, on_error="conceal")

    # then there are as many frames as before, at the same times
    assert facts.frames.pts == whole.frames.pts
    everything = decoded(source, facts, 0, FRAMES)
    assert len(everything) == FRAMES
    # and every range is a part of them
    for first in range(0, FRAMES, 9):
        part = decoded(source, facts, first, min(first + 5, FRAMES))
        assert all(np.array_equal(*pair) for pair in zip(part, everything[first:], strict=False)), first


@pytest.mark.parametrize("place", ["start", "middle", "end"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_packet_without_a_picture_fails_the_job_unless_it_is_to_be_concealed(
    make_video: MakeVideo, name: str, place: str
) -> None:
    source = make_video(name, frames=FRAMES, picture=noisy_picture, **SOURCES[name])
    damage(source, PLACES[place])

    with pytest.raises(JobFailureError) as failure:
        survey(source, LIMITS)

    assert failure.value.code is FailureCode.CORRUPT_FRAME
    assert " s)" in failure.value.message
    facts = survey(source, LIMITS, on_error="conceal")
    assert facts.frames.concealed
    assert any("could not be decoded whole" in note for note in facts.notes)


def test_the_frame_before_stands_in_for_one_that_is_lost_and_the_first_is_like_the_second(
    make_video: MakeVideo,
) -> None:
    # given pictures that do not depend on one another, the first and the sixth of them lost
    source = make_video("intra.mkv", time_base=Fraction(1, 1000), codec="mjpeg", options={}, pixel_format="yuvj420p")
    whole = survey(source, LIMITS)
    before = decoded(source, whole, 0, 12)
    damage(source, (0, 5))

    facts = survey(source, LIMITS, on_error="conceal")
    after = decoded(source, facts, 0, 12)

    assert facts.frames.concealed == (0, 5)
    assert facts.frames.pts == whole.frames.pts
    expected = [before[stand_in] for stand_in in (1, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10, 11)]
    assert all(np.array_equal(*pair) for pair in zip(after, expected, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_truncated_file_is_refused_all_the_same(make_video: MakeVideo, suffix: str) -> None:
    source = make_video(
        f"cut.{suffix}",
        frames=100,
        time_base=Fraction(1, 1000) if suffix == "mkv" else Fraction(1, 12800),
        muxer_options={"movflags": "+faststart"} if suffix == "mp4" else {},
        options={"preset": "ultrafast", "crf": "5", "bf": "0"},
    )
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size // 2)

    with pytest.raises(JobFailureError, match=r"cut off after video frame \d+ .* s\): .*[Rr]emux") as failure:
        survey(source, LIMITS, on_error="conceal")

    assert failure.value.code is FailureCode.CORRUPT_FRAME


def test_a_job_with_concealed_frames_has_them_all(
    make_video: MakeVideo, upscale: Callable[..., tuple[Path, Report, Plan]]
) -> None:
    source = make_video("damaged.mp4", frames=FRAMES, picture=noisy_picture, **SOURCES["h264.mp4"])
    damage(source, (0, 11, 12, 30))

    result, report, plan = upscale(
        source, JobOptions(on_error="conceal", encoder_preset="ultrafast"), segment_frames=12
    )

    with av.open(str(result)) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
    named = tuple(place.frame for place in report.frames.concealed)
    assert named
    assert named == plan.survey.frames.concealed
