"""What a neighbour says against an enlarged frame."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.back_projection import back_projected_residuals, held_to_plausible
from model.data import shrink

from .conftest import shifted, texture


def shrunk(frame: Tensor) -> Tensor:
    return shrink((frame * 255).round().to(torch.uint8)).float() / 255


def test_a_neighbour_contradicts_a_wrong_enlargement_more_than_the_right_one() -> None:
    # given a scene that moves by a pixel and a half, its true frame, and a blurred guess of it
    truth = texture(96, 96, sides=(2, 8, 16))
    neighbour_lr = shrunk(shifted(truth, 1.5))
    guess = F.interpolate(shrunk(truth), scale_factor=2, mode="bicubic", antialias=True)

    # when both are compared with the neighbour
    of_truth, of_guess = (
        back_projected_residuals(center, neighbour_lr)[0][..., 8:-8, 8:-8] for center in (truth, guess)
    )

    # then the guess leaves more, and what it leaves points to where it is wrong
    error = (truth - guess)[..., 8:-8, 8:-8].flatten()
    assert of_guess.square().mean() > 2 * of_truth.square().mean()
    assert torch.corrcoef(torch.stack((error, of_guess.flatten())))[0, 1] > 0.1


def test_the_residual_is_float32_under_autocast_and_carries_no_gradient() -> None:
    center_sr = torch.rand(1, 3, 32, 48, requires_grad=True)

    with torch.autocast("cpu", torch.bfloat16):
        [residual] = back_projected_residuals(center_sr, torch.rand(1, 3, 16, 24))

    assert (residual.dtype, residual.shape, residual.requires_grad) == (torch.float32, (1, 3, 32, 48), False)


def test_a_residual_is_held_to_a_share_of_the_detail_around_it() -> None:
    # given a centre with detail on its left and none on its right, and residuals that are weak above and strong below
    generator = torch.Generator().manual_seed(2)
    center_sr = torch.full((1, 3, 64, 64), 0.5)
    center_sr[..., :32] += 0.1 * torch.randn(1, 3, 64, 32, generator=generator)
    residuals = 0.3 * torch.randn(1, 3, 64, 64, generator=generator)
    residuals[..., :32, :] *= 0.01

    # when they are held to what is plausible
    held = held_to_plausible(residuals, center_sr)

    # then weak ones beside detail stay, strong ones fade beyond that share, and where there is none nothing is left
    assert torch.equal(held[..., 8:20, 8:20], residuals[..., 8:20, 8:20])
    assert held[..., 44:56, 8:20].std() < 0.01 * residuals[..., 44:56, 8:20].std()
    assert held[..., 8:56, 48:56].abs().max() < 1e-6
