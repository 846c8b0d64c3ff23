"""Image quality, in the two conventions of the field: RGB, and luma alone (Y) as most tables report.

Tensors are (B, 3, H, W) RGB in [0, 1]; results are one number per image, (B,).
"""

import torch
from torch import Tensor


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
    """Structural similarity of luma (Wang et al. 2004): Gaussian window of 11 px and sigma 1.5, data range 1.0."""
    # Here, not above: serving never needs torchmetrics and does not install it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    output, target = (_without_border(luma(images), border_px).double() for images in (output, target))
    per_image = structural_similarity_index_measure(output, target, data_range=1.0, reduction="none")
    assert isinstance(per_image, Tensor)
    return per_image


def _without_border(images: Tensor, border_px: int) -> Tensor:
    height, width = images.shape[-2:]
    if 2 * border_px >= min(height, width):
        raise ValueError(f"a border of {border_px} px leaves nothing of a {width}x{height} image")
    return images[..., border_px : height - border_px, border_px : width - border_px]
