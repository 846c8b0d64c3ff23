"""`vsr evaluate`: how close each way of enlarging comes to the true frames of held-out sequences.

Every method gets the same low-resolution frames, and every result is rounded to 8 bits, as a user gets it, before it is
compared. What is measured here is turned into tables by `model/evaluation/report.py` and into pictures by
`model/evaluation/page.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.alignment import estimate_motion
from model.checkpoints import CheckpointError
from model.data import CLEAN, SCALE, Dataset, DatasetError, SequenceEntry
from model.evaluation.contenders import TRUTH, Contender, Method, on_device, outputs
from model.metrics import (
    SSIM_WINDOW_PX,
    not_occluded,
    psnr,
    psnr_y,
    ssim_y,
    temporal_difference_error,
    warping_error,
)
from model.sampling import Batch

# High-resolution pixels left out at each edge, as in most tables of the field: twice the scale.
BORDER_PX = 2 * SCALE

# What a frame counts that is equal to the truth, whose PSNR is infinite: a mean must stay a number.
PSNR_MAX_DB = 100.0

# A sequence moves if its motion, mean of all pixels and frames, is at least this, in low-resolution px per frame.
MOVING_PX = 0.5

# Of low resolution, through the networks at a time.
PIXELS_AT_A_TIME = 2**17


@dataclass(frozen=True)
class SequenceScores:
    """What one method did on one sequence under one condition: means over its frames, and over pairs of them.

    `group` is the first folder of the sequence's name, `motion_px` its motion in low-resolution px per frame. The truth
    has no PSNR and no SSIM, and a single frame no flicker.
    """

    sequence: str
    source: str
    group: str
    condition: str
    method: Method
    frames: int
    motion_px: float
    psnr_y_db: float | None
    psnr_rgb_db: float | None
    ssim_y: float | None
    warping_error: float | None
    dtssd: float | None

    @property
    def moving(self) -> bool:
        """Whether it counts as moving."""
        return self.motion_px >= MOVING_PX


@dataclass
class _Tally:
    """What is measured while a sequence passes: rows per frame and per pair, and the last frame for the next pair.

    There is one for each method and condition, so the last frame is kept in bytes.
    """

    per_frame: list[Tensor] = field(default_factory=list)
    per_pair: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None


def evaluate(
    dataset: Dataset,
    contenders: Sequence[Contender],
    *,
    split: str = "val",
    conditions: Sequence[str] = (),
    frames_per_sequence: int | None = None,
    device: torch.device | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[SequenceScores]:
    """Score every method on every sequence of a split ("all": of the whole data set), under each condition.

    Without `conditions`, under all that the data set has. Of a sequence all frames with two neighbours count, or a run
    of `frames_per_sequence` of them in its middle: flicker shows between consecutive frames. `on_progress(done, total)`
    counts sequences. DatasetError for an empty split, a condition that is not there, or frames that are too small;
    CheckpointError for networks whose output is NaN or infinite.
    """
    device = device or torch.device("cpu")
    entries = entries_of(dataset, split)
    conditions = conditions_of(dataset, conditions)
    for entry in entries:
        check_size(entry)
    for contender in contenders:
        on_device(contender, device)
    scores: list[SequenceScores] = []
    for number, entry in enumerate(entries):
        scores += score_sequence(
            dataset, entry, foreign_entry(entries, entry), contenders, conditions, frames_per_sequence, device
        )
        if on_progress is not None:
            on_progress(number + 1, len(entries))
    return scores


def score_sequence(
    dataset: Dataset,
    entry: SequenceEntry,
    foreign: SequenceEntry | None,
    contenders: Sequence[Contender],
    conditions: Sequence[str],
    frames_per_sequence: int | None,
    device: torch.device,
) -> list[SequenceScores]:
    """All methods on one sequence, a few frames at a time, so that its length costs no memory."""
    tensors = dataset.read(entry)
    foreign_tensors = None if foreign is None else dataset.read(foreign)
    centers = centers_of(entry, frames_per_sequence)
    tallies: dict[tuple[str, Method], _Tally] = {}
    motions: list[Tensor] = []
    last_target: Tensor | None = None
    for some in in_chunks(centers, entry):
        clean = triplets(tensors, CLEAN, some, device)
        motions.append(estimate_motion(clean.center_lr, clean.next_lr).square().sum(1).sqrt().mean((1, 2)))
        targets = clean.target if last_target is None else torch.cat((last_target, clean.target))
        last_target = clean.target[-1:]
        # Of the true frames, and so the same for all methods.
        motion, seen_again = true_motion(targets)
        for condition in conditions:
            batch = triplets(tensors, condition, some, device)
            strangers = None if foreign_tensors is None else foreign_neighbours(foreign_tensors, condition, some, batch)
            for method, output in (outputs(contenders, batch, strangers) | {TRUTH: batch.target}).items():
                if not output.isfinite().all():  # Rounded, the infinite would pass for black or white.
                    raise CheckpointError(f"{method.name}: what it makes of {entry.name} is not made of numbers")
                tally = tallies.setdefault((condition, method), _Tally())
                seen = in_eight_bits(output)
                frames = seen if tally.last is None else torch.cat((tally.last.float() / 255, seen))
                tally.last = (seen[-1:] * 255).to(torch.uint8)
                if method != TRUTH:
                    tally.per_frame.append(per_frame(seen, batch.target))
                if len(frames) > 1:
                    tally.per_pair.append(per_pair(frames, targets, motion, seen_again))
    motion_px = float(torch.cat(motions).mean())
    return [
        SequenceScores(
            entry.name,
            entry.source,
            group_of(entry),
            condition,
            method,
            len(centers),
            motion_px,
            *_column_means(tally.per_frame, 3),
            *_column_means(tally.per_pair, 2),
        )
        for (condition, method), tally in tallies.items()
    ]


# --- which frames ---------------------------------------------------------------------------------------------------


def entries_of(dataset: Dataset, split: str) -> list[SequenceEntry]:
    """The sequences of a split, or of all; DatasetError when there are none."""
    return list(dataset.entries) if split == "all" else dataset.split(split)


def conditions_of(dataset: Dataset, wanted: Sequence[str]) -> list[str]:
    """The wanted conditions, by default all; DatasetError for one that the data set does not have."""
    if missing := [condition for condition in wanted if condition not in dataset.conditions]:
        raise DatasetError(f"{dataset.location} has no condition {missing[0]!r}, only {', '.join(dataset.conditions)}")
    return list(dict.fromkeys(wanted or dataset.conditions))


def check_size(entry: SequenceEntry) -> None:
    """DatasetError for a sequence with too few or too small frames to be scored."""
    smallest = 2 * BORDER_PX + SSIM_WINDOW_PX
    if min(entry.height, entry.width) < smallest:
        raise DatasetError(
            f"{entry.name}: {entry.width}x{entry.height} px is too small to be scored: without a border of {BORDER_PX} "
            f"px and with an SSIM window of {SSIM_WINDOW_PX} px it takes {smallest}x{smallest}"
        )
    if entry.frames < 3:
        raise DatasetError(f"{entry.name}: a frame with two neighbours takes 3 frames, it has {entry.frames}")


def centers_of(entry: SequenceEntry, count: int | None) -> range:
    """The frames with two neighbours, or a run of `count` of them in the middle."""
    centers = range(1, entry.frames - 1)
    if count is None or count >= len(centers):
        return centers
    start = (len(centers) - count) // 2
    return centers[start : start + count]


def in_chunks(centers: range, entry: SequenceEntry) -> Iterable[range]:
    """The frames of a run, few enough at a time for their size."""
    step = max(1, PIXELS_AT_A_TIME * SCALE**2 // (entry.height * entry.width))
    return (centers[start : start + step] for start in range(0, len(centers), step))


def group_of(entry: SequenceEntry) -> str:
    """The kind of material: the first folder of the name, "" where it has none."""
    folder, slash, _ = entry.name.partition("/")
    return folder if slash else ""


def triplets(tensors: dict[str, Tensor], condition: str, centers: Sequence[int], device: torch.device) -> Batch:
    """The given frames with both neighbours, and the true ones, (B, 3, H, W) float32 in [0, 1]."""
    index = torch.tensor(centers)
    lr, hr = tensors[condition], tensors["hr"]
    frames = (lr[index - 1], lr[index], lr[index + 1], hr[index])
    return Batch(*(picture.to(device).float() / 255 for picture in frames))


# --- the neighbours of another video --------------------------------------------------------------------------------


def foreign_entry(entries: Sequence[SequenceEntry], entry: SequenceEntry) -> SequenceEntry | None:
    """The next sequence that is of another video, in the manifest's order and around its end; None without one."""
    place = entries.index(entry)
    following = (*entries[place + 1 :], *entries[:place])
    return next((other for other in following if other.source != entry.source), None)


