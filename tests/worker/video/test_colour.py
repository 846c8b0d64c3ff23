"""Colours survive the way to RGB and back."""

import numpy as np
import pytest
from av.video.frame import VideoFrame

from worker.contract.job import Container, VideoCodec
from worker.video.colour import FromRgb, ToRgb, conversion_matrix, encoded_picture
from worker.video.frames import Frame
from worker.video.values import Colour, Picture

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
    dtype, level_of_8_bits = (np.uint8, 1) if bit_depth == 8 else (np.uint16, 4)
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
            assert np.abs(found.astype(int) - level).max() <= level_of_8_bits


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
