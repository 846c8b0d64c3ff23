"""Random patches for training, drawn from a data set that stays where it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.data import CLEAN, SCALE, Dataset, DatasetError, SequenceEntry


@dataclass(frozen=True)
class Batch:
    """Triplets of patches, float32 in [0, 1]: three (B, 3, P, P) and the (B, 3, 2P, 2P) target of the centre.

    `center_sr`, (B, 3, 2P, 2P) float32, is the centre as HAT enlarges it in its whole frame, where that was cached.
    """

    previous_lr: Tensor
    center_lr: Tensor
    next_lr: Tensor
    target: Tensor
    center_sr: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.previous_lr.to(device),
            self.center_lr.to(device),
            self.next_lr.to(device),
            self.target.to(device),
            None if self.center_sr is None else self.center_sr.to(device),
        )


class EnlargedFrames(Protocol):
    """Frames that HAT has enlarged once, to be used many times."""

    def frame(self, entry: SequenceEntry, condition: str, t: int) -> Tensor:
        """Frame t of a sequence, enlarged from a condition: (3, 2H, 2W) float32."""
        ...

    def centers(self, entry: SequenceEntry) -> Sequence[int]:
        """Which frames of a sequence there are, of those with two neighbours."""
        ...


@dataclass(frozen=True)
class _Patch:
    """Where a patch lies (x and y are its low-resolution corner), how it is turned, and what neighbours it has.

    `alone`: the current frame itself; `strangers`: the frames of that sequence; else its own.
    """

    entry: SequenceEntry
    condition: str
    t: int
    y: int
    x: int
    reversed_in_time: bool
    mirrored: bool
    quarter_turns: int
    alone: bool
    strangers: SequenceEntry | None


class TripletSampler:
    """Random patches of (t-1, t, t+1), flipped and turned: each sequence is as likely, each place in it, each centre.

    All randomness comes from `generator`, whose state is enough to go on where a run stopped. Of N ranks each draws the
    same patches and loads its own share, so that N ranks see what one would.
    """

    def __init__(
        self,
        dataset: Dataset,
        patch_px: int,
        seed: int,
        *,
        conditions: Mapping[str, float] | None = None,
        split: str = "train",
        enlarged: EnlargedFrames | None = None,
        alone_share: float = 0.0,
        foreign_share: float = 0.0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`patch_px` is the side of a low-resolution patch; `conditions` says in which proportion each is drawn.

        In `alone_share` of the patches both neighbours are the current frame itself, as at the ends of a shot; in
        `foreign_share` they come from another sequence, as at a cut that nobody has noticed.
        DatasetError for an empty split, patches larger than every frame, or a condition that the data set lacks.
        """
        self.dataset = dataset
        self.patch_px = patch_px
        self.conditions = dict(conditions or {CLEAN: 1.0})
        self.enlarged = enlarged
        self.alone_share, self.foreign_share = alone_share, foreign_share
        self.rank, self.ranks = rank, ranks
        if missing := [name for name in self.conditions if name not in dataset.conditions]:
            raise DatasetError(
                f"{dataset.location} has no condition {missing[0]!r}, only {', '.join(dataset.conditions)}"
            )
        shares = self.conditions.values()
        if not (all(math.isfinite(share) and share >= 0 for share in shares) and sum(shares) > 0):
            raise DatasetError(f"conditions need shares of at least 0, not all of them 0: {self.conditions}")
        self.entries = [
            entry
            for entry in dataset.split(split)
            if min(entry.height, entry.width) >= SCALE * patch_px and len(self._centers(entry)) > 0
        ]
        if not self.entries:
            raise DatasetError(
                f"no sequence of the split {split!r} has three frames of at least {patch_px}x{patch_px} "
                "low-resolution px"
            )
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> Batch:
        """The next random batch, or this rank's share of it; `size`, that of all ranks together, divides by `ranks`."""
        if size % self.ranks:
            raise ValueError(f"a batch of {size} cannot be shared by {self.ranks} ranks")
        patches = [self._draw() for _ in range(size)]
        share = size // self.ranks
        loaded = [self._load(patch) for patch in patches[self.rank * share : (self.rank + 1) * share]]
        lr = torch.stack([triplet for triplet, _, _ in loaded]).float() / 255
        target = torch.stack([hr for _, hr, _ in loaded]).float() / 255
        enlarged = [center_sr for _, _, center_sr in loaded if center_sr is not None]
        return Batch(lr[:, 0], lr[:, 1], lr[:, 2], target, torch.stack(enlarged) if enlarged else None)

    def _centers(self, entry: SequenceEntry) -> Sequence[int]:
        return range(1, entry.frames - 1) if self.enlarged is None else self.enlarged.centers(entry)

    def _draw(self) -> _Patch:
        entry = self.entries[self._below(len(self.entries))]
        centers = self._centers(entry)
        return _Patch(
            entry=entry,
            condition=self._draw_condition(),
            t=centers[self._below(len(centers))],
            y=self._below(entry.height // SCALE - self.patch_px + 1),
            x=self._below(entry.width // SCALE - self.patch_px + 1),
            reversed_in_time=bool(self._below(2)),  # Motion looks as natural backwards.
            mirrored=bool(self._below(2)),
            quarter_turns=self._below(4),
            alone=self._happens(self.alone_share),
            strangers=self.entries[self._below(len(self.entries))] if self._happens(self.foreign_share) else None,
        )

    def _load(self, patch: _Patch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The triplet (3, 3, P, P) and its target (3, 2P, 2P), uint8, and the enlarged centre where there is one."""
        tensors = self.dataset.read(patch.entry)
        y, x, side = patch.y, patch.x, self.patch_px
        triplet = tensors[patch.condition][patch.t - 1 : patch.t + 2, :, y : y + side, x : x + side]
        if patch.reversed_in_time:
            triplet = triplet.flip(0)
        if patch.alone:
            triplet = triplet[[1, 1, 1]]
        elif patch.strangers is not None:
            # From their upper left corner, which every sequence has.
            shown = self.dataset.read(patch.strangers)[patch.condition][:2, :, :side, :side]
            triplet = torch.stack((shown[0], triplet[1], shown[1]))
        high = (slice(None), slice(SCALE * y, SCALE * (y + side)), slice(SCALE * x, SCALE * (x + side)))
        target = tensors["hr"][patch.t][high]
        center_sr = None
        if self.enlarged is not None:
            center_sr = _turned(self.enlarged.frame(patch.entry, patch.condition, patch.t)[high], patch)
        return _turned(triplet, patch), _turned(target, patch), center_sr

    def _draw_condition(self) -> str:
        shares = torch.tensor(list(self.conditions.values()), dtype=torch.float64)
        return list(self.conditions)[int(torch.multinomial(shares, 1, generator=self.generator))]

    def _happens(self, share: float) -> bool:
        """True in this share of the draws; nothing is drawn where it never happens."""
        return share > 0 and float(torch.rand((), generator=self.generator)) < share

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))


def _turned(picture: Tensor, patch: _Patch) -> Tensor:
    if patch.mirrored:
        picture = picture.flip(-1)
    return picture.rot90(patch.quarter_turns, (-2, -1))
