"""Where the pixels of one frame lie in another: dense motion without weights, and frames sampled along it.

The motion is that of Lucas and Kanade (IJCAI 1981) for every pixel, from coarse to fine on an image pyramid as in
Bouguet (2001). It is a fixed computation on luma: nothing is learnt, so it works on any material from the first day,
and the same frames give the same motion everywhere.

Legend: B batch, C channels, H W height and width. Motion is (B, 2, H, W) in px of the frames it was estimated on, x
before y: what lies at p in `reference` lies at p + motion(p) in `other`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The coarsest level of the pyramid keeps at least so many pixels on its shorter side.
COARSEST_SIDE_PX = 12
PYRAMID_LEVELS_MAX = 5
REFINEMENTS_PER_LEVEL = 3
# Half the side of the window in which motion is taken for constant; its weights are a tent.
WINDOW_RADIUS_PX = 4
# Added to the diagonal of the normal equations (luma in [0, 1], gradients per px): flat areas move with those around.
DAMPING = 1e-4
# Rounds in which a motion is turned around.
INVERSIONS = 2
# No refinement moves further than this, in px of its level: beyond, the linearisation says nothing.
STEP_MAX_PX = 1.0


def estimate_motion(reference: Tensor, other: Tensor) -> Tensor:
    """Motion from `reference` to `other`, both (B, 3, H, W) in [0, 1], as (B, 2, H, W) in px; float32, no gradients."""
    with torch.no_grad(), torch.autocast(reference.device.type, enabled=False):
        pyramid = [(gray(reference.float()), gray(other.float()))]
        while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST_SIDE_PX and len(pyramid) < PYRAMID_LEVELS_MAX:
            pyramid.append((F.avg_pool2d(pyramid[-1][0], 2), F.avg_pool2d(pyramid[-1][1], 2)))
        motion = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
        for level_reference, level_other in reversed(pyramid):
            if motion.shape[-2:] != level_reference.shape[-2:]:
                size = level_reference.shape[-2:]
                motion = 2 * F.interpolate(motion, size=size, mode="bilinear", align_corners=False)
            motion = refine_motion(level_reference, level_other, motion)
        return motion


def refine_motion(reference: Tensor, other: Tensor, motion: Tensor) -> Tensor:
    """A few Gauss-Newton steps of brightness constancy on one level; frames (B, 1, H, W)."""
    padded = F.pad(reference, (1, 1, 1, 1), mode="replicate")
    gradient_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gradient_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, xy, yy = window_mean(torch.cat((gradient_x**2, gradient_x * gradient_y, gradient_y**2), 1)).chunk(3, 1)
    xx, yy = xx + DAMPING, yy + DAMPING
    determinant = xx * yy - xy**2
    for _ in range(REFINEMENTS_PER_LEVEL):
        difference = warp(other, motion) - reference
        xt, yt = window_mean(torch.cat((gradient_x * difference, gradient_y * difference), 1)).chunk(2, 1)
        step = torch.cat((xy * yt - yy * xt, xy * xt - xx * yt), 1) / determinant
        motion = window_mean(motion + step.clamp(-STEP_MAX_PX, STEP_MAX_PX))
    return motion


def inverse_motion(motion: Tensor) -> Tensor:
    """The motion from `other` back to `reference`, by fixed point: what arrives at p has moved by the same amount."""
    back = -motion
    for _ in range(INVERSIONS):
        back = -warp(motion, back)
    return back


def warp(frames: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
    """`frames` (B, C, H, W) sampled along a motion on their own grid or on a finer one; edges are repeated.

    The motion may be (B, 2, sH, sW), for a grid s times finer but still in px of the coarse one, and so is the result.
    """
    scale = motion.shape[-1] // frames.shape[-1]
    return sample(frames, motion * scale, mode)


def sample(frames: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
    """`frames` at the places to which the pixels of `motion` (B, 2, H, W), in px of its own grid, point: (B, C, H, W).

    Both grids cover the same area, so that `frames` may be finer or coarser; beyond the edge the edge is repeated.
    """
    height, width = motion.shape[-2:]
    rows = torch.arange(height, device=motion.device, dtype=motion.dtype) + 0.5
    columns = torch.arange(width, device=motion.device, dtype=motion.dtype) + 0.5
    # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    x = (columns + motion[:, 0]) * (2 / width) - 1
    y = (rows[:, None] + motion[:, 1]) * (2 / height) - 1
    grid = torch.stack((x, y), dim=-1)
    return F.grid_sample(frames, grid, mode=mode, padding_mode="border", align_corners=False)


def gray(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 1, H, W): luma of BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=rgb.device, dtype=rgb.dtype).view(1, 3, 1, 1)
    return (rgb * weights).sum(1, keepdim=True)


def window_mean(values: Tensor) -> Tensor:
    """Mean over a window around each pixel of (B, C, H, W), nearer ones counting more; edges are repeated."""
    batch, channels, height, width = values.shape
    planes = values.reshape(batch * channels, 1, height, width)
    # Made where the values are: a GPU would wait for each copy, and there are seventy of them to a frame.
    distances = torch.arange(-WINDOW_RADIUS_PX, WINDOW_RADIUS_PX + 1, device=values.device, dtype=values.dtype).abs()
    kernel = (WINDOW_RADIUS_PX + 1 - distances) / (WINDOW_RADIUS_PX + 1) ** 2
    planes = F.pad(planes, (WINDOW_RADIUS_PX,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return planes.view(batch, channels, height, width)
