"""`vsr evaluate`: how close each way of enlarging comes to the true frames of held-out sequences.

Every method gets the same low-resolution frames; every result is rounded to 8 bits, as a user gets it, before it is
compared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import CLEAN, SCALE, Dataset
from model.hat import HAT
from model.metrics import psnr, psnr_y, ssim_y
from model.sampling import Batch
from model.unet import ConditionalUNet

# High-resolution pixels left out at each edge, as in most tables of the field: twice the scale.
BORDER_PX = 2 * SCALE


@dataclass(frozen=True)
class Scores:
    """Means over the frames of a group: PSNR in dB over RGB and over luma, SSIM of luma."""

    method: str
    group: str
    frames: int
    psnr_y_db: float
    psnr_rgb_db: float
    ssim_y: float


def evaluate(
    hat: HAT,
    unet: ConditionalUNet | None,
    data_folder: str | Path,
    *,
    split: str = "val",
    frames_per_sequence: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Score all methods in float32 on a split, per group and over "all"; a group is the first folder of a name.

    Every frame with two neighbours counts, or `frames_per_sequence` of them evenly spread. `on_progress(done, total)`
    counts sequences.
    """
    dataset = Dataset.open(data_folder)
    entries = dataset.split(split)
    # Per method and group, one row of three numbers per frame.
    measured: dict[str, dict[str, list[Tensor]]] = {}
    for done, entry in enumerate(entries, start=1):
        tensors = dataset.read(entry)
        lr, hr = tensors[CLEAN], tensors["hr"]
        batch = triplets(lr, hr, spread(range(1, lr.shape[0] - 1), frames_per_sequence))
        for name, output in outputs(hat, unet, batch).items():
            seen = (output.clamp(0, 1) * 255).round() / 255
            numbers = [metric(seen, batch.target, border_px=BORDER_PX) for metric in (psnr_y, psnr, ssim_y)]
            groups = measured.setdefault(name, {})
            for group in ("all", entry.name.split("/")[0]):
                groups.setdefault(group, []).append(torch.stack(numbers, dim=1))
        if on_progress is not None:
            on_progress(done, len(entries))
    return [
        Scores(name, group, *means(torch.cat(rows)))
        for name, groups in measured.items()
        for group, rows in sorted(groups.items())
    ]


def outputs(hat: HAT, unet: ConditionalUNet | None, batch: Batch) -> dict[str, Tensor]:
    """The centres of a batch by every method: plain enlargement, HAT alone, two steps with and without neighbours."""
    with torch.inference_mode():
        center_sr = hat.eval()(batch.center_lr)
        results = {"bicubic": bicubic(batch.center_lr), "Lanczos": lanczos(batch.center_lr), "HAT alone": center_sr}
        if unet is not None:
            unet.eval()
            results["two steps"] = unet(center_sr, batch.previous_lr, batch.next_lr)
            # The control: both neighbours are the current frame itself.
            results["two steps, no neighbours"] = unet(center_sr, batch.center_lr, batch.center_lr)
    return results


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


def spread(frames: range, count: int | None) -> list[int]:
    """`count` of the frames, evenly spread, or all."""
    if count is None or count >= len(frames):
        return list(frames)
    return [frames[(2 * number + 1) * len(frames) // (2 * count)] for number in range(count)]


def triplets(lr: Tensor, hr: Tensor, centers: list[int]) -> Batch:
    """One batch of the frames `centers` of a sequence with their neighbours."""
    index = torch.tensor(centers)
    frames = lr.float() / 255
    return Batch(frames[index - 1], frames[index], frames[index + 1], hr[index].float() / 255)


def means(rows: Tensor) -> tuple[int, float, float, float]:
    """Number of rows and the mean of each column."""
    psnr_y_db, psnr_rgb_db, ssim = rows.mean(dim=0).tolist()
    return len(rows), psnr_y_db, psnr_rgb_db, ssim


def to_markdown(scores: list[Scores]) -> str:
    """One table per group."""
    lines: list[str] = []
    for group in sorted({row.group for row in scores}):
        rows = [row for row in scores if row.group == group]
        lines += [
            f"{group}, {rows[0].frames} frames",
            "",
            "| method | PSNR-Y (dB) | PSNR-RGB (dB) | SSIM-Y |",
            "|---|---|---|---|",
        ]
        lines += [f"| {row.method} | {row.psnr_y_db:.2f} | {row.psnr_rgb_db:.2f} | {row.ssim_y:.4f} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)
