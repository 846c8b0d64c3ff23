"""Rows: what the numbers of the picture mean."""

from pathlib import Path

from tests.fidelity.charts import LOSSLESS_H264, write_chart
from tests.fidelity.comparison import assert_doubled
from tests.fidelity.row import Row, Upscaled, options
from tests.fidelity.witness import Witness, decode

_MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
_FULL_DEPTH = options(codec="ffv1")


def tagged(
    pixel_format: str, primaries: str, transfer: str, matrix: str, limited_or_full: str = "tv"
) -> tuple[str, ...]:
    """Convert with a matrix and a range, and say so in every frame and in the file."""
    name = {"smpte170m": "bt601", "bt470bg": "bt601", "bt2020nc": "bt2020"}.get(matrix, matrix)
    said = f"setparams=range={limited_or_full}:color_primaries={primaries}:color_trc={transfer}:colorspace={matrix}"
    return (
        *("-vf", f"scale=out_color_matrix={name}:out_range={limited_or_full},format={pixel_format},{said}"),
        *("-color_primaries", primaries, "-color_trc", transfer, "-colorspace", matrix),
        *("-color_range", limited_or_full),
    )


def facts(path: Path, *names: str) -> list[str | None]:
    video = Witness(path).video
    return [video.facts.get(name) for name in names]


# --- range and matrix ------------------------------------------------------------------------------------------------


def write_full_range(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *tagged("yuv420p", "bt709", "bt709", "bt709", "pc"), *LOSSLESS_H264)
    assert facts(path, "color_range", "color_space") == ["pc", "bt709"]
    return path


def write_full_range_of_a_camera(folder: Path) -> Path:
    """Motion JPEG: of full range by its nature, whatever the file says."""
    path = write_chart(folder / "source.mov", "-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj422p")
    assert facts(path, "color_range", "pix_fmt") == ["pc", "yuvj422p"]
    return path


def write_bt601(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *tagged("yuv420p", "bt470bg", "smpte170m", "bt470bg"), *LOSSLESS_H264)
    assert facts(path, "color_primaries", "color_transfer", "color_space") == ["bt470bg", "smpte170m", "bt470bg"]
    return path


