"""How a run is judged while it goes on: PSNR-Y per condition on held-out frames, beside a baseline, and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Dataset
from model.evaluation.baselines import bicubic
from model.metrics import psnr_y
from model.sampling import Batch
from model.training.stage import Stage

# Validation leaves out this many high-resolution pixels at each edge, where there is no context to judge by.
VALIDATION_BORDER_PX = 4

PICTURES = 4
# Of each picture its middle, so that a page of them stays small.
PICTURE_SIDE_PX = 256


@dataclass(frozen=True)
class ValidationFrame:
    """One held-out frame with its neighbours, as a batch of one, and what it is compared with, (1, 3, 2H, 2W)."""

    condition: str
    batch: Batch
    bicubic: Tensor


def validation_frames(dataset: Dataset, count: int, stage: Stage, device: torch.device) -> list[ValidationFrame]:
    """About `count` frames: the middle ones of held-out sequences evenly spread over the split, in every condition.

    The frozen HAT enlarges them now, once. A data set without a validation split gives none.
    """
    entries = [entry for entry in dataset.entries if entry.split == "val" and entry.frames >= 3]
    sequences = min(len(entries), -(-count // len(dataset.conditions)))
    chosen = [entries[place * len(entries) // sequences] for place in range(sequences)]
    frames = []
    for condition in dataset.conditions:
        for entry in chosen:
            tensors = dataset.read(entry)
            middle = entry.frames // 2
            triplet = tensors[condition][middle - 1 : middle + 2].float().unsqueeze(1) / 255
            target = tensors["hr"][middle : middle + 1].float() / 255
            batch = Batch(triplet[0], triplet[1], triplet[2], target).to(device)
            if stage.unet is not None:
                batch = replace(batch, center_sr=stage.enlarge(batch.center_lr))
            frames.append(ValidationFrame(condition, batch, bicubic(batch.center_lr)))
    return frames


def baseline_psnr_y(frames: Sequence[ValidationFrame]) -> dict[str, float]:
    """PSNR-Y in dB per condition of what the trained network must beat: HAT alone, or bicubic where HAT is trained."""
    return _mean_per_condition(
        frames, [frame.bicubic if frame.batch.center_sr is None else frame.batch.center_sr for frame in frames]
    )


def validate(stage: Stage, frames: Sequence[ValidationFrame], pictures: Path | None = None) -> dict[str, float]:
    """PSNR-Y in dB per condition, computed as in serving: bfloat16 on a GPU, else float32.

    A page of some of the frames goes to the file `pictures`. The stage is left as it was, in training or not.
    """
    was_training = stage.training
    stage.eval()
    outputs = []
    for frame in frames:
        device_type = frame.batch.target.device.type
        with torch.inference_mode(), torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            output, _ = stage(frame.batch)
        outputs.append(output.float().clamp(0, 1))
    stage.train(was_training)
    if pictures is not None and frames:
        save_pictures(frames, outputs, pictures)
    return _mean_per_condition(frames, outputs)


def save_pictures(frames: Sequence[ValidationFrame], outputs: Sequence[Tensor], path: Path) -> None:
    """A PNG with one row per frame: bicubic, HAT alone (behind which the U-Net learns), ours, truth."""
    from PIL import Image  # Not needed for serving, and not installed there.

    rows = []
    for place in range(0, len(frames), -(-len(frames) // PICTURES)):
        frame = frames[place]
        shown = [frame.bicubic, frame.batch.center_sr, outputs[place], frame.batch.target]
        rows.append(torch.cat([_middle(picture[0]) for picture in shown if picture is not None], dim=-1))
    width = max(row.shape[-1] for row in rows)
    page = torch.cat([F.pad(row, (0, width - row.shape[-1])) for row in rows], dim=-2)
    pixels = (page.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _middle(picture: Tensor) -> Tensor:
    top, left = (max(0, side - PICTURE_SIDE_PX) // 2 for side in picture.shape[-2:])
    return picture[..., top : top + PICTURE_SIDE_PX, left : left + PICTURE_SIDE_PX]


def _mean_per_condition(frames: Sequence[ValidationFrame], outputs: Sequence[Tensor]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for frame, output in zip(frames, outputs, strict=True):
        score = psnr_y(output.clamp(0, 1), frame.batch.target, border_px=VALIDATION_BORDER_PX).item()
        values.setdefault(frame.condition, []).append(score)
    return {condition: sum(scores) / len(scores) for condition, scores in values.items()}
