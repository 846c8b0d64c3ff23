"""Whole videos through plan, segments and assembly: what must come out unchanged does."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.worker.conftest import WINDOWS_MEDIA
from worker.assemble import assemble
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, VideoCodec
from worker.contract.report import Report
from worker.plan import Plan
from worker.upscaler import Upscaler
from worker.video.containers import holds_codec

MakeVideo = Callable[..., Path]
Upscale = Callable[..., tuple[Path, Report, Plan]]
Render = Callable[..., tuple[Plan, list[Path]]]
Look = Callable[..., Any]


def luma(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]


def plane_mean(plane: av.video.plane.VideoPlane) -> float:
    return float(np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width].mean())


def samples(path: Path) -> npt.NDArray[np.float64]:
    """Decode the first sound of a file to (channels, samples), full scale being 1."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="dblp")
        return np.concatenate(
            [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)], axis=1
        )


def test_every_real_clip_keeps_frames_times_and_sound(real_clips: list[Path], upscale: Upscale, look: Look) -> None:
    assert real_clips
    for clip in real_clips:
        # given a real video, cut so finely that it has several segments
        result, report, plan = upscale(clip, segment_frames=30)
        # then another reader finds the same frames at the same times, twice the size
        before, after = look(clip), look(result)
        stamps = sorted(before.frame_times)  # the shared wmv stamps its frames in the order of decoding
        assert after.frame_times == stamps, clip.name
        assert after.frames[0].width == 2 * before.frames[0].width
        assert after.frames[0].height == 2 * before.frames[0].height
        assert after.frames[0].rotation == before.frames[0].rotation
        # and shows the same brightness: no other matrix, no other range
        if before.frames[5].format.name == "yuv420p":
            assert abs(plane_mean(before.frames[5].planes[0]) - plane_mean(after.frames[5].planes[0])) < 1, clip.name
        # and every stream that the report calls copied has the same packets at the same times
        copied = [stream.index for stream in report.streams if stream.outcome == "copied"]
        kept = [stream.index for stream in report.streams if stream.outcome != "dropped"]
        for index in copied:
            original, copy = before.streams[index], after.streams[kept.index(index)]
            assert (copy.codec, copy.payload_md5, copy.times) == (original.codec, original.payload_md5, original.times)
        # and nothing is dropped; only Windows Media sound, which FFmpeg puts into none of our containers, is converted
        assert "dropped" not in {stream.outcome for stream in report.streams}, clip.name
        assert clip.suffix == ".wmv" or "converted" not in {stream.outcome for stream in report.streams}, clip.name
        assert len(plan.segments) > 1 or plan.frames < 60


@pytest.mark.parametrize("container", [Container.MP4, Container.MOV, Container.MKV, Container.WEBM])
def test_a_variable_frame_rate_with_b_frames_keeps_every_time(
    make_video: MakeVideo, upscale: Upscale, look: Look, container: Container
) -> None:
    # given frames at irregular times, encoded with deep reordering
    pts = np.cumsum([0, *([3000, 1500, 6007, 3003, 512] * 12)]).tolist()
    source = make_video(
        "vfr.mp4",
        frames=len(pts),
        pts=pts,
        time_base=Fraction(1, 90000),
        options={"preset": "medium", "bf": "8", "b-pyramid": "normal"},
    )
    # when it is upscaled in several segments whose encoder reorders too
    result, report, plan = upscale(source, JobOptions(container=container, encoder_preset="medium"), segment_frames=12)
    # then mp4 and mov hold the very same times, Matroska the nearest millisecond
    seen = look(result)
    assert len(plan.segments) > 3
    if container in (Container.MP4, Container.MOV):
        assert seen.frame_times == look(source).frame_times
        assert report.timestamps.exact
    else:
        off = [abs(a - b) for a, b in zip(seen.frame_times, look(source).frame_times, strict=True)]
        assert max(off) <= Fraction(1, 2000)
        assert "rounded" in report.timestamps.words


