"""What is watched while it is rendered: the very frames of the result, at their times, in one stream without a seam."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from worker.assemble import assemble
from worker.contract.job import Container, JobOptions, VideoCodec
from worker.contract.stream import StreamSegment
from worker.plan import Plan
from worker.settings import VideoLimits
from worker.video.mux import read_order
from worker.video.source import frame_crc32
from worker.video.stream import stream_segment, write_header
from worker.video.survey import survey

MakeVideo = Callable[..., Path]
Render = Callable[..., tuple[Plan, list[Path]]]

STREAMED = [VideoCodec.H264, VideoCodec.HEVC, VideoCodec.AV1]
UNEVEN_PTS = [512 * number + 200 * (number % 3) for number in range(10)] + [9000 + 777 * n for n in range(20)]


def stream_of(plan: Plan, segments: list[Path], folder: Path) -> bytes:
    """What a player joins: the header, and the fragments of every segment behind it."""
    header = folder / "header.mp4"
    write_header(header, segments[0], plan.picture, plan.encoding)
    return header.read_bytes() + b"".join(
        fragment(stream_segment(segment, plan.timing(index)), segment) for index, segment in enumerate(segments)
    )


def fragment(found: StreamSegment, file: Path) -> bytes:
    content = file.read_bytes()
    assert found.file_bytes == len(content)
    return found.head + b"".join(content[offset : offset + length] for offset, length in found.ranges)


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and inside of every box, those in boxes that hold others too."""
    place = 0
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        yield kind, content[place + 8 : place + size]
        if kind in (b"moov", b"trak", b"moof", b"traf"):
            yield from boxes(content[place + 8 : place + size])
        place += size


def display_times(stream: bytes) -> list[list[int]]:
    """By ISO 14496-12 and nothing else: of every fragment when its samples are shown, then its end."""
    found = []
    for kind, inside in boxes(stream):
        if kind == b"tfhd":
            flags = int.from_bytes(inside[1:4], "big")
            default_duration = struct.unpack_from(">I", inside, 8)[0] if flags & 0x8 else None
            assert not flags & 0x3  # nothing before it that would move it
        elif kind == b"tfdt":
            decoded_at = int.from_bytes(inside[4:], "big")
        elif kind == b"trun":
            flags, samples = int.from_bytes(inside[1:4], "big"), struct.unpack_from(">I", inside, 4)[0]
            place = 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
            times = []
            for _ in range(samples):
                duration, offset = default_duration, 0
                if flags & 0x100:
                    (duration,) = struct.unpack_from(">I", inside, place)
                    place += 4
                place += 4 * bool(flags & 0x200) + 4 * bool(flags & 0x400)
                if flags & 0x800:
                    (offset,) = struct.unpack_from(">i", inside, place)
                    place += 4
                times.append(decoded_at + offset)
                decoded_at += duration or 0
            found.append([*times, decoded_at])
    return found


def checksums(file: Path) -> list[int]:
    with av.open(str(file)) as container:
        return [frame_crc32(frame) for frame in container.decode(video=0)]


@pytest.mark.parametrize("codec", STREAMED)
def test_the_stream_has_the_very_frames_of_the_result(
    make_video: MakeVideo, render: Render, tmp_path: Path, codec: VideoCodec
) -> None:
    # given three segments whose encoder reorders frames, and the result made of them
    source = make_video("clip.mp4", frames=30, width=96, height=96, audio_tracks=1)
    plan, segments = render(source, JobOptions(codec=codec, encoder_preset="fast"), segment_frames=10)
    result = tmp_path / "result.mp4"
    assemble(plan, source, segments, result)
    # when header and fragments are put one behind the other
    stream = tmp_path / "stream.mp4"
    stream.write_bytes(stream_of(plan, segments, tmp_path))
    # then they decode to the same samples
    assert checksums(stream) == checksums(result)
    assert len(checksums(stream)) == 30


