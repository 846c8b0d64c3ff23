"""Grow a frame to the size a network needs, at its bottom and right only, so that cropping it back is one slice."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) at the bottom and right until height and width are multiples of `multiple`.

    The padding mirrors the frame. A mirror image is one pixel shorter than the frame itself, so what a frame smaller
    than its padding still lacks is filled by repeating the last row or column of that mirror image.
    """
    height, width = frames.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    mirrored_bottom, mirrored_right = min(bottom, height - 1), min(right, width - 1)
    if mirrored_bottom or mirrored_right:
        frames = F.pad(frames, (0, mirrored_right, 0, mirrored_bottom), mode="reflect")
    if mirrored_bottom < bottom or mirrored_right < right:
        frames = F.pad(frames, (0, right - mirrored_right, 0, bottom - mirrored_bottom), mode="replicate")
    return frames
