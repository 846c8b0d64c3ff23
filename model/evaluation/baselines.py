"""The plain enlargements that a network must beat: (B, C, H, W) of any range to (B, C, 2H, 2W), not clamped."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import SCALE


def nearest(lr: Tensor) -> Tensor:
    """Every pixel becomes four of the same colour."""
    return F.interpolate(lr, scale_factor=SCALE, mode="nearest")


def bicubic(lr: Tensor) -> Tensor:
    """Bicubic x2 with Keys' a = -0.5, as MATLAB and Pillow. Torch uses that value where it antialiases, else -0.75."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", antialias=True)


def lanczos(lr: Tensor) -> Tensor:
    """Lanczos x2 with three lobes, edges repeated."""
    lobes = 3
    # Seen from an input pixel the two output pixels lie a quarter before and a quarter after it.
    kernels = []
    for offset in (-0.25, 0.25):
        distances = [tap - offset for tap in range(-lobes, lobes + 1)]
        weights = [_sinc(d) * _sinc(d / lobes) if abs(d) < lobes else 0.0 for d in distances]
        kernels.append([weight / sum(weights) for weight in weights])
    # Every output phase is an outer product; colours are filtered one by one.
    kernel = torch.tensor(kernels, dtype=lr.dtype, device=lr.device)
    phases = torch.einsum("iy,jx->ijyx", kernel, kernel).reshape(4, 1, 2 * lobes + 1, 2 * lobes + 1)
    batch, channels, height, width = lr.shape
    padded = F.pad(lr, (lobes,) * 4, mode="replicate").reshape(
        batch * channels, 1, height + 2 * lobes, width + 2 * lobes
    )
    return F.pixel_shuffle(F.conv2d(padded, phases), SCALE).reshape(batch, channels, SCALE * height, SCALE * width)


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)
