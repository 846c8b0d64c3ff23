"""The plan: what is cut where, and what the options come to."""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, VideoCodec
from worker.plan import MAX_SEGMENT_FRAMES, MIN_SEGMENT_FRAMES, Plan, lay_out_segments, make_plan
from worker.settings import VideoLimits

MakeVideo = Callable[..., Path]
LIMITS = VideoLimits()
MKV = {"time_base": Fraction(1, 1000)}


@given(frames=st.integers(1, 5000), target=st.integers(MIN_SEGMENT_FRAMES, MAX_SEGMENT_FRAMES))
def test_segments_cover_every_frame_once_and_keep_their_limits(frames: int, target: int) -> None:
    segments = lay_out_segments(frames, target)
    covered = [frame for segment in segments for frame in range(segment.first, segment.stop)]
    assert covered == list(range(frames))
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert all(segment.frames <= MAX_SEGMENT_FRAMES for segment in segments)
    assert len(segments) == 1 or all(segment.frames >= MIN_SEGMENT_FRAMES for segment in segments)


def test_segments_last_about_four_seconds(make_video: MakeVideo) -> None:
    plan = make_plan(make_video("long.mp4", frames=300), JobOptions(), LIMITS)
    assert [segment.frames for segment in plan.segments] == [100, 100, 100]


def test_a_plan_survives_being_written_down(make_video: MakeVideo) -> None:
    source = make_video("film.mkv", frames=30, audio_tracks=2, subtitle_codec="subrip", **MKV)
    plan = make_plan(
        source, JobOptions(container=Container.MP4, crf=20, drop_unsupported=True), LIMITS, segment_frames=10
    )
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_the_plan_tells_what_clients_are_told_of_the_source(make_video: MakeVideo) -> None:
    source = make_video("film.mkv", frames=30, audio_tracks=2, **MKV)
    info = make_plan(source, JobOptions(), LIMITS).source_info()
    assert (info.width, info.height, info.frames, info.pixel_format) == (64, 48, 30, "yuv420p")
    assert info.duration_seconds == pytest.approx(1.2)
    assert info.frame_rate == "25/1"
    assert [(stream.type, stream.codec, stream.language) for stream in info.streams] == [
        ("video", "h264", None),
        ("audio", "aac", "eng"),
        ("audio", "aac", "deu"),
    ]


@pytest.mark.parametrize(
    ("name", "properties", "suffix", "expected"),
    [
        ("a.mp4", {}, ".mp4", Container.MP4),
        ("a.mov", {}, ".mov", Container.MOV),
        ("a.mov", {}, "", Container.MOV),
        ("a.mp4", {}, ".mov", Container.MOV),
        ("a.mp4", {}, "", Container.MP4),
        ("a.mkv", MKV, ".mkv", Container.MKV),
        ("a.mkv", MKV, "", Container.MKV),
        ("a.webm", MKV | {"codec": "libvpx", "options": {}}, "", Container.WEBM),
        ("a.mkv", MKV, ".webm", Container.WEBM),
        ("a.avi", {"time_base": Fraction(1, 25), "codec": "mpeg4", "options": {}}, ".avi", Container.MKV),
        ("a.ts", {"time_base": Fraction(1, 90000)}, ".mp4", Container.MKV),
    ],
)
def test_the_container_is_the_sources_own_where_we_write_it(
    make_video: MakeVideo, name: str, properties: dict[str, Any], suffix: str, expected: Container
) -> None:
    assert make_plan(make_video(name, **properties), JobOptions(), LIMITS, suffix).container is expected


def test_a_codec_that_the_own_container_cannot_hold_leads_to_mkv(make_video: MakeVideo) -> None:
    source = make_video("a.webm", codec="libvpx", options={}, **MKV)
    assert make_plan(source, JobOptions(codec=VideoCodec.HEVC), LIMITS, ".webm").container is Container.MKV


def test_pictures_go_into_a_zip(make_video: MakeVideo) -> None:
    assert make_plan(make_video("a.mp4"), JobOptions(codec=VideoCodec.PNG), LIMITS, ".mp4").container is Container.ZIP


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (JobOptions(container=Container.WEBM, codec=VideoCodec.H264), "webm cannot hold h264"),
        (JobOptions(codec=VideoCodec.H264, crf=60), "0 to 51"),
    ],
)
def test_options_that_cannot_be_met_are_refused(make_video: MakeVideo, options: JobOptions, named: str) -> None:
    with pytest.raises(JobFailureError, match=named) as failure:
        make_plan(make_video("a.mp4"), options, LIMITS)
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT


