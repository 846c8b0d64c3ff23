"""Colours survive the way to RGB and back."""

import numpy as np
import pytest
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

from worker.contract.job import Container, VideoCodec
from worker.video.colour import FromRgb, PixelLayout, ToRgb, conversion_matrix, encoded_picture, pixel_layout
from worker.video.frames import Frame
from worker.video.values import Colour, Crop, Picture

LUMA_WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2


def picture(matrix: int, colour_range: int, bit_depth: int = 8, chroma_location: str = "left") -> Picture:
    return Picture(
        width=16,
        height=16,
        pixel_format="yuv420p" if bit_depth == 8 else "yuv420p10le",
        bit_depth=bit_depth,
        colour=Colour(
            matrix=matrix,
            range=colour_range,
            primaries=2,
            transfer=2,
            conversion=conversion_matrix(matrix, 16),
            chroma_location=chroma_location,
        ),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )


def yuv_of(rgb: np.ndarray, matrix: int, colour_range: int, bit_depth: int) -> list[int]:
    """H.273's equations, with nothing of FFmpeg."""
    red_weight, blue_weight = LUMA_WEIGHTS[matrix]
    luma = red_weight * rgb[0] + (1 - red_weight - blue_weight) * rgb[1] + blue_weight * rgb[2]
    blue_difference = (rgb[2] - luma) / (2 * (1 - blue_weight))
    red_difference = (rgb[0] - luma) / (2 * (1 - red_weight))
    step, top = 2 ** (bit_depth - 8), 2**bit_depth - 1
    if colour_range == LIMITED:
        return [
            round(step * (16 + 219 * luma)),
            round(step * (128 + 224 * blue_difference)),
            round(step * (128 + 224 * red_difference)),
        ]
    return [
        round(top * luma),
        *(min(top, round(128 * step + top * value)) for value in (blue_difference, red_difference)),
    ]


