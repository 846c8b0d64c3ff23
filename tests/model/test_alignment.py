"""Motion between two frames, and frames sampled along it."""

import pytest
import torch

from model.alignment import estimate_motion, inverse_motion, warp

from .conftest import shifted, texture


@pytest.mark.parametrize(("x_px", "y_px"), [(0.25, 0.0), (-0.5, 0.75), (3.3, -2.6), (7.0, 5.0)])
def test_the_motion_of_a_moved_texture_is_found_to_a_tenth_of_a_pixel(x_px: float, y_px: float) -> None:
    # given two frames of which the second is the first, moved
    reference = texture(96, 128)
    other = shifted(reference, x_px, y_px)

    # when their motion is estimated
    motion = estimate_motion(reference, other)

    # then it is that movement, away from the edges, over which texture came in
    inner = motion[..., 16:-16, 16:-16]
    error = (inner - torch.tensor([x_px, y_px]).view(1, 2, 1, 1)).norm(dim=1)
    assert error.median() < 0.1


def test_frames_that_are_equal_or_flat_do_not_move() -> None:
    frame = texture(40, 56)

    assert estimate_motion(frame, frame).abs().max() < 1e-4
    assert estimate_motion(torch.full_like(frame, 0.5), torch.full_like(frame, 0.5)).abs().max() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (13, 47)])
def test_frames_of_any_size_have_a_motion(height: int, width: int) -> None:
    motion = estimate_motion(torch.rand(2, 3, height, width), torch.rand(2, 3, height, width))

    assert motion.shape == (2, 2, height, width)
    assert motion.isfinite().all()


def test_a_motion_turned_around_leads_back() -> None:
    # given a motion that changes smoothly from place to place
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    motion = torch.stack((1.5 + 0.5 * torch.sin(y / 9), torch.cos(x / 11)))[None]

    # when one goes along it and back
    there_and_back = warp(inverse_motion(motion), motion) + motion

    # then one is where one was, away from the edges
    assert there_and_back[..., 4:-4, 4:-4].abs().max() < 0.1


def test_one_frame_of_a_batch_does_not_change_the_motion_of_another() -> None:
    reference, other = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 24, 24)
    changed = torch.stack((other[0], torch.rand(3, 24, 24)))

    assert torch.equal(estimate_motion(reference, other)[0], estimate_motion(reference, changed)[0])


def test_a_frame_sampled_on_a_finer_grid_lies_where_it_lay() -> None:
    # given a frame and no motion, on a grid twice as fine
    ramp = torch.arange(8.0).repeat(6, 1)[None, None]

    # when it is warped
    fine = warp(ramp, torch.zeros(1, 2, 12, 16))

    # then its pixels lie a quarter of a pixel beside the coarse ones
    assert fine.shape == (1, 1, 12, 16)
    assert torch.allclose(fine[0, 0, 0, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]))