def foreign_neighbours(tensors: dict[str, Tensor], condition: str, centers: Sequence[int], like: Batch) -> Batch:
    """The triplets at the same places of another video, counted around its end, its middle cut out to the same size."""
    count = len(tensors["hr"])
    batch = triplets(tensors, condition, [1 + (t - 1) % (count - 2) for t in centers], like.center_lr.device)
    height, width = like.center_lr.shape[-2:]
    previous_lr, center_lr, next_lr = (
        fit(frames, height, width) for frames in (batch.previous_lr, batch.center_lr, batch.next_lr)
    )
    return Batch(previous_lr, center_lr, next_lr, like.target)


def fit(frames: Tensor, height: int, width: int) -> Tensor:
    """The middle of (B, C, H, W) frames, enlarged first, bicubically, where they are smaller."""
    growth = max(height / frames.shape[-2], width / frames.shape[-1])
    if growth > 1:
        size = (max(height, round(growth * frames.shape[-2])), max(width, round(growth * frames.shape[-1])))
        frames = F.interpolate(frames, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]


# --- measuring ------------------------------------------------------------------------------------------------------


def in_eight_bits(output: Tensor) -> Tensor:
    """What a user gets of an output, still as [0, 1]."""
    return (output.clamp(0, 1) * 255).round() / 255