@pytest.mark.parametrize("pts", [None, UNEVEN_PTS], ids=["even", "uneven"])
@pytest.mark.parametrize("codec", STREAMED)
def test_every_frame_is_shown_at_its_time_and_segments_touch(
    make_video: MakeVideo, render: Render, tmp_path: Path, codec: VideoCodec, pts: list[int] | None
) -> None:
    # given frames at their times, of a video that does not begin at zero
    times = [4000 + time for time in pts or [512 * number for number in range(30)]]
    source = make_video("clip.mp4", frames=30, width=96, height=96, pts=times)
    # when its stream is read as a browser reads it
    plan, segments = render(source, JobOptions(codec=codec, encoder_preset="fast"), segment_frames=10)
    found = display_times(stream_of(plan, segments, tmp_path))
    # then every frame has its time, counted from the first, in the order in which the encoder put them
    time_base = Fraction(1, int(plan.survey.frames.time_base.denominator))
    in_order = [(time - plan.survey.frames.pts[0]) * plan.survey.frames.time_base for time in plan.survey.frames.pts]
    places = read_order(segments, [10, 10, 10]).display_ranks
    assert codec is VideoCodec.AV1 or places[0] != sorted(places[0])
    assert [[time * time_base for time in fragment[:-1]] for fragment in found] == [
        [in_order[10 * index + place] for place in ranks] for index, ranks in enumerate(places)
    ]
    # and each fragment is decoded from where the one before it ends
    starts = [fragment[0] for fragment in found[1:]]
    assert starts == [fragment[-1] for fragment in found[:-1]]
    # and those of segments begin where the playlist says
    borders = plan.live_facts().borders_seconds
    assert borders[0] == 0
    assert {round(border / time_base) for border in borders[:-1]} <= {fragment[0] for fragment in found}
    assert round(borders[-1] / time_base) == found[-1][-1]


def test_the_header_turns_the_picture_and_names_hevc_as_apple_does(
    make_video: MakeVideo, render: Render, tmp_path: Path
) -> None:
    # given a video that players turn, with pixels that are not square
    source = make_video("turned.mp4", frames=24, width=96, height=96, rotation=90, sample_aspect_ratio=Fraction(4, 3))
    plan, segments = render(source, JobOptions(codec=VideoCodec.HEVC, encoder_preset="fast"))
    # when a player reads the stream
    stream = tmp_path / "stream.mp4"
    stream.write_bytes(stream_of(plan, segments, tmp_path))
    found = survey(stream, VideoLimits()).picture
    # then it turns and widens it too
    assert found.display_matrix == plan.picture.display_matrix is not None
    assert found.sample_aspect_ratio == plan.picture.sample_aspect_ratio == Fraction(4, 3)
    # and Apple's players take it
    assert b"hvc1" in stream.read_bytes()


def test_all_segments_have_the_same_header(make_video: MakeVideo, render: Render, tmp_path: Path) -> None:
    plan, segments = render(make_video("clip.mp4", frames=30), segment_frames=10)
    headers = []
    for segment in segments:
        write_header(tmp_path / "header.mp4", segment, plan.picture, plan.encoding)
        headers.append((tmp_path / "header.mp4").read_bytes())
    assert len(set(headers)) == 1
    assert b"moof" not in headers[0]


@pytest.mark.parametrize("codec", [codec for codec in VideoCodec if codec not in STREAMED])
def test_what_browsers_do_not_play_says_so(make_video: MakeVideo, render: Render, codec: VideoCodec) -> None:
    container = Container.ZIP if codec is VideoCodec.PNG else Container.MKV
    options = JobOptions(codec=codec, container=container, encoder_preset="fast", drop_unsupported=True)
    plan, _ = render(make_video("clip.mkv", frames=24), options, only=[])
    assert f"No browser plays {codec}" in (plan.live_facts().why_not_streamed or "")


def test_what_is_lossless_is_too_much_for_a_stream(make_video: MakeVideo, render: Render) -> None:
    plan, _ = render(make_video("clip.mp4", frames=24), JobOptions(quality="lossless"), only=[])
    assert "lossless" in (plan.live_facts().why_not_streamed or "")


def test_times_in_units_too_small_for_a_fragment_are_refused_by_us_not_by_ffmpegs_end(
    make_video: MakeVideo, render: Render
) -> None:
    # given a segment of a second, in units of which 32 bits hold less
    plan, (segment,) = render(make_video("clip.mp4", frames=24, width=64, height=64), JobOptions(), segment_frames=24)
    timing = plan.timing(0)
    step = 10**8
    fine = replace(
        timing,
        pts=[step * number for number in range(len(timing.pts))],
        begins_at=0,
        ends_at=step * len(timing.pts),
        time_base=Fraction(1, 10**9),
    )

    # then
    with pytest.raises(ValueError, match="too long for its units of time"):
        stream_segment(segment, fine)