def write_smpte170m_in_mkv(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", *tagged("yuv420p", "smpte170m", "smpte170m", "smpte170m"), *LOSSLESS_H264)
    assert facts(path, "color_primaries", "color_transfer", "color_space") == ["smpte170m"] * 3
    return path


def write_bt709(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *tagged("yuv420p", "bt709", "bt709", "bt709"), *LOSSLESS_H264)
    assert facts(path, "color_range", "color_primaries", "color_space") == ["tv", "bt709", "bt709"]
    return path


def write_bt2020(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *tagged("yuv420p10le", "bt2020", "bt2020-10", "bt2020nc"),
        *("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "lossless=1:log-level=none"),
        depth=16,
    )
    assert facts(path, "pix_fmt", "color_primaries", "color_space") == ["yuv420p10le", "bt2020", "bt2020nc"]
    return path


def write_untagged(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *LOSSLESS_H264, "-pix_fmt", "yuv420p")
    assert facts(path, "color_primaries", "color_transfer", "color_space") == [None, None, None]
    return path


def write_chroma_at_the_top_left(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4", *LOSSLESS_H264, "-pix_fmt", "yuv420p", "-chroma_sample_location", "topleft"
    )
    assert facts(path, "chroma_location") == ["topleft"]
    return path


def write_chroma_in_the_centre(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mkv", *LOSSLESS_H264, "-pix_fmt", "yuv420p", "-chroma_sample_location", "center"
    )
    assert facts(path, "chroma_location") == ["center"]
    return path


# --- high dynamic range ----------------------------------------------------------------------------------------------


def write_hlg(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *tagged("yuv420p10le", "bt2020", "arib-std-b67", "bt2020nc"),
        *("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "lossless=1:log-level=none", "-tag:v", "hvc1"),
        depth=16,
    )
    assert facts(path, "color_transfer") == ["arib-std-b67"]
    return path


def write_pq_with_mastering_metadata(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mkv",
        *tagged("yuv420p10le", "bt2020", "smpte2084", "bt2020nc"),
        *("-c:v", "libx265", "-preset", "ultrafast"),
        *("-x265-params", f"lossless=1:log-level=none:hdr10=1:master-display={_MASTERING}:max-cll=1000,400"),
        depth=16,
    )
    video = Witness(path).video
    display, light = video.side_data("Mastering display metadata"), video.side_data("Content light level metadata")
    assert display is not None
    assert display["max_luminance"] == "10000000/10000"
    assert light is not None
    assert (light["max_content"], light["max_average"]) == (1000, 400)
    return path


def write_pq_in_mp4(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *tagged("yuv420p10le", "bt2020", "smpte2084", "bt2020nc"),
        *("-c:v", "libx265", "-preset", "ultrafast", "-tag:v", "hvc1"),
        *("-x265-params", f"lossless=1:log-level=none:hdr10=1:master-display={_MASTERING}:max-cll=1000,400"),
        depth=16,
    )
    assert Witness(path).video.side_data("Mastering display metadata") is not None
    return path


# --- samples ---------------------------------------------------------------------------------------------------------


def write_ten_bits_4_2_2(folder: Path) -> Path:
    path = write_chart(folder / "source.mov", *LOSSLESS_H264, "-pix_fmt", "yuv422p10le", depth=16)
    assert facts(path, "pix_fmt") == ["yuv422p10le"]
    return path


def write_ten_bits_4_2_0(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *LOSSLESS_H264, "-pix_fmt", "yuv420p10le", depth=16)
    assert facts(path, "pix_fmt") == ["yuv420p10le"]
    return path


def write_4_4_4(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *LOSSLESS_H264, "-pix_fmt", "yuv444p")
    assert facts(path, "pix_fmt") == ["yuv444p"]
    return path


def write_4_1_1(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv411p", size=(128, 96))
    assert facts(path, "pix_fmt") == ["yuv411p"]
    return path


def write_grey(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "gray")
    assert facts(path, "pix_fmt") == ["gray"]
    return path


def write_grey_of_ten_bits(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "gray10le", depth=16)
    assert facts(path, "pix_fmt") == ["gray10le"]
    return path


def write_twelve_bits(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv422p12le", depth=16)
    assert facts(path, "pix_fmt") == ["yuv422p12le"]
    return path


def write_rgb(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "libx264rgb", "-preset", "ultrafast", "-qp", "0")
    assert facts(path, "pix_fmt", "color_space") == ["gbrp", "gbr"]
    return path


# --- transparency ----------------------------------------------------------------------------------------------------


def write_transparent_vp9(folder: Path) -> Path:
    path = write_chart(
        folder / "source.webm",
        *("-c:v", "libvpx-vp9", "-lossless", "1", "-cpu-used", "8", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"),
        alpha=True,
    )
    assert Witness(path).video.tags["alpha_mode"] == "1"
    return path


def write_transparent_prores(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mov",
        *("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le", "-qscale:v", "1"),
        depth=16,
        alpha=True,
    )
    assert facts(path, "codec_name")[0] == "prores"
    assert str(facts(path, "pix_fmt")[0]).startswith("yuva444p")
    return path


def write_transparent_png_in_mov(folder: Path) -> Path:
    path = write_chart(folder / "source.mov", "-c:v", "png", "-pix_fmt", "rgba", alpha=True)
    assert facts(path, "codec_name", "pix_fmt") == ["png", "rgba"]
    return path


def write_transparent_gif(folder: Path) -> Path:
    path = write_chart(
        folder / "source.gif",
        *(
            "-filter_complex",
            "[0]format=rgba,split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither=none",
        ),
        alpha=True,
    )
    assert facts(path, "codec_name", "pix_fmt") == ["gif", "bgra"]
    return path


def assert_transparent(upscaled: Upscaled) -> None:
    """Colours where they are seen, and the four steps of transparency, as they were."""
    before, after = (
        decode(
            witness.path,
            witness.video,
            "rgba64le",
            decoder="libvpx-vp9" if witness.video.facts["codec_name"] == "vp9" else None,
        )
        for witness in (upscaled.source, upscaled.result)
    )
    assert before[0][3].min() == 0
    assert before[0][3].max() > 65535 - 256
    assert_doubled(before, after, within_levels=2 * 257, only_where_seen=True, flat_share=0.02)


ROWS = (
    Row(write_full_range),
    # H.264 has a place for chroma's place in 4:2:0 alone; in 4:2:2 it lies left, and is moved there.
    Row(write_full_range_of_a_camera, changes={"chroma_location": "left"}, within_levels=2),
    Row(write_bt601),
    Row(write_smpte170m_in_mkv),
    Row(write_bt709),
    Row(write_bt2020, options=options(codec="hevc")),
    Row(write_bt709, suffix=".webm", options=options(codec="vp9"), name="bt709_as_vp9"),
    Row(
        write_bt601,
        suffix=".mov",
        options=options(codec="prores", quality="high"),
        changes={"pix_fmt": "yuv422p10le"},
        compare_as="yuv422p",
        within_levels=3,
        name="bt601_as_prores",
    ),
    # ProRes has no place to say that a picture is of full range: it is converted.
    Row(
        write_full_range,
        suffix=".mov",
        options=options(codec="prores", quality="high"),
        changes={"pix_fmt": "yuv422p10le", "color_range": "tv"},
        compare_as="rgb24",
        within_levels=4,
        name="full_range_as_prores",
    ),
    Row(
        write_full_range,
        suffix=".webm",
        options=options(codec="av1", quality="high"),
        within_levels=8,
        name="full_range_as_av1",
    ),
    Row(write_untagged),
    Row(write_chroma_at_the_top_left),
    Row(write_chroma_in_the_centre),
    Row(write_hlg),
    Row(write_pq_with_mastering_metadata),
    Row(write_pq_in_mp4, options=options(codec="hevc")),
    Row(
        write_pq_with_mastering_metadata,
        suffix=".webm",
        options=options(codec="av1", quality="high"),
        within_levels=32,
        name="pq_as_av1_in_webm",
    ),
    Row(write_ten_bits_4_2_2),
    Row(write_ten_bits_4_2_0),
    Row(write_4_4_4),
    Row(write_4_1_1, changes={"pix_fmt": "yuv422p"}, compare_as="yuv422p", within_levels=2),
    Row(write_grey, options=_FULL_DEPTH),
    # H.264 knows pictures without chroma, but FFmpeg's decoder shows them with chroma of no colour.
    Row(
        write_grey,
        name="grey_as_h264",
        changes={"pix_fmt": "yuv420p"},
        compare_as="rgb24",
        options=options(codec="h264"),
    ),
    Row(write_grey_of_ten_bits, options=options(codec="hevc")),
    Row(write_twelve_bits),
    Row(write_rgb, options=_FULL_DEPTH, changes={"pix_fmt": "bgr0"}, compare_as="rgb24"),
    Row(
        write_rgb,
        name="rgb_as_h264",
        changes={"pix_fmt": "yuv444p", "color_range": "pc", "color_space": "smpte170m"},
        compare_as="rgb24",
        options=options(codec="h264"),
    ),
    Row(write_transparent_vp9, assert_transparent, compares_picture=False),
    # Of what mov can hold, ProRes alone keeps transparency, and it is never without loss.
    Row(write_transparent_prores, assert_transparent, options=options(quality="high"), compares_picture=False),
    Row(
        write_transparent_png_in_mov,
        assert_transparent,
        options=options(quality="high"),
        changes={"pix_fmt": "yuva444p12le", "color_range": "tv", "color_space": "smpte170m"},
        compares_picture=False,
    ),
    Row(
        write_transparent_gif,
        assert_transparent,
        changes={"color_range": "pc", "color_space": "gbr"},
        compares_picture=False,
    ),
)
