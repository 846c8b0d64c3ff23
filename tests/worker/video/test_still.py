"""A still shows what a player shows: turned, with square pixels, and close enough to compare by eye."""

import io
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.worker.conftest import numbered_picture
from tests.worker.video.test_encode import source_picture
from worker.video.still import MAX_PIXELS, MAX_SIDE_PX, jpeg

Image = npt.NDArray[np.uint8]

# Rows and columns of the picture that tells its corners apart: red, green, blue and white, from the upper left on.
CORNERS = {"upper left": (255, 0, 0), "upper right": (0, 255, 0), "lower left": (0, 0, 255), "lower right": (255,) * 3}


def four_corners() -> Image:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48], image[:32, 48:] = CORNERS["upper left"], CORNERS["upper right"]
    image[32:, :48], image[32:, 48:] = CORNERS["lower left"], CORNERS["lower right"]
    return image


def decoded(content: bytes | None) -> Image:
    assert content is not None
    with av.open(io.BytesIO(content)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8)


def corners_of(image: Image) -> list[str]:
    """Which corners of the stored picture stand at the four corners, from the upper left on."""
    height, width, _ = image.shape
    places = [(8, 8), (8, width - 8), (height - 8, 8), (height - 8, width - 8)]
    colours = [image[place].astype(int) for place in places]
    return [min(CORNERS, key=lambda name: np.abs(np.array(CORNERS[name]) - colour).sum()) for colour in colours]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_still_is_close_to_the_frame(dtype: type) -> None:
    frame = numbered_picture(3, 320, 240)
    deep = frame.astype(dtype) * (257 if dtype is np.uint16 else 1)
    found = decoded(jpeg(deep, source_picture("yuv420p")))
    assert found.shape == frame.shape
    error = (found.astype(float) - frame) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 36


def test_colours_are_kept_at_every_pixel() -> None:
    # given a pixel of another colour beside every pixel, which fewer samples of colour would mix
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, ::2, 0], frame[:, 1::2, 2] = 200, 200
    found = decoded(jpeg(frame, source_picture("yuv420p")))
    assert found[:, 2:-2:2, 0].mean() > 150 > 50 > found[:, 3:-2:2, 0].mean()


@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), ["upper left", "upper right", "lower left", "lower right"]),
        ((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30), ["lower left", "upper left", "lower right", "upper right"]),
        ((0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30), ["upper right", "lower right", "upper left", "lower left"]),
        ((-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), ["lower right", "lower left", "upper right", "upper left"]),
        ((-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), ["upper right", "upper left", "lower right", "lower left"]),
    ],
    ids=["as it is", "a quarter clockwise", "a quarter counterclockwise", "upside down", "mirrored"],
)
def test_a_still_is_turned_as_players_turn_it(matrix: tuple[int, ...], seen: list[str]) -> None:
    picture = source_picture("yuv420p").model_copy(update={"display_matrix": matrix})
    found = decoded(jpeg(four_corners(), picture))
    assert found.shape[:2] == ((96, 64) if matrix[0] == 0 else (64, 96))
    assert corners_of(found) == seen


@pytest.mark.parametrize(("pixel", "size"), [(Fraction(4, 3), (64, 128)), (Fraction(2, 3), (96, 96))])
def test_pixels_become_square_and_none_is_lost(pixel: Fraction, size: tuple[int, int]) -> None:
    picture = source_picture("yuv420p").model_copy(update={"sample_aspect_ratio": pixel})
    assert decoded(jpeg(four_corners(), picture)).shape[:2] == size


def test_what_is_larger_than_a_jpeg_can_be_has_none() -> None:
    assert jpeg(np.zeros((2, MAX_SIDE_PX + 2, 3), np.uint8), source_picture("yuv420p")) is None


def test_a_stranger_whose_pixels_are_said_to_be_flat_has_no_picture_of_a_gigabyte_made() -> None:
    # given a frame that fits, of pixels so flat that it nearly is the most
    height, width = 960, 1600
    flat = source_picture("yuv420p").model_copy(update={"sample_aspect_ratio": Fraction(MAX_SIDE_PX // width)})
    assert width * height * (MAX_SIDE_PX // width) < MAX_PIXELS < 2 * width * height * (MAX_SIDE_PX // width)

    # then twice as tall it gets none
    assert jpeg(np.zeros((2 * height, width, 3), np.uint8), flat) is None
