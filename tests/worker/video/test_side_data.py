"""What lies beside the picture comes into the result's header, whatever the codec and container."""

import json
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from worker.contract.job import Container, VideoCodec
from worker.video.codecs import CODECS
from worker.video.colour import conversion_matrix, encoded_picture
from worker.video.encode import encode_frames, segment_suffix
from worker.video.frames import Frame
from worker.video.mux import UpscaledVideo, read_order, write_result
from worker.video.values import Colour, ContentLight, Crop, Encoding, FrameTable, MasteringDisplay, Picture

PAIRS = [
    (VideoCodec.H264, Container.MP4),
    (VideoCodec.H264, Container.MKV),
    (VideoCodec.HEVC, Container.MOV),
    (VideoCodec.HEVC, Container.MKV),
    (VideoCodec.AV1, Container.MP4),
    (VideoCodec.AV1, Container.WEBM),
    (VideoCodec.VP9, Container.WEBM),
    (VideoCodec.VP9, Container.MP4),
    (VideoCodec.FFV1, Container.MKV),
    (VideoCodec.PRORES, Container.MOV),
]
FRAMES = 5
P3_DISPLAY = MasteringDisplay(
    primaries=(
        (Fraction(17, 25), Fraction(8, 25)),
        (Fraction(53, 200), Fraction(69, 100)),
        (Fraction(3, 20), Fraction(3, 50)),
    ),
    white_point=(Fraction(3127, 10000), Fraction(329, 1000)),
    min_luminance=Fraction(1, 10000),
    max_luminance=Fraction(1000),
)


def a_picture(**different: object) -> Picture:
    usual: dict[str, Any] = {
        "width": 80,
        "height": 60,
        "pixel_format": "yuv420p10le",
        "bit_depth": 10,
        "colour": Colour(
            matrix=9,
            range=1,
            primaries=9,
            transfer=16,
            conversion=conversion_matrix(9, 60),
            chroma_location="topleft",
        ),
        "sample_aspect_ratio": None,
        "display_matrix": None,
        "field_order": "progressive",
    }
    return Picture(**usual | different)


