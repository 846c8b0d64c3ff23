"""What a neighbouring frame says against an enlarged frame, in the manner of iterative back-projection.

Irani and Peleg (*Improving Resolution by Image Registration*, 1991): were the enlarged centre right, then moving and
shrinking it would give the neighbour as it was recorded. What is left between the two shows where the enlargement
guessed wrong: a neighbour that moved by a fraction of a pixel has sampled the scene at other points. The plain
neighbour shows the same, but mixed with everything that the centre knows already.

Legend: B batch, H W low-resolution height and width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.alignment import estimate_motion, inverse_motion, sample, warp

SCALE = 2
# The cubic kernel of Keys (1981, a = -0.5) twice as wide, as bicubic shrinking by two has it, at whole pixels.
SHRINKING_TAPS = (-1 / 32, 0.0, 9 / 32, 1 / 2, 9 / 32, 0.0, -1 / 32)
# HAT errs in detail, and by a fraction of it. A residual that is locally stronger than this share of the detail around
# it comes from a motion misjudged, something hidden, a codec that changed its mind or another shot, and fades with the
# given power of how much too strong it is.
PLAUSIBLE_SHARE_OF_DETAIL = 0.35
FADING_POWER = 3
# Half the sides of the windows in which detail (what a small blur takes away) and strength are judged.
DETAIL_RADIUS_PX = 2
STRENGTH_RADIUS_PX = 4


def back_projected_residuals(center_sr: Tensor, *neighbours_lr: Tensor) -> list[Tensor]:
    """What each neighbour (B, 3, H, W) has more than `center_sr` (B, 3, 2H, 2W) foretells, on the centre's fine grid.

    Frames are in [0, 1]; each result is (B, 3, 2H, 2W), around zero: a few hundredths where the motion was found, more
    where something is hidden in one of the frames. Always float32; no gradient flows to the frames.
    """
    with torch.no_grad(), torch.autocast(center_sr.device.type, enabled=False):
        count = len(neighbours_lr)  # All neighbours at a time: the same numbers, sooner.
        neighbours = torch.cat(neighbours_lr).float()
        blurred_sr = blur_as_shrinking_does(center_sr.float()).repeat(count, 1, 1, 1)
        motion = estimate_motion(F.avg_pool2d(blurred_sr, SCALE), neighbours)
        foretold = sample(blurred_sr, inverse_motion(motion), mode="bicubic")
        fine_motion = F.interpolate(motion, scale_factor=SCALE, mode="bilinear", align_corners=False)
        residuals = warp(neighbours - foretold, fine_motion, mode="bicubic")
        return list(held_to_plausible(residuals, center_sr.float().repeat(count, 1, 1, 1)).chunk(count))


def held_to_plausible(residuals: Tensor, center_sr: Tensor) -> Tensor:
    """Residuals (B, 3, 2H, 2W), faded where they are stronger than the centre's own detail allows."""
    detail = local_strength(center_sr - box_mean(center_sr, DETAIL_RADIUS_PX))
    strength = local_strength(residuals)
    return residuals * (PLAUSIBLE_SHARE_OF_DETAIL * detail / (strength + 1e-6)).clamp(max=1) ** FADING_POWER


def local_strength(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 1, H, W): root mean square over colours and a window around each pixel."""
    return box_mean(images.square().mean(1, keepdim=True), STRENGTH_RADIUS_PX).sqrt()


def box_mean(images: Tensor, radius_px: int) -> Tensor:
    """Mean over a square around each pixel; edges are repeated."""
    return F.avg_pool2d(F.pad(images, (radius_px,) * 4, mode="replicate"), 2 * radius_px + 1, stride=1)


def blur_as_shrinking_does(frames: Tensor) -> Tensor:
    """(B, 3, 2H, 2W) without what is lost in shrinking by two."""
    kernel = torch.tensor(SHRINKING_TAPS, device=frames.device).repeat(3, 1)
    padded = F.pad(frames, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, None, None, :], groups=3), kernel[:, None, :, None], groups=3)
