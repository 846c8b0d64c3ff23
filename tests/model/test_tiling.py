"""Tiles cover, do not overlap once trimmed, and are as large as promised."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.tiling import Region, tiles_of


@given(width=st.integers(1, 130), height=st.integers(1, 130), tile_px=st.integers(8, 64), overlap_px=st.integers(0, 40))
def test_the_cores_cover_every_pixel_once(width: int, height: int, tile_px: int, overlap_px: int) -> None:
    times_covered = torch.zeros(height, width, dtype=torch.int32)

    for tile in tiles_of(width, height, tile_px, overlap_px):
        times_covered[tile.core.slices()] += 1

    assert bool((times_covered == 1).all())


@pytest.mark.parametrize("tile_px", [8, 16])
@pytest.mark.parametrize("overlap_px", [0, 8, 24])
def test_every_size_up_to_fifty_is_pasted_back_exactly(tile_px: int, overlap_px: int) -> None:
    for height in range(1, 51, 3):
        for width in range(1, 51):
            frame = torch.arange(height * width).view(height, width)
            output = torch.full((height, width), -1)
            for tile in tiles_of(width, height, tile_px, overlap_px):
                output[tile.core.slices()] = frame[tile.read.slices()][tile.kept.slices()]
            assert torch.equal(output, frame), (width, height)


@given(width=st.integers(1, 130), height=st.integers(1, 130), tiles=st.integers(1, 8), overlap=st.integers(0, 4))
def test_each_tile_is_of_the_promised_size_and_on_the_grid(width: int, height: int, tiles: int, overlap: int) -> None:
    step, tile_px, overlap_px = 8, 8 * tiles, 8 * overlap

    for tile in tiles_of(width, height, tile_px, overlap_px):
        core, read = tile.core, tile.read
        assert read.x % step == read.y % step == 0
        assert core.width == tile_px or core.right == width
        assert core.height == tile_px or core.bottom == height
        # the context is whole on every side that is not the frame's edge
        assert core.x - read.x == overlap_px or read.x == 0
        assert core.y - read.y == overlap_px or read.y == 0
        assert read.right - core.right == overlap_px or read.right == width
        assert read.bottom - core.bottom == overlap_px or read.bottom == height


def test_a_region_moves_grows_and_scales() -> None:
    region, frame = Region(x=8, y=0, width=8, height=16), Region(0, 0, 20, 20)

    grown = region.grown(8, inside=frame)

    assert grown == Region(x=0, y=0, width=20, height=20)
    assert region.relative_to(Region(4, 0, 16, 16)) == Region(4, 0, 8, 16)
    assert region.scaled(2) == Region(16, 0, 16, 32)
    assert region.slices() == (slice(0, 16), slice(8, 16))


@pytest.mark.parametrize(
    ("width", "height", "tile_px", "overlap_px"), [(0, 8, 8, 0), (8, 0, 8, 0), (8, 8, 0, 0), (8, 8, 8, -1)]
)
def test_what_cannot_be_tiled_is_refused(width: int, height: int, tile_px: int, overlap_px: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        tiles_of(width, height, tile_px, overlap_px)