@pytest.fixture
def write(make_video: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Encode plain frames for a picture and put them into a file."""

    def write(picture: Picture, codec: VideoCodec, container: Container, frame: Frame | None = None) -> Path:
        result, _ = encoded_picture(picture, 2, codec, container)
        encoding = Encoding(
            codec=codec,
            crf=CODECS[codec].crf.get("balanced"),
            encoder_preset="veryfast",
            average_rate=Fraction(25),
            time_base=Fraction(1, 25),
        )
        if frame is None:
            dtype, level = (np.uint8, 90) if result.bit_depth == 8 else (np.uint16, 90 * 257)
            frame = Frame(np.full((result.height, result.width, 3), level, dtype))
        segment = tmp_path / f"segment{segment_suffix(encoding)}"
        list(encode_frames([frame] * FRAMES, range(FRAMES), result, encoding, segment, "test"))
        times = FrameTable(
            pts=tuple(range(FRAMES)), crc32=(0,) * FRAMES, stamps=None, time_base=Fraction(1, 25), last_duration=1
        )
        upscaled = UpscaledVideo([segment], read_order([segment], [FRAMES]), times, result, encoding)
        target = tmp_path / f"result.{container}"
        with av.open(str(make_video("plain.mkv", frames=2, time_base=Fraction(1, 1000)))) as source:
            write_result(target, container, source, source.streams.video[0], upscaled, {}, {}, "tag")
        return target

    return write


def probed(path: Path) -> dict[str, Any]:
    """Return what Debian's ffprobe, which shares no code with us, says of the video stream."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_streams", "-of", "json", str(path)]
    stream: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"][0]
    return stream


@pytest.mark.parametrize(("codec", "container"), PAIRS)
def test_hdr_facts_are_in_the_header(write: Callable[..., Path], codec: VideoCodec, container: Container) -> None:
    light = ContentLight(max_content=1000, max_frame_average=400)
    path = write(a_picture(mastering_display=P3_DISPLAY, content_light=light), codec, container)
    found = {item["side_data_type"]: item for item in probed(path)["side_data_list"]}
    display = found["Mastering display metadata"]
    assert P3_DISPLAY.primaries is not None
    assert P3_DISPLAY.white_point is not None
    for name, (x, y) in zip(
        ("red", "green", "blue", "white_point"), (*P3_DISPLAY.primaries, P3_DISPLAY.white_point), strict=True
    ):
        assert (Fraction(display[f"{name}_x"]), Fraction(display[f"{name}_y"])) == (x, y)
    assert Fraction(display["min_luminance"]) == P3_DISPLAY.min_luminance
    assert Fraction(display["max_luminance"]) == P3_DISPLAY.max_luminance
    levels = found["Content light level metadata"]
    assert (levels["max_content"], levels["max_average"]) == (1000, 400)


@pytest.mark.parametrize("codec", [VideoCodec.HEVC, VideoCodec.AV1])
def test_hdr_facts_are_in_the_bitstream_too(write: Callable[..., Path], codec: VideoCodec) -> None:
    light = ContentLight(max_content=1000, max_frame_average=400)
    path = write(a_picture(mastering_display=P3_DISPLAY, content_light=light), codec, Container.MKV)
    command = ["ffprobe", "-v", "error", "-show_frames", "-read_intervals", "%+#1", "-of", "json", str(path)]
    frame = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["frames"][0]
    found = {item["side_data_type"] for item in frame["side_data_list"]}
    assert {"Mastering display metadata", "Content light level metadata"} <= found


@pytest.mark.parametrize(("codec", "container"), PAIRS)
def test_colours_are_in_the_header(write: Callable[..., Path], codec: VideoCodec, container: Container) -> None:
    stream = probed(write(a_picture(), codec, container))
    colours = [stream.get(key) for key in ("color_range", "color_space", "color_transfer", "color_primaries")]
    assert colours == ["tv", "bt2020nc", "smpte2084", "bt2020"]


@pytest.mark.parametrize("container", [Container.MKV, Container.MP4])
@pytest.mark.parametrize("codec", [VideoCodec.H264, VideoCodec.FFV1])
def test_a_range_without_other_tags_is_in_the_header(
    write: Callable[..., Path], codec: VideoCodec, container: Container
) -> None:
    colour = a_picture().colour.model_copy(update={"matrix": 2, "primaries": 2, "transfer": 2, "range": 2})
    stream = probed(write(a_picture(colour=colour), codec, container))
    if (codec, container) != (VideoCodec.FFV1, Container.MP4):  # a colr box says nothing of range alone
        assert stream["color_range"] == "pc"


@pytest.mark.parametrize(("codec", "container"), [pair for pair in PAIRS if pair[1] in (Container.MP4, Container.MOV)])
def test_a_clean_aperture_is_a_clap_box(write: Callable[..., Path], codec: VideoCodec, container: Container) -> None:
    content = write(a_picture(crop=Crop(left=1, right=3, top=2, bottom=0)), codec, container).read_bytes()
    box = content.index(b"clap") + 4
    numbers = struct.unpack_from(">8i", content, box)
    width, height, right, down = (Fraction(numbers[at], numbers[at + 1]) for at in (0, 2, 4, 6))
    # Twice the source's: 8 of 160 columns and 4 of 120 rows are cut off; the centre moves to the left and down.
    assert (width, height) == (152, 116)
    assert (right, down) == (-2, 2)


@pytest.mark.parametrize(("codec", "container"), [pair for pair in PAIRS if pair[1] in (Container.MKV, Container.WEBM)])
def test_a_clean_aperture_is_a_pixel_crop_in_matroska(
    write: Callable[..., Path], codec: VideoCodec, container: Container
) -> None:
    content = write(a_picture(crop=Crop(left=1, right=3, top=2, bottom=0)), codec, container).read_bytes()
    tracks = content[content.index(b"\x16\x54\xae\x6b") :]
    assert b"\x54\xbb\x81\x04\x54\xcc\x81\x02\x54\xdd\x81\x06" in tracks  # top 4, left 2, right 6


@pytest.mark.parametrize("ratio", [Fraction(4, 3), Fraction(16, 11), Fraction(10, 11)])
@pytest.mark.parametrize(("codec", "container"), PAIRS)
def test_the_shape_of_pixels_is_exact_in_every_container(
    write: Callable[..., Path], codec: VideoCodec, container: Container, ratio: Fraction
) -> None:
    path = write(a_picture(sample_aspect_ratio=ratio), codec, container)
    assert probed(path)["sample_aspect_ratio"] == f"{ratio.numerator}:{ratio.denominator}"
    # and nothing behind the header has moved
    decoded = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-f", "framemd5", "-"], capture_output=True, check=True, text=True
    )
    assert decoded.stderr == ""
    assert len([line for line in decoded.stdout.splitlines() if not line.startswith("#")]) == FRAMES


@pytest.mark.parametrize(
    ("codec", "container", "decoder"),
    [
        (VideoCodec.VP9, Container.WEBM, "libvpx-vp9"),
        (VideoCodec.VP9, Container.MKV, "libvpx-vp9"),
        (VideoCodec.FFV1, Container.MKV, "ffv1"),
        (VideoCodec.PRORES, Container.MOV, "prores"),
    ],
)
def test_transparency_is_in_the_file(
    write: Callable[..., Path], codec: VideoCodec, container: Container, decoder: str
) -> None:
    # given a picture whose left half is transparent, of a colour that is kept there too
    picture = a_picture(
        pixel_format="yuva420p", bit_depth=8, has_alpha=True, colour=a_picture().colour.model_copy(update={"matrix": 1})
    )
    alpha = np.full((120, 160), 255, np.uint8)
    alpha[:, :80] = 0
    path = write(picture, codec, container, Frame(np.full((120, 160, 3), 90, np.uint8), alpha))
    # when Debian's FFmpeg decodes it with the decoder that knows transparency
    decoded = subprocess.run(
        ["ffmpeg", "-v", "error", "-c:v", decoder, "-i", str(path), "-pix_fmt", "rgba", "-f", "rawvideo", "-"],
        capture_output=True,
        check=True,
    ).stdout
    frames = np.frombuffer(decoded, np.uint8).reshape(FRAMES, 120, 160, 4).astype(int)
    # then both halves are what they were, beside the edge that codecs blur
    assert np.abs(frames[:, :, :64, 3]).max() <= 2
    assert np.abs(frames[:, :, 96:, 3] - 255).max() <= 2
    assert np.abs(frames[..., :3] - 90).max() <= 3