@pytest.mark.parametrize("codec", [VideoCodec.HEVC, VideoCodec.AV1])
def test_a_picture_too_small_for_the_encoder_is_refused(make_video: MakeVideo, codec: VideoCodec) -> None:
    source = make_video("strip.mp4", width=64, height=2)
    with pytest.raises(JobFailureError, match="does not take 128x4: choose another codec") as failure:
        make_plan(source, JobOptions(codec=codec), LIMITS)
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT


@pytest.mark.parametrize(("codec", "crf"), [(VideoCodec.H264, 18), (VideoCodec.HEVC, 20), (VideoCodec.AV1, 28)])
def test_the_default_quality_fits_the_codec(make_video: MakeVideo, codec: VideoCodec, crf: int) -> None:
    assert make_plan(make_video("a.mp4"), JobOptions(codec=codec), LIMITS).encoding.crf == crf


@pytest.mark.parametrize(
    ("pixel_format", "container", "codec", "result_format"),
    [
        ("yuv420p", "mp4", "h264", "yuv420p"),
        ("yuv420p10le", "mov", "hevc", "yuv420p10le"),
        ("yuv422p10le", "mp4", "hevc", "yuv422p10le"),
        ("yuv444p12le", "mp4", "hevc", "yuv444p12le"),
        ("yuv411p", "mp4", "h264", "yuv422p"),
        ("yuv440p", "mkv", "h264", "yuv444p"),
        ("gray", "mkv", "h264", "gray"),
        ("gray12le", "mkv", "hevc", "gray12le"),
        ("gray16le", "mkv", "ffv1", "gray16le"),
        ("bgr0", "mov", "h264", "yuv444p"),
        ("gbrp12le", "mov", "hevc", "yuv444p12le"),
        ("yuva420p", "webm", "vp9", "yuva420p"),
        ("yuva420p", "mkv", "vp9", "yuva420p"),
        ("yuva444p", "mkv", "ffv1", "yuva444p"),
        ("yuva444p10le", "mov", "prores", "yuva444p10le"),
        ("bgra", "mov", "prores", "yuva444p10le"),
        ("bgra", "zip", "png", "rgba"),
        ("yuv444p", "webm", "vp9", "yuv444p"),
        ("yuv420p10le", "zip", "png", "rgb48be"),
    ],
)
def test_the_default_codec_is_the_first_that_keeps_the_whole_picture(
    make_video: MakeVideo, pixel_format: str, container: str, codec: str, result_format: str
) -> None:
    source = make_video(
        "a.mkv", frames=2, width=80, height=80, codec="ffv1", options={}, pixel_format=pixel_format, **MKV
    )
    plan = make_plan(source, JobOptions(container=Container(container)), LIMITS)
    assert (plan.encoding.codec, plan.picture.pixel_format) == (codec, result_format)
    assert plan.losses == ()


@pytest.mark.parametrize(
    ("pixel_format", "options", "named"),
    [
        ("yuva420p", {"container": "mp4"}, "mp4 with h264 would lose: transparency"),
        ("yuv422p10le", {"container": "webm"}, r"colour resolution \(4:2:2 becomes 4:2:0\)"),
        ("gray16le", {"codec": "h264"}, r"precision \(16 bits per sample become 10\)"),
        ("yuva444p", {"codec": "vp9"}, r"colour resolution"),
    ],
)
def test_what_the_codec_would_lose_needs_consent(
    make_video: MakeVideo, pixel_format: str, options: dict[str, str], named: str
) -> None:
    source = make_video("a.mkv", frames=2, codec="ffv1", options={}, pixel_format=pixel_format, **MKV)
    with pytest.raises(JobFailureError, match=named) as failure:
        make_plan(source, JobOptions.model_validate(options), LIMITS)
    assert failure.value.code is FailureCode.WOULD_LOSE
    assert "drop_unsupported=true" in failure.value.message
    agreed = make_plan(source, JobOptions.model_validate(options | {"drop_unsupported": True}), LIMITS)
    assert len(agreed.losses) == 1


