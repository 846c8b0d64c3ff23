"""Rows: every codec and container that is offered, and sources in containers that are not."""

from collections.abc import Callable
from pathlib import Path

from tests.fidelity.charts import LOSSLESS_H264, tone, write_chart
from tests.fidelity.row import Row, Upscaled, options
from tests.fidelity.witness import Witness

_VIDEO = (*LOSSLESS_H264, "-pix_fmt", "yuv420p")


def write_plain_mp4(folder: Path) -> Path:
    """The chart with sound, in what most videos are."""
    path = write_chart(folder / "source.mp4", *tone(), *_VIDEO, "-c:a", "aac")
    assert Witness(path).video.facts["codec_name"] == "h264"
    return path


def write_plain_webm(folder: Path) -> Path:
    path = write_chart(
        folder / "source.webm",
        *(*tone(), "-c:v", "libvpx-vp9", "-lossless", "1", "-cpu-used", "8", "-pix_fmt", "yuv420p", "-c:a", "libopus"),
        quiet=False,
    )
    assert Witness(path).video.facts["codec_name"] == "vp9"
    return path


def write_prores(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mov",
        *(*tone(), "-c:v", "prores_ks", "-profile:v", "hq", "-pix_fmt", "yuv422p10le", "-c:a", "pcm_s24le"),
        depth=16,
    )
    assert Witness(path).video.facts["codec_name"] == "prores"
    return path


def write_transport_stream(folder: Path) -> Path:
    """Times that begin at 1.4 s, and sound whose packets carry headers that no other container wants."""
    path = write_chart(folder / "source.ts", *tone(), *_VIDEO, "-c:a", "aac")
    assert Witness(path).video.frame_times[0] > 1
    return path


def write_avi(folder: Path) -> Path:
    path = write_chart(folder / "source.avi", *tone(), "-c:v", "mpeg4", "-q:v", "2", "-bf", "2", "-c:a", "mp3")
    assert Witness(path).format["format_name"] == "avi"
    return path


def write_flash(folder: Path) -> Path:
    path = write_chart(folder / "source.flv", *tone(), *_VIDEO, "-c:a", "aac", quiet=False)
    assert Witness(path).format["format_name"] == "flv"
    return path


def codec_is(name: str, *, first_box_is_the_index: bool = False) -> Callable[[Upscaled], None]:
    def check(upscaled: Upscaled) -> None:
        assert upscaled.result.video.facts["codec_name"] == name
        if first_box_is_the_index:  # a player begins before it has the whole file
            content = upscaled.result.path.read_bytes()
            assert content.index(b"moov") < content.index(b"mdat")

    return check


ROWS = (
    Row(write_plain_mp4, codec_is("h264", first_box_is_the_index=True), name="h264_in_mp4"),
    Row(write_plain_mp4, codec_is("h264"), suffix=".mkv", name="mp4_to_mkv"),
    Row(write_plain_mp4, codec_is("h264"), suffix=".mov", name="mp4_to_mov"),
    Row(
        write_plain_mp4,
        codec_is("hevc", first_box_is_the_index=True),
        options=options(codec="hevc"),
        name="hevc_in_mp4",
    ),
    # Not lossless: flat colours come back within what the codec explains.
    Row(
        write_plain_mp4,
        codec_is("hevc"),
        options=options(codec="hevc", quality=None, crf=2),
        within_levels=2,
        name="hevc_almost_lossless",
    ),
    Row(
        write_plain_mp4,
        codec_is("av1"),
        options=options(codec="av1", quality=None, crf=2),
        within_levels=4,
        name="av1_almost_lossless",
    ),
    Row(write_plain_mp4, codec_is("ffv1"), suffix=".mkv", options=options(codec="ffv1"), name="ffv1_in_mkv"),
    Row(
        write_prores,
        codec_is("prores"),
        options=options(codec="prores", quality="high"),
        within_levels=4,
        name="prores_in_mov",
    ),
    Row(write_plain_webm, codec_is("av1"), options=options(quality="high"), within_levels=8, name="av1_in_webm"),
    Row(write_plain_webm, codec_is("vp9"), options=options(codec="vp9"), name="vp9_in_webm"),
    Row(write_transport_stream),
    Row(write_avi, within_levels=1),
    Row(write_flash),
)
