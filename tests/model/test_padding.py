"""Padding mirrors as far as a mirror image reaches."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.padding import pad_to_multiple


@given(height=st.integers(1, 40), width=st.integers(1, 40), multiple=st.integers(1, 24))
def test_the_sides_become_multiples_and_the_frame_stays_in_its_corner(height: int, width: int, multiple: int) -> None:
    frames = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)

    padded = pad_to_multiple(frames, multiple)

    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple
    assert torch.equal(padded[..., :height, :width], frames)


def test_the_padding_is_a_mirror_image() -> None:
    frames = torch.rand(1, 3, 13, 14)

    assert torch.equal(pad_to_multiple(frames, 16), F.pad(frames, (0, 2, 0, 3), mode="reflect"))


@pytest.mark.parametrize(
    ("row", "expected"), [([1.0], [1, 1, 1, 1, 1, 1, 1, 1]), ([1.0, 2.0, 3.0], [1, 2, 3, 2, 1, 1, 1, 1])]
)
def test_beyond_the_mirror_image_the_last_pixel_is_repeated(row: list[float], expected: list[float]) -> None:
    padded = pad_to_multiple(torch.tensor(row).view(1, 1, 1, -1), 8)

    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 0].tolist() == expected
