"""Flicker, against formulas written out by hand and videos whose flicker is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.alignment import estimate_motion
from model.metrics import not_occluded, temporal_difference_error, warping_error


def video(frames: int = 4, side: int = 24) -> Tensor:
    return torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(0))


def shifted(picture: Tensor, frames: int, speed_px: int) -> Tensor:
    """A picture that moves to the right."""
    return torch.stack([picture.roll(speed_px * t, dims=-1) for t in range(frames)])


def everywhere(frames: Tensor) -> Tensor:
    return torch.ones(len(frames) - 1, 1, *frames.shape[-2:], dtype=torch.bool)


def no_motion(frames: Tensor) -> Tensor:
    return torch.zeros(len(frames) - 1, 2, *frames.shape[-2:])


def test_a_static_video_does_not_flicker() -> None:
    still = video(1).expand(4, -1, -1, -1)

    assert warping_error(still, no_motion(still), everywhere(still), border_px=2).tolist() == pytest.approx([0, 0, 0])


def test_a_flickering_light_has_the_warping_error_worked_out_by_hand() -> None:
    # given a grey picture whose light goes on and off by 0.1
    flickering = torch.full((4, 3, 12, 12), 0.5)
    flickering[1::2] += 0.1

    # then each pair differs by 0.1 squared in three colours
    errors = warping_error(flickering, no_motion(flickering), everywhere(flickering), border_px=0)
    assert errors.tolist() == pytest.approx(3 * [3 * 0.01], abs=1e-6)


def test_a_moving_video_does_not_flicker_when_its_motion_is_known() -> None:
    # given a picture that moves to the right by two pixels
    moving = shifted(video(1)[0], 4, 2)
    motion = no_motion(moving)
    motion[:, 0] = 2

    # then following it nothing changes, and standing still everything does; what wraps around is in the border
    assert float(warping_error(moving, motion, everywhere(moving), border_px=8).max()) < 1e-9
    assert float(warping_error(moving, no_motion(moving), everywhere(moving), border_px=8).min()) > 0.1


def test_the_warping_error_is_that_of_a_loop_over_pixels() -> None:
    # given whole motions and some hidden pixels
    frames = video(3, 16)
    generator = torch.Generator().manual_seed(1)
    motion = torch.randint(-2, 3, (2, 2, 16, 16), generator=generator).float()
    seen_again = torch.rand(2, 1, 16, 16, generator=generator) > 0.3

    # when each pixel is compared with the one it moved to
    expected = []
    for t in range(2):
        errors = [
            sum((float(frames[t, c, y, x]) - float(frames[t + 1, c, y + dy, x + dx])) ** 2 for c in range(3))
            for y in range(3, 13)
            for x in range(3, 13)
            if seen_again[t, 0, y, x]
            for dx, dy in [motion[t, :, y, x].int().tolist()]
        ]
        expected.append(np.mean(errors))

    # then the two agree
    assert warping_error(frames, motion, seen_again, border_px=3).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_pair_that_has_nothing_in_common_has_no_warping_error() -> None:
    frames = video(2)

    assert warping_error(frames, no_motion(frames), ~everywhere(frames), border_px=0).isnan().all()


def test_what_is_covered_and_what_leaves_the_picture_is_not_seen_again() -> None:
    # given a left half that moves to the right by four pixels, over a right half that stands still
    forward = torch.zeros(1, 2, 16, 32)
    forward[:, 0, :, :16] = 4
    backward = torch.zeros(1, 2, 16, 32)
    backward[:, 0, :, 4:20] = -4

    seen = not_occluded(forward, backward)[0, 0, 8]

    # then the four columns that get covered are hidden, those that moved and those that never move are not
    assert not bool(seen[16:20].any())
    assert bool(seen[:15].all())
    assert bool(seen[21:].all())

    # and what moves beyond the edge is gone
    forward[:] = 0
    forward[:, 1] = 3
    assert not bool(not_occluded(forward, -forward)[0, 0, -3:].any())
    assert bool(not_occluded(forward, -forward)[0, 0, :-3].all())


def test_the_estimated_motion_of_the_truth_explains_the_truth_and_not_a_flicker() -> None:
    # given smooth waves that move by a pixel, and the same with a light that flickers
    t, y, x = torch.meshgrid(torch.arange(3), torch.arange(48), torch.arange(48), indexing="ij")
    waves = (0.5 + 0.3 * torch.sin((x - t) * 0.4) * torch.cos(y * 0.3)).unsqueeze(1).expand(-1, 3, -1, -1)
    flickering = waves + 0.05 * (torch.arange(3) % 2).view(3, 1, 1, 1)

    # when both follow the motion of the first
    motion, back = estimate_motion(waves[:-1], waves[1:]), estimate_motion(waves[1:], waves[:-1])
    seen_again = not_occluded(motion, back)
    truth, flicker = (
        float(warping_error(frames, motion, seen_again, border_px=4).mean()) for frames in (waves, flickering)
    )

    # then only the second has an error, near 0.05 squared in three colours
    assert truth < 0.0002
    assert flicker == pytest.approx(3 * 0.05**2, rel=0.1)


def test_the_error_of_change_is_that_of_numpy() -> None:
    frames, target = video(4), video(4).flip(0)

    change = np.diff(frames.double().numpy(), axis=0) - np.diff(target.double().numpy(), axis=0)
    expected = np.sqrt((change[..., 4:-4, 4:-4] ** 2).mean(axis=(1, 2, 3)))

    assert temporal_difference_error(frames, target, border_px=4).tolist() == pytest.approx(expected.tolist())


def test_a_constant_error_does_not_change_and_a_flickering_one_does() -> None:
    target = video(3)
    flickering = target.clone()
    flickering[1] += 0.1

    assert temporal_difference_error(target + 0.1, target, border_px=0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert temporal_difference_error(flickering, target, border_px=0).tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
