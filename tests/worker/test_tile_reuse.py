"""Reuse of tiles changes how long a frame takes, and never a bit of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from model.presets import PRESETS, random_upscaler
from worker.network import NetworkUpscaler
from worker.pipeline import with_neighbours
from worker.tile_reuse import ReusingUpscaler
from worker.upscaler import FrameBatch, PixelRepeater, Upscaler
from worker.video.frames import Frame

TILE_PX, OVERLAP_PX = 32, 32
WIDTH, HEIGHT = 100, 41  # a multiple of neither the tile nor the window
TILES_PER_FRAME = 4 * 2


def recording(dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> list[Any]:
    """A still page of text-like noise; a cursor blinks in a corner, and once all of it scrolls."""
    random = np.random.default_rng(6)
    page = random.integers(0, np.iinfo(dtype).max, (HEIGHT + 8, WIDTH, 3), endpoint=True).astype(dtype)
    frames = []
    for number in range(6):
        frame = page[8 if number >= 5 else 0 :][:HEIGHT].copy()
        frame[2:6, 2:4] = 0 if number == 1 else np.iinfo(dtype).max
        frames.append(frame)
    return frames


class Counting:
    """Networks that note the shapes that they are given."""

    def __init__(self, upscaler: Upscaler) -> None:
        self._upscaler = upscaler
        self.fingerprint, self.maker = upscaler.fingerprint, upscaler.maker
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        self.shapes.append(center_lr.shape)
        return self._upscaler(previous_lr, center_lr, next_lr)


def upscaled(frames: Sequence[FrameBatch], upscaler: Upscaler, batch_frames: int, cut: int) -> list[FrameBatch]:
    """In batches whose last is filled up, as the pipeline does it; frame `cut` begins another shot."""
    halo = (Frame(rgb, None) for rgb in frames)
    triplets = list(with_neighbours(halo, 0, {cut}, 0, len(frames)))
    results = []
    for first in range(0, len(triplets), batch_frames):
        taken = triplets[first : first + batch_frames]
        filled = taken + [taken[-1]] * (batch_frames - len(taken))
        previous_lr, center_lr, next_lr = (
            np.stack([frame.rgb for frame in three]) for three in zip(*filled, strict=True)
        )
        results.append(upscaler(previous_lr, center_lr, next_lr))
    return results


@pytest.mark.parametrize(
    ("fusion", "batch_frames", "dtype"),
    [("bottleneck", 1, np.uint16), ("bottleneck", 3, np.uint8), ("aligned", 2, np.uint8)],
)
def test_a_recording_has_the_bits_of_tiled_mode(
    fusion: Literal["bottleneck", "aligned"], batch_frames: int, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    # Given the same networks in tiles, with and without reuse
    tiny = PRESETS["tiny-random"]
    networks = random_upscaler(replace(tiny, unet=replace(tiny.unet, fusion=fusion)))
    whole = NetworkUpscaler(networks, batch_frames)
    tiled = whole.adjusted(batch_frames, TILE_PX)
    windows = Counting(whole)
    reusing = ReusingUpscaler(windows, TILE_PX, tiled.tile_overlap_px, tiled.fingerprint)

    # When both are shown a recording with a cut, at which neighbours are replaced
    frames = recording(dtype)
    expected = upscaled(frames, tiled, batch_frames, cut=5)
    found = upscaled(frames, reusing, batch_frames, cut=5)

    # Then the results are equal in every bit, by less work, in calls of the very shapes
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert reusing.tiles_reused > 0
    assert {shape[0] for shape in windows.shapes} == {batch_frames}
    whole_calls = -(-len(frames) // batch_frames) * TILES_PER_FRAME
    assert len(windows.shapes) < whole_calls


def test_every_window_of_every_frame_counts() -> None:
    # Given three equal frames, tile by tile reused
    frames = np.full((1, 64, 96, 3), 100, np.uint8)

    for place in range(3):
        reusing = ReusingUpscaler(PixelRepeater(), TILE_PX, OVERLAP_PX, "tiles")
        reusing(frames, frames, frames)
        # When one pixel of one of them changes, 32 px from the nearest of the second tile, and within its window
        triplet = [frames.copy() for _ in range(3)]
        triplet[place][0, 0, 95, 2] = 101
        reusing(*triplet)

        # Then the tiles that see it are computed again, and no other
        assert (reusing.tiles_computed, reusing.tiles_reused) == (6 + 4, 2)


def test_the_filling_of_a_batch_costs_nothing() -> None:
    # Given a batch of four whose last three are the first again, as the last of a segment may be
    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8).repeat(4, axis=0)
    windows = Counting(PixelRepeater())
    reusing = ReusingUpscaler(windows, TILE_PX, OVERLAP_PX, "tiles")

    # When / then
    assert np.array_equal(reusing(frames, frames, frames), PixelRepeater()(frames, frames, frames))
    assert (reusing.tiles_computed, reusing.tiles_reused) == (6, 18)


def test_tiles_that_see_too_little_around_them_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        ReusingUpscaler(PixelRepeater(), TILE_PX, 2, "tiles")