def flat_frame(levels: list[int], shape: Picture) -> VideoFrame:
    frame = VideoFrame(shape.width, shape.height, shape.pixel_format)
    dtype = np.uint8 if shape.bit_depth == 8 else np.uint16
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(np.full(plane.buffer_size // np.dtype(dtype).itemsize, level, dtype).tobytes())
    return frame


@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("bit_depth", [8, 10])
def test_a_flat_colour_becomes_its_rgb_and_comes_back(matrix: int, colour_range: int, bit_depth: int) -> None:
    source = picture(matrix, colour_range, bit_depth)
    to_rgb, from_rgb = ToRgb(source), FromRgb(encoded_picture(source, 2, VideoCodec.H264, Container.MP4)[0])
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    chance = np.random.default_rng(0)
    for _ in range(50):
        colour = chance.random(3)
        levels = yuv_of(colour, matrix, colour_range, bit_depth)
        rgb = to_rgb(flat_frame(levels, source)).rgb
        white = 255 if bit_depth == 8 else 65535
        assert np.abs(rgb / white - colour).max() < 2.5 / 255
        back = from_rgb(Frame(rgb.repeat(2, 0).repeat(2, 1)))
        for plane, level in zip(back.planes, levels, strict=True):
            found = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]
            assert np.abs(found.astype(int) - level).max() <= 1


@pytest.mark.parametrize("location", ["left", "topleft", "center", "unspecified"])
def test_chroma_does_not_wander_on_the_way(location: str) -> None:
    # given a picture that is red on the left half, through an edge of two chroma samples' width
    source = picture(1, LIMITED, chroma_location=location)
    source = source.model_copy(update={"width": 64, "height": 64})
    rgb = np.full((64, 64, 3), 90, np.uint8)
    rgb[:, :32] = (180, 60, 60)
    encode, decode = FromRgb(source), ToRgb(source)
    # when it goes to 4:2:0 and back four times
    travelled = Frame(rgb)
    for _ in range(4):
        travelled = decode(encode(travelled))
    # then its edge is blurred, but where it was
    redness = travelled.rgb[..., 0].astype(float) - travelled.rgb[..., 1]
    center = redness[:, 20:44].sum(axis=1).mean() / 120
    assert abs(center - 12) < 0.6


def test_rgb_video_gets_a_matrix_that_yuv_can_have_and_full_range() -> None:
    source = picture(0, FULL).model_copy(update={"pixel_format": "gbrp"})
    encoded, losses = encoded_picture(source, 2, VideoCodec.H264, Container.MP4)
    assert (encoded.pixel_format, encoded.colour.matrix, encoded.colour.range) == ("yuv444p", 6, FULL)
    assert losses == ()


BARS = [
    [level * part for part in parts]
    for level in (0.75, 1)
    for parts in ((1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0))
]
BAR_PX = 16


@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize(
    "pixel_format",
    [
        "yuv420p",
        "yuv422p",
        "yuv444p",
        "yuv411p",
        "yuv440p",
        "yuv410p",
        "yuv422p10le",
        "yuv444p10le",
        "yuv420p12le",
        "yuv444p16le",
        "gray",
        "gray10le",
        "gray16le",
    ],
)
def test_a_chart_of_bars_comes_back_within_one_level(matrix: int, colour_range: int, pixel_format: str) -> None:
    # given bars of pure colours, written by H.273's equations
    layout = VideoFormat(pixel_format, 8, 8)
    depth = layout.components[0].bits
    source = picture(matrix, colour_range).model_copy(
        update={"width": BAR_PX * len(BARS), "height": 32, "pixel_format": pixel_format, "bit_depth": depth}
    )
    levels = [yuv_of(np.array(bar), matrix, colour_range, depth) for bar in BARS]
    frame = VideoFrame(source.width, source.height, pixel_format)
    for number, plane in enumerate(frame.planes):
        row = np.repeat([level[number] for level in levels], plane.width // len(BARS))
        write_plane(plane, np.tile(row, (plane.height, 1)), depth)
    # when they go through RGB to the format of a codec that keeps everything
    encoded, losses = encoded_picture(source, 2, VideoCodec.FFV1, Container.MKV)
    assert losses == ()
    assert encoded.bit_depth == depth
    rgb = ToRgb(source)(frame).rgb
    back = FromRgb(encoded)(Frame(rgb.repeat(2, 0).repeat(2, 1)))
    # then every bar has its levels, beside its edges; of more than 10 bits, within an eighth of a level of 8 bits
    allowed = max(1, 2 ** (depth - 8) / 8)
    for number, plane in enumerate(back.planes):
        found = read_plane(plane, depth)
        width = plane.width // len(BARS)
        for bar, level in enumerate(levels):
            inside = found[:, bar * width + width // 2 - 1 : bar * width + width // 2 + 1]
            assert np.abs(inside.astype(int) - level[number]).max() <= allowed


@pytest.mark.parametrize("source_format", ["gbrp", "rgb24", "bgra", "gbrp10le"])
def test_rgb_comes_back_from_yuv_within_one_level(source_format: str) -> None:
    # given pure and random colours in RGB
    depth = VideoFormat(source_format, 8, 8).components[0].bits
    source = picture(0, FULL).model_copy(update={"pixel_format": source_format, "bit_depth": depth, "height": 8})
    encoded, losses = encoded_picture(source, 2, VideoCodec.H264, Container.MKV)
    assert (encoded.colour.range, losses) == (FULL, ())
    white = 255 if depth == 8 else 65535
    colours = np.concatenate([np.array(BARS), np.random.default_rng(0).random((112, 3))])
    rgb = np.rint(colours * white).astype(np.uint8 if depth == 8 else np.uint16).reshape(8, 16, 3)
    enlarged = Frame(rgb.repeat(2, 0).repeat(2, 1))
    # when they become YUV, as players will read it
    back = ToRgb(encoded)(FromRgb(encoded)(enlarged))
    # then they are the same
    difference = np.abs(back.rgb.astype(int) - enlarged.rgb) / white * (2**depth - 1)
    assert difference.max() < 2 if depth == 10 else difference.max() <= 1


@pytest.mark.parametrize(
    ("pixel_format", "codec", "container"),
    [
        ("yuva420p", VideoCodec.VP9, Container.WEBM),
        ("yuva420p", VideoCodec.FFV1, Container.MKV),
        ("yuva444p", VideoCodec.FFV1, Container.MKV),
        ("yuva422p12le", VideoCodec.FFV1, Container.MKV),
        ("yuva444p10le", VideoCodec.PRORES, Container.MOV),
        ("bgra", VideoCodec.FFV1, Container.MKV),
        ("gbrap10le", VideoCodec.FFV1, Container.MKV),
        ("gbrap12le", VideoCodec.FFV1, Container.MKV),
        ("rgba64le", VideoCodec.PNG, Container.ZIP),
        ("ya8", VideoCodec.FFV1, Container.MKV),
        ("ya16le", VideoCodec.PNG, Container.ZIP),
    ],
)
def test_transparency_comes_back_exactly_and_does_not_touch_the_colours(
    pixel_format: str, codec: VideoCodec, container: Container
) -> None:
    # given every step of transparency over one colour
    depth = VideoFormat(pixel_format, 8, 8).components[0].bits
    shape = picture(1, LIMITED).model_copy(
        update={"pixel_format": pixel_format, "bit_depth": depth, "width": 64, "height": 64, "has_alpha": True}
    )
    encoded, losses = encoded_picture(shape, 1, codec, container)
    assert losses == ()
    assert encoded.has_alpha
    steps = 2**depth
    white = 255 if depth == 8 else 65535
    alpha = np.rint(np.linspace(0, steps - 1, 64 * 64).round() * white / (steps - 1)).reshape(64, 64)
    dtype = np.uint8 if depth == 8 else np.uint16
    grey = pixel_format.startswith("ya")
    rgb = np.empty((64, 64, 3), dtype)
    rgb[:] = (white // 3,) * 3 if grey else (white // 2, white // 3, white // 4)
    # when it is written for the codec and read as its decoder gives it
    back = ToRgb(encoded)(FromRgb(encoded)(Frame(rgb, alpha.astype(dtype))))
    # then each pixel is as transparent as it was, and the colour is the same also where nobody sees it
    assert back.alpha is not None
    assert np.array_equal(np.rint(back.alpha * ((steps - 1) / white)), np.rint(alpha * ((steps - 1) / white)))
    assert np.abs(back.rgb / white - rgb / white).max() <= 1.5 / 255


@pytest.mark.parametrize(
    ("pixel_format", "expected"),
    [
        ("yuv420p", PixelLayout(False, True, 2, 8, False)),
        ("yuvj422p", PixelLayout(False, True, 4, 8, False)),
        ("yuv411p", PixelLayout(False, True, 4, 8, False)),
        ("yuv440p", PixelLayout(False, True, 8, 8, False)),
        ("yuv410p", PixelLayout(False, True, 2, 8, False)),
        ("p010le", PixelLayout(False, True, 2, 10, False)),
        ("yuv420p9le", PixelLayout(False, True, 2, 10, False)),
        ("yuv420p14le", PixelLayout(False, True, 2, 16, False)),
        ("gray", PixelLayout(False, False, 0, 8, False)),
        ("monob", PixelLayout(False, False, 0, 8, False)),
        ("ya16le", PixelLayout(True, False, 0, 16, False)),
        ("pal8", PixelLayout(True, True, 8, 8, True)),
        ("rgb555le", PixelLayout(False, True, 8, 8, True)),
        ("gbrap12le", PixelLayout(True, True, 8, 12, True)),
        ("gbrpf32le", PixelLayout(False, True, 8, 32, True)),
    ],
)
def test_the_layout_of_a_pixel_format_says_what_it_holds(pixel_format: str, expected: PixelLayout) -> None:
    assert pixel_layout(pixel_format) == expected


def test_untagged_grey_is_of_full_range_and_says_so() -> None:
    source = picture(2, 0).model_copy(update={"pixel_format": "gray"})
    assert encoded_picture(source, 2, VideoCodec.H264, Container.MP4)[0].colour.range == FULL


def test_prores_is_of_limited_range() -> None:
    encoded, losses = encoded_picture(picture(1, FULL), 2, VideoCodec.PRORES, Container.MOV)
    assert (encoded.colour.range, losses) == (LIMITED, ())


def write_plane(plane: VideoPlane, levels: np.ndarray, depth: int) -> None:
    dtype = np.uint8 if depth == 8 else np.uint16
    rows = np.zeros((plane.height, plane.line_size // np.dtype(dtype).itemsize), dtype)
    rows[:, : plane.width] = levels
    plane.update(rows.tobytes())


def read_plane(plane: VideoPlane, depth: int) -> np.ndarray:
    dtype = np.uint8 if depth == 8 else np.uint16
    return np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width]


def test_the_clean_aperture_grows_with_the_picture() -> None:
    source = picture(1, LIMITED).model_copy(update={"crop": Crop(left=1, right=2, top=3, bottom=4)})
    encoded, _ = encoded_picture(source, 2, VideoCodec.H264, Container.MP4)
    assert encoded.crop == Crop(left=2, right=4, top=6, bottom=8)
