"""What cannot be kept is refused before any work, with its place and the way out; or is agreed to, and named."""

import re
from pathlib import Path

import pytest

from tests.fidelity.charts import FRAMES, LOSSLESS_H264, write_chart
from tests.fidelity.comparison import assert_decoding_order, assert_doubled, assert_same_frame_times
from tests.fidelity.product import Service, upscale
from tests.fidelity.row import Row, options
from tests.fidelity.streams import (
    write_bitmap_subtitles,
    write_private_data_in_a_broadcast,
    write_styled_subtitles_with_fonts,
    write_telemetry_in_mp4,
)
from tests.fidelity.witness import Witness
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions

_YUV = ("-pix_fmt", "yuv420p")


def refusal_of(source: Path, folder: Path, chosen: JobOptions, suffix: str = "") -> JobFailureError:
    """Upscale in vain; nothing is left behind."""
    with pytest.raises(JobFailureError) as caught:
        upscale(Row(lambda folder: source, options=chosen, suffix=suffix), source, folder)
    assert not list(folder.glob("result*"))
    return caught.value


# --- a source that changes or is damaged -----------------------------------------------------------------------------


def write_change_of_resolution(folder: Path) -> Path:
    """Two broadcasts, one behind the other: the second is smaller."""
    parts = [
        write_chart(folder / "large.ts", *LOSSLESS_H264, *_YUV, "-muxdelay", "0"),
        write_chart(
            folder / "small.ts", *LOSSLESS_H264, *_YUV, "-output_ts_offset", "0.96", "-muxdelay", "0", size=(48, 32)
        ),
    ]
    path = folder / "source.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sizes = [(frame["width"], frame["height"]) for frame in Witness(path).video.frames]
    assert sizes == [(64, 48)] * FRAMES + [(48, 32)] * FRAMES
    return path


def test_a_change_of_resolution_is_refused_with_its_frame_and_time(tmp_path: Path) -> None:
    source = write_change_of_resolution(tmp_path)
    when = Witness(source).video.frame_times[FRAMES]

    refusal = refusal_of(source, tmp_path, options())

    assert refusal.code is FailureCode.UNSUPPORTED_SOURCE
    assert "64x48" in refusal.message
    assert "48x32" in refusal.message
    assert f"frame {FRAMES} ({float(when):.3f} s)" in refusal.message


def write_damaged_frame(folder: Path, number: int = 13) -> Path:
    """One frame's slices are overwritten; all others are whole, each a key frame of its own."""
    path = write_chart(folder / "source.mp4", *LOSSLESS_H264, "-g", "1", *_YUV)
    content = bytearray(path.read_bytes())
    packet = Witness(path).video.packets[number]
    # The length of the unit of data in front stays; what is in it does not.
    content[packet.place + 8 : packet.place + packet.size] = b"\xff" * (packet.size - 8)
    path.write_bytes(content)
    return path


def test_a_frame_that_cannot_be_decoded_fails_the_job_with_its_position(tmp_path: Path) -> None:
    source = write_damaged_frame(tmp_path)

    refusal = refusal_of(source, tmp_path, options())

    assert refusal.code is FailureCode.CORRUPT_FRAME
    assert re.search(r"frame 13 \(0\.(48|52)0 s\)", refusal.message), refusal.message


def test_concealing_names_the_damaged_frame_and_keeps_all_others(tmp_path: Path) -> None:
    # Given a video with one damaged frame, and the same one undamaged
    (tmp_path / "whole").mkdir()
    whole = Witness(write_chart(tmp_path / "whole" / "whole.mp4", *LOSSLESS_H264, "-g", "1", *_YUV))
    source = write_damaged_frame(tmp_path)

    # When
    row = Row(lambda folder: source, options=options(on_error="conceal"))
    upscaled = upscale(row, source, tmp_path)

    # Then there are as many frames, each at its time, and those that were whole are as they were
    result = upscaled.result
    assert_same_frame_times(whole, result)
    assert_decoding_order(result)
    assert_doubled(whole.pixels, result.pixels, 1, [number for number in range(FRAMES) if number != 13])
    assert [(place["frame"], place["seconds"]) for place in upscaled.report["frames"]["concealed"]] == [(13, 0.52)]


def write_open_gop_start(folder: Path) -> Path:
    """A broadcast that somebody began to record in its middle: the first frames refer to what was never received."""
    whole = write_chart(
        folder / "whole.ts",
        *("-c:v", "libx264", "-preset", "veryfast", "-qp", "1", *_YUV),
        *("-x264-params", "open-gop=1:keyint=8:min-keyint=8:bframes=3:b-adapt=0:scenecut=0", "-muxdelay", "0"),
        frames=48,
    )
    keys = [packet.place for packet in Witness(whole).video.packets if packet.is_key]
    path = folder / "source.ts"
    # The tables of a transport stream come first, in three packets of 188 bytes.
    content = whole.read_bytes()
    path.write_bytes(content[: 3 * 188] + content[keys[2] :])
    return path