@pytest.mark.parametrize(
    ("width", "height", "frames"),
    [(64, 48, 1), (64, 48, 2), (65, 47, 5), (2, 2, 3), (16, 200, 3)],
    ids=["one frame", "two frames", "odd sides", "tiny", "narrow"],
)
def test_awkward_sizes_and_lengths_come_out_whole(
    make_video: MakeVideo, upscale: Upscale, look: Look, width: int, height: int, frames: int
) -> None:
    pixel_format = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
    source = make_video("odd.mp4", width=width, height=height, frames=frames, pixel_format=pixel_format)
    result, _, _ = upscale(source)
    seen = look(result)
    assert len(seen.frames) == frames
    assert (seen.frames[0].width, seen.frames[0].height) == (2 * width, 2 * height)


def test_pixels_arrive_at_their_place_in_every_frame(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    # given a video of flat frames, each of another grey
    def grey(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        return np.full((height, width, 3), 40 + 3 * number, np.uint8)

    source = make_video("greys.mp4", frames=50, picture=grey, options={"crf": "4"})
    # when it is upscaled in five segments
    result, _, _ = upscale(source, JobOptions(crf=4, encoder_preset="ultrafast"), segment_frames=10)
    # then frame after frame has its own grey: none is lost, doubled or exchanged
    before, after = look(source), look(result)
    for number, (small, large) in enumerate(zip(before.frames, after.frames, strict=True)):
        assert np.abs(luma(small).astype(int).repeat(2, 0).repeat(2, 1) - luma(large)).max() <= 1, number


def test_ntsc_rate_keeps_its_exact_times(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    pts = [number * 1001 for number in range(60)]
    source = make_video("ntsc.mov", frames=60, pts=pts, time_base=Fraction(1, 30000))
    result, report, _ = upscale(source, segment_frames=20)
    assert result.suffix == ".mov"
    assert look(result).frame_times == [Fraction(number * 1001, 30000) for number in range(60)]
    assert report.timestamps.exact


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_the_offset_between_picture_and_sound_stays(
    make_video: MakeVideo, upscale: Upscale, look: Look, suffix: str
) -> None:
    # given a picture that starts 0.52 s into the file, and sound 0.1 s
    source = make_video(
        f"late.{suffix}",
        frames=30,
        pts=[6656 + 512 * number for number in range(30)],
        audio_tracks=1,
        audio_codec="pcm_s16le" if suffix == "mov" else "aac",
        audio_start_seconds=Fraction(1, 10),
    )
    before = look(source)
    result, _, _ = upscale(source, segment_frames=10)
    after = look(result)
    assert after.frame_times == before.frame_times
    assert after.of_type("audio")[0].times[0] == before.of_type("audio")[0].times[0]
    assert before.frame_times[0] - before.of_type("audio")[0].times[0] > Fraction(2, 5)


def test_all_other_streams_of_an_mkv_are_copied(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    # given two languages, subtitles, a font, chapters, a title
    source = make_video(
        "film.mkv",
        time_base=Fraction(1, 1000),
        frames=30,
        audio_tracks=2,
        subtitle_codec="subrip",
        attachment=b"not really a font",
        chapters=3,
        metadata={"title": "A film"},
    )
    before = look(source)
    # when it is upscaled
    result, report, _ = upscale(source, segment_frames=10)
    # then all of it is there, bit for bit, and said so
    after = look(result)
    assert [stream.type for stream in after.streams] == [stream.type for stream in before.streams]
    for original, copy in zip(before.streams[1:], after.streams[1:], strict=True):
        assert (copy.payload_md5, copy.times, copy.language) == (
            original.payload_md5,
            original.times,
            original.language,
        )
    assert [stream.outcome for stream in report.streams] == ["upscaled"] + ["copied"] * 4
    assert after.chapters == before.chapters
    assert len(after.chapters) == 3
    assert after.metadata["title"] == "A film"


def test_subtitles_and_cover_of_an_mp4_are_copied(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("film.mp4", frames=30, audio_tracks=1, subtitle_codec="mov_text", cover=True)
    before = look(source)
    result, report, _ = upscale(source, segment_frames=10)
    after = look(result)
    assert [stream.payload_md5 for stream in after.streams[1:]] == [stream.payload_md5 for stream in before.streams[1:]]
    assert {stream.outcome for stream in report.streams} == {"upscaled", "copied"}


def test_a_cover_goes_into_an_mkv_as_an_attached_picture(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("film.mp4", frames=10, cover=True)
    result, _, _ = upscale(source, JobOptions(container=Container.MKV, encoder_preset="ultrafast"))
    assert look(result).streams[-1].payload_md5 == look(source).streams[-1].payload_md5


def test_what_the_container_cannot_hold_is_named_with_a_hint(
    make_video: MakeVideo, upscale: Upscale, look: Look
) -> None:
    # given an mkv with subtitles that mp4 cannot hold, and a font
    source = make_video(
        "film.mkv", time_base=Fraction(1, 1000), subtitle_codec="subrip", attachment=b"font", audio_tracks=1
    )
    # when the result shall be mp4
    options = JobOptions(container=Container.MP4, encoder_preset="ultrafast", drop_unsupported=True)
    result, report, _ = upscale(source, options)
    # then both are dropped with reason and way out, and the sound is kept
    outcomes = {stream.type: (stream.outcome, stream.why) for stream in report.streams}
    assert outcomes["subtitle"] == ("dropped", "mp4 cannot hold subrip; mkv can")
    assert outcomes["attachment"] == ("dropped", "mp4 cannot hold attachments; mkv can")
    assert outcomes["audio"] == ("copied", None)
    assert look(result).of_type("audio")[0].payload_md5 == look(source).of_type("audio")[0].payload_md5


@pytest.mark.parametrize("container", [Container.MKV, Container.MP4, Container.MOV])
def test_sound_that_no_container_of_ours_holds_is_converted_without_loss(
    make_video: MakeVideo, upscale: Upscale, look: Look, container: Container
) -> None:
    # given Windows Media sound
    source = make_video("old.wmv", frames=30, **WINDOWS_MEDIA)
    result, report, _ = upscale(source, JobOptions(container=container, encoder_preset="ultrafast"))
    # then the report says what became of it
    sound = next(stream for stream in report.streams if stream.type == "audio")
    assert sound.outcome == "converted"
    assert "wmav2" in (sound.why or "")
    # and every sample is what the source's decoder gives, to 24 bits
    before, after = samples(source), samples(result)
    assert after.shape == before.shape
    assert np.abs(after - before.clip(-1, 1)).max() < 2**-22


def test_sound_for_webm_becomes_opus(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("clip.mp4", frames=30, audio_tracks=1)
    result, report, _ = upscale(source, JobOptions(container=Container.WEBM, encoder_preset="ultrafast"))
    sound = next(stream for stream in report.streams if stream.type == "audio")
    assert (sound.outcome, sound.why) == ("converted", "webm cannot hold aac: as libopus; mkv keeps it as it is")
    assert look(result).of_type("audio")[0].codec == "opus"
    assert samples(result).shape[1] == pytest.approx(samples(source).shape[1], abs=2048)


def test_a_transport_stream_keeps_its_sound_without_the_streams_framing(
    make_video: MakeVideo, upscale: Upscale, look: Look
) -> None:
    source = make_video("recording.ts", frames=30, time_base=Fraction(1, 90000), audio_tracks=1)
    result, report, plan = upscale(source, segment_frames=10)
    sound = next(stream for stream in report.streams if stream.type == "audio")
    assert plan.container is Container.MKV
    assert sound.outcome == "copied"
    assert sound.why is not None
    assert len(look(result).of_type("audio")[0].times) == len(look(source).of_type("audio")[0].times)


def test_packets_hidden_by_an_edit_list_stay_hidden(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    # given sound of which half a second lies before the picture, hidden by an edit list
    source = make_video("cut.mp4", frames=10, audio_tracks=1, audio_start_seconds=Fraction(-1, 2))
    before = look(source)
    # when the result has no edit lists
    result, report, _ = upscale(source, JobOptions(container=Container.MKV, encoder_preset="ultrafast"))
    # then the hidden sound is left out, and said so
    after = look(result)
    sound = next(stream for stream in report.streams if stream.type == "audio")
    assert "edit list" in (sound.why or "")
    heard, recorded = after.of_type("audio")[0].times, before.of_type("audio")[0].times
    assert len(heard) < len(recorded)
    # and what is left still sounds with its picture
    for time, original in zip(reversed(heard), reversed(recorded), strict=False):
        assert abs((time - after.frame_times[0]) - (original - before.frame_times[0])) <= Fraction(1, 1000)


@pytest.mark.parametrize("container", [Container.MP4, Container.MKV])
def test_a_cut_of_two_parts_keeps_what_is_shown_and_heard(
    make_video: MakeVideo, upscale: Upscale, look: Look, container: Container
) -> None:
    # given two parts of a recording, joined by the edit list alone
    source = make_video("parts.mp4", frames=100, audio_tracks=1, options={"preset": "veryfast", "g": "12"})
    edit_to_two_parts(source)
    # when it is upscaled
    options = JobOptions(container=container, encoder_preset="ultrafast")
    result, report, _ = upscale(source, options, segment_frames=16)
    # then every frame of both is there, and nothing of what lies between them
    before, after = look(source), look(result)
    assert 48 <= len(before.frames) == len(after.frames) <= 52
    assert max(abs(one - other) for one, other in zip(before.frame_times, after.frame_times, strict=True)) <= 0.001
    # nor is it heard
    pairs = zip(heard_packets(source), heard_packets(result), strict=True)
    assert max(abs(one - other) for one, other in pairs) <= 0.001
    sound = next(stream for stream in report.streams if stream.type == "audio")
    assert "edit list hides" in (sound.why or "")


def heard_packets(path: Path) -> list[Fraction]:
    """When the packets of the first sound begin, without those that an edit list hides."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size and not packet.is_discard]
        return [packet.pts * packet.time_base for packet in packets if packet.pts is not None]


def edit_to_two_parts(path: Path) -> None:
    """Let an mp4, whose index lies behind its samples, show its first and its third second only."""

    def edited(boxes: bytes, timescale: int = 0) -> bytes:
        result, at = b"", 0
        while at < len(boxes):
            [size] = struct.unpack_from(">I", boxes, at)
            kind, content = boxes[at + 4 : at + 8], boxes[at + 8 : at + size]
            if kind == b"trak":
                [timescale] = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
            if kind in (b"moov", b"trak", b"edts"):
                content = edited(content, timescale)
            if kind == b"elst":
                [start] = struct.unpack_from(">i", content, 12)
                parts = [struct.pack(">Iiii", 2, 1000, begin, 1 << 16) for begin in (start, start + 2 * timescale)]
                content = bytes(4) + parts[0] + parts[1][4:]
            result += struct.pack(">I", len(content) + 8) + kind + content
            at += size
        return result

    content = path.read_bytes()
    assert content.index(b"mdat") < content.index(b"moov")
    path.write_bytes(edited(content))


def test_rotation_aspect_ratio_and_colour_tags_are_kept(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("sideways.mp4", rotation=90, sample_aspect_ratio=Fraction(4, 3), colour=(6, 1, 6, 6), frames=5)
    result, _, _ = upscale(source)
    before, after = look(source).frames[0], look(result).frames[0]
    assert before.rotation != 0
    for tag in ("rotation", "colorspace", "color_range", "color_primaries", "color_trc"):
        assert getattr(after, tag) == getattr(before, tag), tag


def test_untagged_video_keeps_its_colours_when_it_becomes_high_definition(
    make_video: MakeVideo, upscale: Upscale, look: Look
) -> None:
    # given untagged video, which players take for BT.601 at 400 lines and for BT.709 at 800
    def red(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        return np.broadcast_to(np.array([200, 40, 60], np.uint8), (height, width, 3)).copy()

    source = make_video("red.mp4", frames=3, width=64, height=400, picture=red)
    result, report, _ = upscale(source)
    # then its numbers are the same, and a tag keeps their meaning
    before, after = look(source).frames[0], look(result).frames[0]
    for small, large in zip(before.planes, after.planes, strict=True):
        assert abs(plane_mean(small) - plane_mean(large)) <= 1
    assert after.colorspace == 6
    assert any("tagged bt601" in note for note in report.notes)


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        (VideoCodec.H264, "yuv420p10le"),
        (VideoCodec.HEVC, "yuv420p10le"),
        (VideoCodec.AV1, "yuv420p10le"),
        (VideoCodec.FFV1, "yuv420p10le"),
        (VideoCodec.PRORES, "yuv422p10le"),
    ],
)
def test_ten_bits_stay_ten_bits(
    make_video: MakeVideo, upscale: Upscale, look: Look, codec: VideoCodec, pixel_format: str
) -> None:
    source = make_video("deep.mkv", time_base=Fraction(1, 1000), pixel_format="yuv420p10le", colour=(9, 1, 9, 16))
    result, _, _ = upscale(source, JobOptions(codec=codec, encoder_preset="ultrafast"))
    frame = look(result).frames[0]
    assert frame.format.name == pixel_format
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (9, 9, 16)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        (container, codec)
        for container in Container
        for codec in VideoCodec
        if holds_codec(container, codec) and container is not Container.ZIP
    ],
)
def test_every_codec_is_cut_and_joined_without_a_seam(
    make_video: MakeVideo, upscale: Upscale, look: Look, codec: VideoCodec, container: Container
) -> None:
    source = make_video("long.mp4", frames=40, audio_tracks=1)
    options = JobOptions(container=container, codec=codec, encoder_preset="veryfast")
    result, report, plan = upscale(source, options, segment_frames=10)
    assert len(plan.segments) == 4
    assert len(look(result).frames) == 40
    assert look(result).of_type("video")[0].codec == codec.value
    assert report.frames.result == 40


def test_webm_gets_av1_and_keeps_opus(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video(
        "clip.webm",
        time_base=Fraction(1, 1000),
        codec="libvpx",
        options={},
        frames=20,
        audio_tracks=1,
        audio_codec="libopus",
    )
    result, report, _ = upscale(source)
    assert result.suffix == ".webm"
    assert report.result.codec == "av1"
    assert look(result).frame_times == look(source).frame_times
    assert look(result).of_type("audio")[0].payload_md5 == look(source).of_type("audio")[0].payload_md5
    assert look(result).of_type("audio")[0].times == look(source).of_type("audio")[0].times


def test_the_same_source_gives_the_same_bytes_whatever_the_order_of_segments(
    make_video: MakeVideo, render: Render, tmp_path: Path
) -> None:
    source = make_video("long.mp4", frames=40, audio_tracks=1)
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        plan, segments = render(source, segment_frames=10, only=order)
        result = tmp_path / "result.mp4"
        assemble(plan, source, segments, result)
        results.append(result.read_bytes())
        for segment in segments:
            segment.unlink()
    assert results[0] == results[1]


def test_a_result_says_nothing_of_when_and_where_it_was_made(
    make_video: MakeVideo, upscale: Upscale, tmp_path: Path
) -> None:
    source = make_video("clip.mkv", time_base=Fraction(1, 1000), audio_tracks=1)
    for container in Container:
        options = JobOptions(container=container, encoder_preset="ultrafast")
        if container is Container.WEBM:
            source = make_video("clip.webm", time_base=Fraction(1, 1000), codec="libvpx", options={})
        result, _, _ = upscale(source, options)
        content = result.read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"Lavf6" not in content


def test_a_segment_that_lacks_frames_fails_the_check(make_video: MakeVideo, render: Render, tmp_path: Path) -> None:
    source = make_video("long.mp4", frames=40)
    plan, segments = render(source, segment_frames=10)
    shorter = make_video("shorter.mp4", frames=9, width=128, height=96)
    segments[2].write_bytes(shorter.read_bytes())
    with pytest.raises(JobFailureError, match="segment 2 holds 9 frames instead of 10") as failure:
        assemble(plan, source, segments, tmp_path / "result.mp4")
    assert failure.value.code is FailureCode.VERIFICATION_FAILED
    assert not (tmp_path / "result.mp4").exists()


def test_segments_of_different_networks_are_not_joined(
    make_video: MakeVideo, render: Render, pixel_repeater: Upscaler, tmp_path: Path
) -> None:
    source = make_video("long.mp4", frames=40)
    plan, segments = render(source, segment_frames=20)
    pixel_repeater.fingerprint = "another-network"
    render(source, segment_frames=20, only=[1], upscaler=pixel_repeater)
    with pytest.raises(JobFailureError, match="different networks"):
        assemble(plan, source, segments, tmp_path / "result.mp4")


def test_only_the_published_result_is_left(make_video: MakeVideo, upscale: Upscale) -> None:
    source = make_video("clip.mp4")
    result, _, _ = upscale(source)
    assert not list(Path(result).parent.glob("*.part"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_damage_anywhere_in_a_file_gives_a_result_or_a_named_failure(
    make_video: MakeVideo, upscale: Upscale, suffix: str, seed: int
) -> None:
    # given a file with sound, and random bytes of it changed
    time_base = {"mkv": Fraction(1, 1000), "avi": Fraction(1, 25), "ts": Fraction(1, 90000)}
    source = make_video(
        f"damaged.{suffix}",
        frames=10,
        time_base=time_base.get(suffix, Fraction(1, 12800)),
        audio_tracks=1,
        audio_codec="mp2" if suffix == "avi" else "aac",
    )
    chance = np.random.default_rng(seed)
    content = bytearray(source.read_bytes())
    for place in chance.integers(0, len(content), size=6):
        content[place] ^= int(chance.integers(1, 256))
    source.write_bytes(content)
    # then it becomes a checked result, or a failure with a name: never another error
    try:
        result, report, _ = upscale(source)
    except JobFailureError:
        return
    assert report.frames.result > 0
    assert result.exists()


def test_ends_of_chapters_that_the_container_moves_are_told(make_video: MakeVideo, upscale: Upscale) -> None:
    # given chapters that do not follow one another without a gap
    source = make_video("film.mkv", frames=30, time_base=Fraction(1, 1000))
    apart = source.with_name("apart.mkv")
    with av.open(str(source)) as whole, av.open(str(apart), "w") as edited:
        stream = edited.add_stream_from_template(whole.streams.video[0])
        edited.set_chapters(
            [
                {"id": number, "start": at, "end": at + 200, "time_base": Fraction(1, 1000), "metadata": {"title": "-"}}
                for number, at in enumerate((0, 600))
            ]
        )
        for packet in whole.demux(0):
            if packet.size:
                packet.stream = stream
                edited.mux(packet)
    # when they come into an mp4, whose chapters end where the next ones begin
    _, report, _ = upscale(apart, JobOptions(container=Container.MP4, encoder_preset="ultrafast"))
    # then the report says so
    assert report.lost_in_container == ("the container moves ends of chapters, by at most 0.400 s",)


def test_chapters_of_an_mp4_are_kept(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("film.mp4", frames=30, chapters=3, audio_tracks=1)
    result, report, _ = upscale(source, segment_frames=10)
    assert look(result).chapters == look(source).chapters
    assert len(look(result).chapters) == 3
    assert "dropped" not in {stream.outcome for stream in report.streams}


def test_the_timecode_of_a_mov_is_kept(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    source = make_video("camera.mov", frames=30, metadata={"timecode": "01:02:03:04"})
    result, report, _ = upscale(source, segment_frames=10)
    assert [stream.outcome for stream in report.streams] == ["upscaled", "rewritten"]
    with av.open(str(result)) as after:
        assert after.streams.video[0].metadata["timecode"] == "01:02:03:04"


def test_an_ntsc_avi_becomes_an_mp4_with_its_exact_times(make_video: MakeVideo, upscale: Upscale, look: Look) -> None:
    ntsc = Fraction(1001, 30000)
    source = make_video("old.avi", frames=30, pts=list(range(30)), time_base=ntsc, codec="mpeg4", options={})
    result, _, _ = upscale(source, JobOptions(container=Container.MP4, encoder_preset="medium"), segment_frames=10)
    assert look(result).frame_times == [number * ntsc for number in range(30)]


def test_own_metadata_are_kept_and_those_of_the_old_encoding_are_not(
    make_video: MakeVideo, upscale: Upscale, look: Look
) -> None:
    source = make_video("film.mp4", metadata={"title": "A film", "artist": "Someone", "comment": "Nice"})
    result, _, _ = upscale(source)
    metadata = look(result).metadata
    assert {key: metadata[key] for key in ("title", "artist", "comment")} == {
        "title": "A film",
        "artist": "Someone",
        "comment": "Nice",
    }
    assert metadata["encoder"].startswith("twostep-vsr ")


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("ffv1", "gray"),
        ("ffv1", "gray16le"),
        ("ffv1", "yuv410p"),
        ("ffv1", "yuv411p"),
        ("ffv1", "yuv422p"),
        ("ffv1", "yuv422p10le"),
        ("ffv1", "yuv444p12le"),
        ("ffv1", "yuva420p"),
        ("ffv1", "bgr0"),
        ("ffv1", "gbrp10le"),
        ("rawvideo", "yuyv422"),
        ("rawvideo", "rgb24"),
        ("mjpeg", "yuvj420p"),
        ("mpeg2video", "yuv422p"),
        ("prores_ks", "yuv422p10le"),
    ],
)
def test_every_common_pixel_format_looks_as_before(
    make_video: MakeVideo, upscale: Upscale, look: Look, codec: str, pixel_format: str
) -> None:
    # given a smooth picture in some pixel format
    def smooth(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        rows, columns = np.mgrid[0:height, 0:width]
        levels = [60 + rows, 60 + columns, 120 + (rows + columns) // 2]
        return np.stack(levels, axis=-1).astype(np.uint8)

    source = make_video(
        "video.mov" if codec == "prores_ks" else "video.nut",
        frames=3,
        time_base=Fraction(1, 25),
        codec=codec,
        options={},
        pixel_format=pixel_format,
        picture=smooth,
    )
    # when it is upscaled
    result, _, plan = upscale(source, JobOptions(quality="high", encoder_preset="ultrafast"))
    # then it shows what the source shows
    assert plan.losses == ()
    before = look(source).frames[0].to_ndarray(format="rgb24").astype(int)
    after = look(result).frames[0].to_ndarray(format="rgb24")[::2, ::2].astype(int)
    assert np.abs(before - after).mean() < 3


class StopError(Exception):
    pass


def test_an_assembly_that_is_stopped_on_the_way_leaves_nothing(
    make_video: MakeVideo, render: Render, tmp_path: Path
) -> None:
    # given rendered segments, and a stop after so many packets
    source = make_video("clip.mp4", frames=12, audio_tracks=1)
    plan, segments = render(source)
    packets_left = iter(range(20))
    (tmp_path / "out").mkdir()

    def stop() -> None:
        if next(packets_left, None) is None:
            raise StopError

    # when they are assembled, then that ends it, and no file is left
    with pytest.raises(StopError):
        assemble(plan, source, segments, tmp_path / "out" / "result.mp4", stop)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("container", [Container.MP4, Container.MOV, Container.MKV])
def test_a_broadcast_that_starts_below_zero_comes_later_as_a_whole(
    make_video: MakeVideo, upscale: Upscale, look: Look, container: Container
) -> None:
    # given a transport stream whose clock of 33 bits turns over in its middle: FFmpeg counts from below zero
    source = make_video(
        "turning.ts",
        frames=24,
        time_base=Fraction(1, 90000),
        audio_tracks=1,
        audio_codec="mp2",
        muxer_options={"output_ts_offset": str(2**33 / 90000 - 0.4), "max_delay": "0"},
    )
    before = look(source)
    assert before.frame_times[0] < 0 < before.frame_times[-1]
    # when it is upscaled
    result, report, _ = upscale(source, JobOptions(container=container, encoder_preset="ultrafast"), segment_frames=8)
    # then all frames are shown, as far from each other and from the sound as they were
    after = look(result)
    shifts = [there - time for there, time in zip(after.frame_times, before.frame_times, strict=True)]
    assert max(shifts) - min(shifts) <= Fraction(1, 1000)
    sound_before, sound_after = before.of_type("audio")[0], after.of_type("audio")[0]
    assert abs(sound_after.times[0] - sound_before.times[0] - shifts[0]) <= Fraction(1, 1000)
    assert after.frame_times[0] >= 0
    assert report.timestamps.shift_seconds == pytest.approx(float(shifts[0]), abs=0.001)