def per_frame(output: Tensor, target: Tensor) -> Tensor:
    """(B, 3): PSNR-Y and PSNR-RGB in dB, SSIM-Y."""
    psnrs = [metric(output, target, border_px=BORDER_PX).clamp(max=PSNR_MAX_DB) for metric in (psnr_y, psnr)]
    return torch.stack((*psnrs, ssim_y(output, target, border_px=BORDER_PX)), dim=1).cpu()


def per_pair(frames: Tensor, targets: Tensor, motion: Tensor, seen_again: Tensor) -> Tensor:
    """(B - 1, 2): warping error and dtSSD of B consecutive frames."""
    flicker = warping_error(frames, motion, seen_again, border_px=BORDER_PX)
    return torch.stack((flicker, temporal_difference_error(frames, targets, border_px=BORDER_PX)), dim=1).cpu()


def true_motion(targets: Tensor) -> tuple[Tensor, Tensor]:
    """From each frame to the next: motion (B - 1, 2, H, W) in px, and which pixels are seen again (B - 1, 1, H, W)."""
    here, there = targets[:-1], targets[1:]
    if len(here) == 0:
        return targets.new_zeros(0, 2, *targets.shape[-2:]), targets.new_zeros(0, 1, *targets.shape[-2:])
    forward, backward = estimate_motion(here, there), estimate_motion(there, here)
    return forward, not_occluded(forward, backward)


def _column_means(rows: list[Tensor], columns: int) -> list[float | None]:
    """None for a column without a number; NaN, the warping error of a pair that has nothing in common, is none."""
    if not rows:
        return [None] * columns
    return [None if math.isnan(mean) else mean for mean in torch.cat(rows).nanmean(dim=0).tolist()]
