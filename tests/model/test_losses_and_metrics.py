"""Losses and metrics against formulas written elsewhere, and against what is known of their limits."""

import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from model.metrics import luma, psnr, psnr_y, ssim_y
from model.training.losses import encoder_loss, mae, mae_ssim, mse
from model.unet import EncodedFrames


def two_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 40, 32, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def independent_ssim(output: np.ndarray, target: np.ndarray) -> float:
    """scikit-image's SSIM of (H, W) images, averaged over all pixels of images mirrored at their edges."""
    mirrored = (np.pad(image, 8, mode="reflect") for image in (output, target))
    _, ssim_map = structural_similarity(
        *mirrored, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return float(ssim_map[8:-8, 8:-8].mean())


def test_mse_and_mae_are_those_worked_out_by_hand() -> None:
    output, target = torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.0, 0.0]]]])

    assert mse(output, target).item() == pytest.approx(1.25 / 3)
    assert mae(output, target).item() == pytest.approx(0.5)


def test_mae_ssim_is_the_papers_equation_with_the_range_of_its_tensors() -> None:
    # given an independent SSIM, whose data range is 1
    output, target = two_images()
    ssim = float(np.mean([independent_ssim(output[0, c].numpy(), target[0, c].numpy()) for c in range(3)]))

    for alpha in (0.0, 0.3, 0.8, 1.0):
        expected = alpha * float((output - target).abs().mean()) + (1 - alpha) * (1 - ssim)
        assert mae_ssim(output, target, alpha).item() == pytest.approx(expected, abs=1e-4)


def test_identical_images_lose_nothing() -> None:
    _, target = two_images()

    assert mse(target, target).item() == mae(target, target).item() == 0
    assert mae_ssim(target, target, 0.5).item() == pytest.approx(0, abs=1e-6)
    assert psnr(target, target, border_px=0).item() == math.inf
    assert ssim_y(target, target, border_px=0).item() == pytest.approx(1)


def test_the_structural_part_of_the_loss_has_a_gradient_that_matters() -> None:
    output, target = two_images()
    output.requires_grad_()

    torch.autograd.backward(mae_ssim(output, target, 0.0))

    assert output.grad is not None
    assert float(output.grad.abs().mean()) > 1e-5


def test_with_the_published_data_range_of_255_the_structural_part_nearly_vanishes() -> None:
    # given images that differ plainly: by the right range they lose more than a tenth of SSIM
    output, target = two_images()
    right, published = (mae_ssim(output, target, 0.0, data_range).item() for data_range in (1.0, 255.0))

    # then by the range of the published code it is as good as nothing, there as in scikit-image
    mirrored = (np.pad(image[0, 0].numpy(), 8, mode="reflect") for image in (output, target))
    independent = 1 - structural_similarity(
        *mirrored, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert right > 0.05
    assert published < 1e-3
    assert published == pytest.approx(independent, abs=1e-3)
    # and a loss of any alpha is then alpha times the MAE
    assert mae_ssim(output, target, 0.8, 255.0).item() == pytest.approx(0.8 * mae(output, target).item(), rel=0.01)


def test_the_encoder_loss_is_equation_11() -> None:
    # given features of the three frames
    output, target = two_images()
    generator = torch.Generator().manual_seed(1)
    previous, center, following = (torch.randn(1, 8, 2, 3, generator=generator) for _ in range(3))
    encoded = EncodedFrames([], center, (previous, following))

    for alpha in (0.0, 0.02, 0.1):
        # when it is worked out by numpy
        to_next = np.abs(following.numpy() - center.numpy()).mean()
        to_previous = np.abs(center.numpy() - previous.numpy()).mean()
        expected = np.abs(output.numpy() - target.numpy()).mean() + alpha * to_next + (0.1 - alpha) * to_previous

        # then it is the same
        assert encoder_loss(output, target, encoded, alpha).item() == pytest.approx(float(expected), rel=1e-5)


def test_the_encoder_loss_of_three_equal_frames_is_the_mae() -> None:
    output, target = two_images()
    same = torch.ones(1, 8, 2, 3)

    assert encoder_loss(output, target, EncodedFrames([], same, (same, same)), 0.05) == mae(output, target)


def test_an_alpha_beyond_equation_11_is_refused() -> None:
    output, target = two_images()
    same = torch.ones(1, 8, 2, 3)

    with pytest.raises(ValueError, match=r"alpha is 0\.8: the encoder loss takes 0 to 0\.1"):
        encoder_loss(output, target, EncodedFrames([], same, (same, same)), 0.8)


def test_psnr_agrees_with_scikit_image() -> None:
    output, target = two_images()

    expected = peak_signal_noise_ratio(target[0].numpy(), output[0].numpy(), data_range=1.0)

    assert psnr(output, target, border_px=0).item() == pytest.approx(expected, abs=1e-4)


def test_a_constant_error_has_the_psnr_worked_out_by_hand() -> None:
    target = torch.full((2, 3, 8, 8), 0.5)

    assert psnr(target + 0.1, target, border_px=0).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_luma_is_the_one_of_scikit_image() -> None:
    output, _ = two_images()

    expected = rgb2ycbcr(output[0].permute(1, 2, 0).double().numpy())[..., 0] / 255

    assert float((luma(output.double())[0, 0] - torch.from_numpy(expected)).abs().max()) < 1e-6


def test_ssim_of_luma_agrees_with_scikit_image() -> None:
    output, target = two_images()
    expected = independent_ssim(*(luma(image.double())[0, 0].numpy() for image in (output, target)))

    assert ssim_y(output, target, border_px=0).item() == pytest.approx(expected, abs=1e-5)


def test_the_border_is_left_out() -> None:
    # given an error in the outermost pixels only
    _, target = two_images()
    output = target.clone()
    output[..., 0, :] = 0

    assert psnr_y(output, target, border_px=1).item() == math.inf
    assert psnr_y(output, target, border_px=0).item() < 40


def test_a_border_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a border of 4 px leaves nothing of a 8x8 image"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), border_px=4)
