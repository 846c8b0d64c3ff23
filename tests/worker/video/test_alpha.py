"""Transparency is enlarged by Lanczos, and what is plain stays plain."""

import numpy as np
import pytest

from worker.video.alpha import enlarge_alpha

SIZES = [(1, 1), (2, 2), (5, 3), (7, 1), (9, 17), (48, 64)]


def lanczos_weights(size: int, scale: int) -> np.ndarray:
    """(scale * size, size): the textbook's kernel with three lobes; beyond an edge, its last pixel goes on."""
    weights = np.zeros((scale * size, size))
    for row in range(scale * size):
        center = (row + 0.5) / scale - 0.5
        for place in range(int(np.floor(center)) - 3, int(np.floor(center)) + 5):
            distance = place - center
            if abs(distance) < 3:
                weights[row, min(max(place, 0), size - 1)] += np.sinc(distance) * np.sinc(distance / 3)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_plain_surface_stays_exactly_what_it_is(size: tuple[int, int], dtype: type) -> None:
    height, width = size
    full = int(np.iinfo(dtype).max)
    for level in (0, 1, full // 3, full // 2, full - 1, full):
        enlarged = enlarge_alpha(np.full(size, level, dtype), 2)
        assert enlarged.dtype == dtype
        assert enlarged.shape == (2 * height, 2 * width)
        assert (enlarged == level).all(), level


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 1), (np.uint16, 128)])
def test_transparency_is_enlarged_by_lanczos(dtype: type, tolerance: int) -> None:
    # given any transparency of odd size, not so rough that the filter overshoots the range and is clipped between axes
    full = int(np.iinfo(dtype).max)
    alpha = np.random.default_rng(4).integers(full // 3, full // 2, (23, 31), dtype=dtype, endpoint=True)
    # when it is enlarged, then the textbook's formula gives the same but for FFmpeg's fixed-point weights
    expected = lanczos_weights(23, 2) @ alpha.astype(float) @ lanczos_weights(31, 2).T
    difference = np.abs(enlarge_alpha(alpha, 2).astype(float) - expected)
    assert difference.max() <= tolerance


def test_frames_of_two_videos_in_turn_do_not_disturb_each_other() -> None:
    small, large = np.full((4, 6), 7, np.uint8), np.full((8, 10), 200, np.uint8)
    for _ in range(3):
        assert (enlarge_alpha(small, 2) == 7).all()
        assert (enlarge_alpha(large, 2) == 200).all()


def test_an_array_that_is_a_view_is_enlarged_as_its_copy() -> None:
    # given the alpha of an interleaved picture, whose pixels do not lie side by side
    rgba = np.random.default_rng(5).integers(0, 255, (12, 16, 4), dtype=np.uint8, endpoint=True)
    assert np.array_equal(enlarge_alpha(rgba[..., 3], 2), enlarge_alpha(rgba[..., 3].copy(), 2))
