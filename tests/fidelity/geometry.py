"""Rows: the shape of the picture, and how it lies."""

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from tests.fidelity.boxes import box, insert_into_sample_entry, matroska_unsigned
from tests.fidelity.charts import FRAMES, LOSSLESS_H264, flat, write_chart
from tests.fidelity.comparison import assert_doubled
from tests.fidelity.row import Row, Upscaled, options
from tests.fidelity.witness import Witness, decode

_VIDEO = (*LOSSLESS_H264, "-pix_fmt", "yuv420p")
_FAST_VP9 = ("-cpu-used", "8", "-pix_fmt", "yuv420p")
_ONE, _DEEP_ONE = 1 << 16, 1 << 30

ORIENTATIONS = {
    "rotated_by_90": (0, 1, -1, 0),
    "rotated_by_180": (-1, 0, 0, -1),
    "rotated_by_270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside_down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed_over_the_other_diagonal": (0, -1, -1, 0),
}


# --- pixels that are not square, pictures that do not lie upright ----------------------------------------------------


def write_oblong_pixels_in_mp4(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", "-vf", "setsar=16/15", *_VIDEO)
    assert Witness(path).video.facts["sample_aspect_ratio"] == "16:15"
    return path


def write_oblong_pixels_in_mkv(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-vf", "setsar=4/3", *_VIDEO)
    assert Witness(path).video.facts["sample_aspect_ratio"] == "4:3"
    return path


def assert_oblong_pixels_in_mkv(upscaled: Upscaled) -> None:
    assert upscaled.result.video.facts["display_aspect_ratio"] == upscaled.source.video.facts["display_aspect_ratio"]


def _writer_of(orientation: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_chart(folder / "source.mp4", *_VIDEO, frames=16)
        a, b, c, d = (number * _ONE for number in ORIENTATIONS[orientation])
        matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, _DEEP_ONE)
        content = bytearray(path.read_bytes())
        # Version 0 of a track's header has its matrix 40 bytes behind its version.
        place = content.index(b"tkhd") + 4 + 4 + 36
        assert content[place : place + 36] == struct.pack(">9i", _ONE, 0, 0, 0, _ONE, 0, 0, 0, _DEEP_ONE)
        content[place : place + 36] = matrix
        path.write_bytes(content)
        assert Witness(path).video.side_data("Display Matrix") is not None
        return path

    return write


def write_rotated_in_mkv(folder: Path) -> Path:
    """Only newer programs than Debian's ffmpeg write Matroska's words for it; its ffprobe reads them."""
    turned = _writer_of("rotated_by_90")(folder)
    path = remux(turned, folder / "source.mkv")
    assert Witness(path).video.side_data("Display Matrix") == Witness(turned).video.side_data("Display Matrix")
    return path


def remux(path: Path, target_path: Path) -> Path:
    """Copy the video with PyAV."""
    with av.open(str(path)) as source, av.open(str(target_path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return target_path


# --- clean aperture --------------------------------------------------------------------------------------------------


def write_clean_aperture_in_mov(folder: Path) -> Path:
    """60x44 of 64x48 are to be seen, from (1, 3) on: the centre lies 1 to the left of the stored one and 1 below it."""
    path = write_chart(folder / "source.mov", *_VIDEO)
    insert_into_sample_entry(path, b"avc1", b"clap" + struct.pack(">8i", 60, 1, 44, 1, -1, 1, 1, 1))
    assert box(path, b"clap") is not None
    Witness(path)
    return path


def assert_clean_aperture_in_mov(upscaled: Upscaled) -> None:
    content = box(upscaled.result.path, b"clap")
    assert content is not None, "the clean aperture is gone"
    numbers = struct.unpack(">8i", content)
    assert [above / below for above, below in zip(numbers[::2], numbers[1::2], strict=True)] == [120, 88, -2, 2]


_PIXEL_CROP = {"bottom": b"\x54\xaa", "top": b"\x54\xbb", "left": b"\x54\xcc", "right": b"\x54\xdd"}


def crop_of(path: Path) -> dict[str, int]:
    return {edge: matroska_unsigned(path, name) for edge, name in _PIXEL_CROP.items()}


def write_clean_aperture_in_mkv(folder: Path) -> Path:
    mov = write_clean_aperture_in_mov(folder)
    path = remux(mov, folder / "source.mkv")
    assert crop_of(path) == {"left": 1, "right": 3, "top": 3, "bottom": 1}
    return path


def assert_clean_aperture_in_mkv(upscaled: Upscaled) -> None:
    assert crop_of(upscaled.result.path) == {"left": 2, "right": 6, "top": 6, "bottom": 2}


# --- sizes -----------------------------------------------------------------------------------------------------------


def write_odd_size(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv420p", size=(63, 47))
    assert [Witness(path).video.facts[side] for side in ("width", "height")] == [63, 47]
    return path


def write_odd_size_in_webm(folder: Path) -> Path:
    path = write_chart(folder / "source.webm", "-c:v", "libvpx-vp9", "-lossless", "1", *_FAST_VP9, size=(65, 49))
    assert [Witness(path).video.facts[side] for side in ("width", "height")] == [65, 49]
    return path


def write_two_by_two_pixels(folder: Path) -> Path:
    return write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv420p", size=(2, 2), picture=flat)


def write_one_by_one_pixel(folder: Path) -> Path:
    return write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv444p", size=(1, 1), picture=flat)


def write_narrow(folder: Path) -> Path:
    return write_chart(folder / "source.mp4", *_VIDEO, size=(16, 480), picture=flat)


# --- interlaced ------------------------------------------------------------------------------------------------------


def write_interlaced_top_first(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *("-vf", "tinterlace=interleave_top,fieldorder=tff", "-c:v", "libx264", "-preset", "ultrafast", "-qp", "2"),
        *("-flags", "+ilme+ildct", "-x264-params", "tff=1", "-pix_fmt", "yuv420p"),
        frames=2 * FRAMES,
        rate="50",
        picture=moving_edge,
    )
    video = Witness(path).video
    assert all(frame["interlaced_frame"] == 1 and frame["top_field_first"] == 1 for frame in video.frames)
    return path


def write_interlaced_bottom_first(folder: Path) -> Path:
    path = write_chart(
        folder / "source.ts",
        *(
            "-vf",
            "tinterlace=interleave_bottom,fieldorder=bff",
            "-c:v",
            "mpeg2video",
            "-q:v",
            "1",
            "-flags",
            "+ilme+ildct",
        ),
        *("-top", "0", "-pix_fmt", "yuv420p"),
        frames=2 * FRAMES,
        rate="50",
        picture=moving_edge,
    )
    video = Witness(path).video
    assert all(frame["interlaced_frame"] == 1 and frame["top_field_first"] == 0 for frame in video.frames)
    return path


def moving_edge(number: int, width: int, height: int) -> np.ndarray:  # type: ignore[type-arg]
    """A bright half that moves by two pixels from one field to the next, as fields of different times show."""
    picture = np.full((height, width, 3), 0.3)
    picture[:, : 4 + number * 2 % (width - 8)] = 0.75
    return picture


def assert_deinterlaced(upscaled: Upscaled) -> None:
    """As many frames as there were, each as ffmpeg's bwdif draws it from its first field's time."""
    assert all(frame["interlaced_frame"] == 0 for frame in upscaled.result.video.frames)
    drawn = decode(upscaled.source.path, upscaled.source.video, filters="bwdif=mode=send_frame:parity=auto:deint=all")
    assert_doubled(drawn, upscaled.result.pixels, within_levels=2)
    assert any("interlace" in text for text in upscaled.report_texts)


_WOVEN_NO_MORE = {"field_order": "progressive"}

ROWS = (
    Row(write_oblong_pixels_in_mp4),
    Row(write_oblong_pixels_in_mkv, assert_oblong_pixels_in_mkv),
    Row(
        write_oblong_pixels_in_mp4,
        options=options(codec="av1", quality="high"),
        within_levels=8,
        name="oblong_pixels_as_av1",
    ),
    *(Row(_writer_of(orientation), name=orientation) for orientation in ORIENTATIONS),
    Row(write_rotated_in_mkv),
    # Turned and mirrored, in a container that says it in angles, and a codec that does not say it at all.
    Row(_writer_of("transposed"), suffix=".mkv", options=options(codec="ffv1"), name="transposed_mp4_to_mkv"),
    Row(write_clean_aperture_in_mov, assert_clean_aperture_in_mov),
    Row(write_clean_aperture_in_mkv, assert_clean_aperture_in_mkv),
    Row(write_odd_size),
    Row(write_odd_size_in_webm, within_levels=2),
    Row(write_two_by_two_pixels),
    Row(write_one_by_one_pixel),
    # So tall a picture is taken for high definition, with its matrix, unless another is named.
    Row(write_narrow, changes={"color_space": "smpte170m"}),
    Row(
        write_interlaced_top_first, assert_deinterlaced, changes={"field_order": "progressive"}, compares_picture=False
    ),
    Row(
        write_interlaced_bottom_first,
        assert_deinterlaced,
        changes={"field_order": "progressive"},
        compares_picture=False,
    ),
)