def test_a_recording_that_begins_in_the_middle_keeps_every_frame_that_can_be_seen(tmp_path: Path) -> None:
    source = write_open_gop_start(tmp_path)
    upscaled = upscale(Row(lambda folder: source), source, tmp_path)
    assert_same_frame_times(upscaled.source, upscaled.result)
    assert_decoding_order(upscaled.result)


# --- a target that cannot hold everything ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "suffix", "lost", "way_out"),
    [
        (write_styled_subtitles_with_fonts, ".mp4", ["ass", "attachment stream 2"], "mkv"),
        (write_bitmap_subtitles, ".mp4", ["hdmv_pgs_subtitle"], "mkv"),
        (
            lambda folder: write_telemetry_in_mp4(folder, (b"gpmd", b"camm")),
            ".mp4",
            ["data stream 2"],
            "drop-unsupported",
        ),
        (write_telemetry_in_mp4, ".mkv", ["data stream 1"], "drop-unsupported"),
        (write_private_data_in_a_broadcast, ".mkv", ["data stream 1"], "drop-unsupported"),
    ],
    ids=["fonts_in_mp4", "bitmaps_in_mp4", "unknown_data_in_mp4", "data_in_mkv", "private_data"],
)
def test_streams_that_the_target_cannot_hold_are_refused_or_dropped_with_consent(
    tmp_path: Path, write: object, suffix: str, lost: list[str], way_out: str
) -> None:
    source = write(tmp_path)  # type: ignore[operator]

    # Without consent
    refusal = refusal_of(source, tmp_path, options(), suffix)
    assert refusal.code is FailureCode.WOULD_LOSE
    assert all(name in refusal.message for name in lost), refusal.message
    assert way_out in refusal.message

    # With it
    row = Row(lambda folder: source, options=options(drop_unsupported=True), suffix=suffix)
    upscaled = upscale(row, source, tmp_path)
    dropped = [stream for stream in upscaled.report["streams"] if stream["outcome"] == "dropped"]
    assert dropped
    assert all(stream["why"] for stream in dropped)
    assert len(upscaled.report["losses"]) >= len(dropped)
    assert len(upscaled.result.streams) == len(upscaled.source.streams) - len(dropped)
    assert_same_frame_times(upscaled.source, upscaled.result)


def test_a_depth_that_the_codec_lacks_is_refused_or_rounded_with_consent(tmp_path: Path) -> None:
    source = write_chart(tmp_path / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv422p12le", depth=16)
    refusal = refusal_of(source, tmp_path, options(codec="h264"))
    assert refusal.code is FailureCode.WOULD_LOSE
    assert "12" in refusal.message

    row = Row(lambda folder: source, options=options(codec="h264", drop_unsupported=True))
    upscaled = upscale(row, source, tmp_path)
    assert upscaled.result.video.facts["pix_fmt"] == "yuv422p10le"
    assert any("12" in loss for loss in upscaled.report["losses"])
    assert_doubled(upscaled.source.pixels, upscaled.result.pixels, 1)


def test_transparency_that_the_codec_lacks_is_refused(tmp_path: Path) -> None:
    source = write_chart(tmp_path / "source.mov", "-c:v", "png", "-pix_fmt", "rgba", alpha=True)
    refusal = refusal_of(source, tmp_path, options(codec="h264"))
    assert refusal.code is FailureCode.WOULD_LOSE
    assert "transparen" in refusal.message


@pytest.mark.parametrize("wanted", ["keyint=9", "open-gop=1", "threads=8", "intra-refresh=1"])
def test_encoder_options_that_would_break_segments_are_refused_with_a_reason(tmp_path: Path, wanted: str) -> None:
    source = write_chart(tmp_path / "source.mp4", *LOSSLESS_H264, *_YUV)
    refusal = refusal_of(source, tmp_path, options(quality="balanced", encoder_options=wanted))
    assert refusal.code in (FailureCode.INVALID_OPTION, FailureCode.UNSUPPORTED_OUTPUT)
    assert wanted.partition("=")[0] in refusal.message


def test_the_service_refuses_with_the_same_words(tmp_path: Path, service: Service) -> None:
    source = write_change_of_resolution(tmp_path)
    refusal = refusal_of(source, tmp_path, options())

    job = service.finished(service.submit(source, options(), ".mkv"))

    assert job["status"] == "failed"
    assert job["error"] == {"code": refusal.code, "message": refusal.message}