def test_what_no_codec_keeps_needs_consent_too(make_video: MakeVideo) -> None:
    plain = make_video("plain.mkv", frames=2, **MKV)
    source = plain.with_name("stereo.mkv")
    mark = ["-c", "copy", "-metadata:s:v", "stereo_mode=left_right"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", plain, *mark, source], check=True)
    with pytest.raises(JobFailureError, match=r"would lose: the mark of stereoscopic") as failure:
        make_plan(source, JobOptions(), LIMITS)
    assert failure.value.code is FailureCode.WOULD_LOSE
    assert make_plan(source, JobOptions(drop_unsupported=True), LIMITS).losses == (
        "the mark of stereoscopic (3D) video",
    )


def test_planning_needs_no_torch() -> None:
    check = "import sys, worker.plan, worker.assemble, worker.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crf": 20, "quality": "high"}, "choose one of them"),
        ({"crf": 20, "codec": "prores", "container": "mov"}, "prores has no crf: use quality small, balanced or high"),
        ({"crf": 20, "codec": "ffv1", "container": "mkv"}, "ffv1 has no crf: it is always lossless"),
        ({"quality": "lossless", "codec": "prores", "container": "mov"}, "prores cannot be lossless here"),
        ({"quality": "lossless", "codec": "av1"}, "av1 cannot be lossless here"),
        ({"container": "zip", "codec": "h264"}, "zip cannot hold h264"),
        ({"container": "mkv", "codec": "png"}, "mkv cannot hold png"),
        ({"container": "mov", "codec": "ffv1"}, "mov cannot hold ffv1"),
    ],
)
def test_quality_that_the_codec_does_not_know_is_refused(
    make_video: MakeVideo, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(JobFailureError, match=named) as failure:
        make_plan(make_video("a.mp4"), JobOptions.model_validate(options), LIMITS)
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT


def test_lossless_quality_alone_chooses_a_codec_that_can_be_so(make_video: MakeVideo) -> None:
    plan = make_plan(make_video("a.mp4"), JobOptions(container=Container.WEBM, quality="lossless"), LIMITS)
    assert (plan.encoding.codec, plan.encoding.quality, plan.encoding.crf) == (VideoCodec.VP9, "lossless", None)


def test_encoder_options_that_would_break_segments_are_refused_at_once(make_video: MakeVideo) -> None:
    with pytest.raises(JobFailureError, match="encoder option keyint is refused: segments are") as failure:
        make_plan(make_video("a.mp4"), JobOptions(encoder_options="tune=film:keyint=500"), LIMITS)
    assert failure.value.code is FailureCode.INVALID_OPTION


def test_encoder_options_that_do_not_go_together_are_refused(make_video: MakeVideo) -> None:
    options = JobOptions(codec=VideoCodec.HEVC, encoder_options="bframes=16:rc-lookahead=5")
    with pytest.raises(JobFailureError, match="with the encoder options bframes=16:rc-lookahead=5") as failure:
        make_plan(make_video("a.mp4", width=80, height=80), options, LIMITS)
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT


@pytest.mark.parametrize(
    ("properties", "options", "way_out"),
    [
        ({"pixel_format": "yuva420p"}, {"container": "mp4"}, "Choose mkv with codec vp9, or agree to it"),
        ({"pixel_format": "yuva420p"}, {"container": "mov", "codec": "hevc"}, "Choose codec prores, or agree"),
        ({"pixel_format": "gray16le"}, {"container": "mp4"}, "Choose mkv with codec ffv1, or agree"),
        ({"pixel_format": "yuv420p10le"}, {"container": "mkv", "codec": "vp9"}, "Choose codec h264, or agree"),
        ({"pixel_format": "yuv420p", "attachment": b"font"}, {"container": "mp4"}, "mkv can. Choose mkv, or agree"),
        ({"pixel_format": "gbrpf32le"}, {"container": "mkv"}, "If that is no matter, agree to it"),
    ],
)
def test_the_refusal_names_the_nearest_way_to_keep_everything(
    make_video: MakeVideo, properties: dict[str, Any], options: dict[str, str], way_out: str
) -> None:
    of_floats = properties["pixel_format"].startswith("gbrpf")
    codec = {"codec": "ffv1", "options": {"strict": "-2", "level": "4"} if of_floats else {}}
    source = make_video("a.mkv", frames=2, width=80, height=80, **codec, **MKV, **properties)
    with pytest.raises(JobFailureError) as failure:
        make_plan(source, JobOptions.model_validate(options), LIMITS)
    assert failure.value.code is FailureCode.WOULD_LOSE
    assert way_out in failure.value.message
