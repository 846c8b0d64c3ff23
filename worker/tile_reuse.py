"""Tiles whose input has not changed since the frame before are not computed again. No torch here.

A tile's result is a function of its windows (the tile and its overlap) in three frames, and of the batch's shape. So
where all three windows hold the very numbers that they held for the frame before, the tile's pixels are copied from
that frame's result, and the bits are those of tiled mode without reuse. On a screen recording that is most tiles; on
camera footage next to none, and what is lost is one comparison of whole numbers per frame.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.tiling import Tile, tiles_of
from worker import metrics
from worker.plan import SCALE
from worker.upscaler import FrameBatch, TimesSteps, Upscaler

MIN_OVERLAP_PX = 3
"""How far `model.plain_surfaces` looks, which a whole frame sees across the borders of its tiles."""


class _Frame(NamedTuple):
    """A frame of a batch: the three inputs, (H, W, 3), and the result, (2H, 2W, 3)."""

    previous_lr: npt.NDArray[np.integer]
    center_lr: npt.NDArray[np.integer]
    next_lr: npt.NDArray[np.integer]
    result: npt.NDArray[np.integer]


class ReusingUpscaler:
    """Upscales in tiles, and remembers one frame; see `worker.upscaler.Upscaler`, `Tiled` and `RemembersFrames`."""

    def __init__(self, upscaler: Upscaler, tile_px: int, overlap_px: int, fingerprint: str) -> None:
        """`upscaler` takes windows as whole frames; `fingerprint` is that of the same networks in such tiles."""
        if overlap_px < MIN_OVERLAP_PX:
            raise ValueError(f"tiles with an overlap of {overlap_px} px: reuse needs at least {MIN_OVERLAP_PX}")
        self.fingerprint, self.maker = fingerprint, upscaler.maker
        self.tile_px = tile_px
        self.tiles_computed = self.tiles_reused = 0
        self._upscaler = upscaler
        self._overlap_px = overlap_px
        self._last: _Frame | None = None

    def for_segment(self) -> "ReusingUpscaler":
        """The same, remembering and counting nothing yet."""
        return ReusingUpscaler(self._upscaler, self.tile_px, self._overlap_px, self.fingerprint)

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        """(B, H, W, 3) to (B, 2H, 2W, 3). The networks see windows of B frames at a time, as without reuse."""
        count, height, width, channels = center_lr.shape
        results = np.empty((count, SCALE * height, SCALE * width, channels), center_lr.dtype)
        frames = [_Frame(*arrays) for arrays in zip(previous_lr, center_lr, next_lr, results, strict=True)]
        tiles = tiles_of(width, height, self.tile_px, self._overlap_px)

        fresh: dict[tuple[int, int], list[tuple[_Frame, Tile]]] = defaultdict(list)
        """What is to be computed, by the size of the window."""
        reused: list[tuple[_Frame, _Frame, Tile]] = []
        """What is to be copied: from where, to where; in the order of the frames."""
        for before, frame in zip([self._last, *frames], frames, strict=False):
            changed = None if before is None else _changed(before, frame)
            for tile in tiles:
                if before is None or changed is None or changed[tile.read.slices()].any():
                    fresh[tile.read.width, tile.read.height].append((frame, tile))
                else:
                    reused.append((before, frame, tile))
        for windows in fresh.values():
            for first in range(0, len(windows), count):
                self._compute(windows[first : first + count], count)
        for before, frame, tile in reused:
            place = tile.core.scaled(SCALE).slices()
            frame.result[place] = before.result[place]

        self._last = frames[-1]
        computed = count * len(tiles) - len(reused)
        self.tiles_computed += computed
        self.tiles_reused += len(reused)
        metrics.TILES.labels("computed").inc(computed)
        metrics.TILES.labels("reused").inc(len(reused))
        return results

    def take_step_seconds(self) -> dict[str, float]:
        """See `worker.upscaler.TimesSteps`."""
        return self._upscaler.take_step_seconds() if isinstance(self._upscaler, TimesSteps) else {}

    def _compute(self, windows: list[tuple[_Frame, Tile]], count: int) -> None:
        """Windows of one size, filled up to `count` by repeating the last: results depend on a batch's shape."""
        filled = windows + [windows[-1]] * (count - len(windows))
        previous_lr, center_lr, next_lr = (
            np.stack([getattr(frame, name)[tile.read.slices()] for frame, tile in filled])
            for name in ("previous_lr", "center_lr", "next_lr")
        )
        upscaled = self._upscaler(previous_lr, center_lr, next_lr)
        for (frame, tile), window in zip(windows, upscaled, strict=False):  # the filling goes nowhere
            frame.result[tile.core.scaled(SCALE).slices()] = window[tile.kept.scaled(SCALE).slices()]


def _changed(before: _Frame, now: _Frame) -> npt.NDArray[np.bool_]:
    """(H, W, 3): where any of the three inputs differs."""
    changed: npt.NDArray[np.bool_] = before.previous_lr != now.previous_lr
    changed |= before.center_lr != now.center_lr
    changed |= before.next_lr != now.next_lr
    return changed
