"""Image quality, in the two conventions of the field: RGB, and luma alone (Y) as most tables report; and flicker.

Tensors are (B, 3, H, W) RGB in [0, 1]; results are one number per image, (B,), or per pair of consecutive frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.alignment import warp

# Of structural similarity (Wang et al. 2004): the window, and what keeps small denominators from mattering.
SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03

# Sundaram et al. (ECCV 2010): a pixel is occluded where going there and back misses its start by more than this,
# squared px: a share of both squared motions, and a constant.
OCCLUSION_SHARE = 0.01
OCCLUSION_PX2 = 0.5


def luma(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] to (B, 1, H, W) Y of BT.601, 16/255 to 235/255, as MATLAB's rgb2ycbcr."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return ((rgb * weights).sum(1, keepdim=True) + 16) / 255


def psnr(output: Tensor, target: Tensor, *, border_px: int) -> Tensor:
    """Peak signal-to-noise ratio in dB over all channels, peak 1.0; `border_px` pixels at each edge are left out.

    Identical images give infinity.
    """
    error = (_without_border(output, border_px) - _without_border(target, border_px)).double()
    return -10 * error.square().mean(dim=(1, 2, 3)).log10()


def psnr_y(output: Tensor, target: Tensor, *, border_px: int) -> Tensor:
    """PSNR in dB of luma alone, still against a peak of 1.0 (255), as the tables of the field do."""
    return psnr(luma(output), luma(target), border_px=border_px)


def ssim_y(output: Tensor, target: Tensor, *, border_px: int) -> Tensor:
    """Structural similarity of luma (Wang et al. 2004): Gaussian window of 11 px and sigma 1.5, data range 1.0.

    The mean over all pixels, edges mirrored. What is left without the border must be larger than the window.
    """
    # Of our own and not torchmetrics', which the losses use: its window is not separable, and takes most of the time
    # of an evaluation. In float64, as variances are small differences of large numbers.
    x, y = (_without_border(luma(images), border_px).double() for images in (output, target))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _gaussian_mean(torch.cat((x, y, x * x, y * y, x * y))).chunk(5)
    variances = mean_xx - mean_x**2 + mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_K1**2) / (mean_x**2 + mean_y**2 + SSIM_K1**2)
    structure = (2 * covariance + SSIM_K2**2) / (variances + SSIM_K2**2)
    return (luminance * structure).mean((1, 2, 3))


def warping_error(frames: Tensor, motion: Tensor, seen_again: Tensor, *, border_px: int) -> Tensor:
    """E_warp of Lai et al. (ECCV 2018, equations 10 and 11) of each pair of T consecutive frames, (T - 1,).

    The squared difference between a frame and the next one warped back onto it, summed over the three colours, mean
    over the pixels that are `seen_again`; 0 is no flicker, and a blurred video flickers less than the truth does.
    `motion` (T - 1, 2, H, W) in px goes from each frame to the next and `seen_again` (T - 1, 1, H, W) says where; both
    are taken from the true frames, for all methods alike. NaN where no pixel is seen again.
    """
    difference = (frames[:-1] - warp(frames[1:], motion)).double().square().sum(1, keepdim=True)
    counted = _without_border(seen_again, border_px).double()
    return (_without_border(difference, border_px) * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3))


def not_occluded(forward: Tensor, backward: Tensor) -> Tensor:
    """(B, 1, H, W) bool: which pixels of a frame are still seen in the next one.

    `forward` and `backward` (B, 2, H, W) are the motion to the next frame and back. A pixel counts if the way there and
    back ends near its start (Sundaram et al., ECCV 2010), and if it does not leave the picture.
    """
    returned = warp(backward, forward)
    missed = (forward + returned).square().sum(1, keepdim=True)
    allowed = OCCLUSION_SHARE * (forward.square() + returned.square()).sum(1, keepdim=True) + OCCLUSION_PX2
    height, width = forward.shape[-2:]
    x = torch.arange(width, device=forward.device) + forward[:, :1]
    y = torch.arange(height, device=forward.device)[:, None] + forward[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return (missed <= allowed) & inside


def temporal_difference_error(frames: Tensor, target: Tensor, *, border_px: int) -> Tensor:
    """The dtSSD of Erofeev et al. (BMVC 2015), on RGB, of each pair of T consecutive frames, (T - 1,).

    The root of the mean squared difference between the change from frame to frame and the true change. Unlike the
    warping error it needs no motion, and does not reward blur.
    """
    error = _without_border(frames - target, border_px).double()
    return error.diff(dim=0).square().mean((1, 2, 3)).sqrt()


def _without_border(images: Tensor, border_px: int) -> Tensor:
    height, width = images.shape[-2:]
    if 2 * border_px >= min(height, width):
        raise ValueError(f"a border of {border_px} px leaves nothing of a {width}x{height} image")
    return images[..., border_px : height - border_px, border_px : width - border_px]


def _gaussian_mean(images: Tensor) -> Tensor:
    """The mean of (B, 1, H, W) in SSIM's window around each pixel, edges mirrored."""
    radius = SSIM_WINDOW_PX // 2
    distances = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(distances**2) / (2 * SSIM_SIGMA_PX**2))
    weights = weights / weights.sum()
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
