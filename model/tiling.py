"""The geometry of tiles: which part of a frame to read, what to keep of the result, and where it goes. Integers only.

A frame is cut into cores of `tile_px` that cover it without overlapping. Each core is read with `overlap_px` more on
every side that is not the frame's edge, so that the network sees context; what the overlap produced is trimmed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels, top left corner and size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column beyond."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row beyond."""
        return self.y + self.height

    def grown(self, margin: int, inside: "Region") -> "Region":
        """The region with `margin` more on each side, as far as `inside` reaches."""
        x, y = max(self.x - margin, inside.x), max(self.y - margin, inside.y)
        right, bottom = min(self.right + margin, inside.right), min(self.bottom + margin, inside.bottom)
        return Region(x, y, right - x, bottom - y)

    def relative_to(self, other: "Region") -> "Region":
        """The same pixels, counted from the corner of `other`."""
        return Region(self.x - other.x, self.y - other.y, self.width, self.height)

    def scaled(self, factor: int) -> "Region":
        """The same part of an image `factor` times as large."""
        return Region(self.x * factor, self.y * factor, self.width * factor, self.height * factor)

    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an image."""
        return slice(self.y, self.bottom), slice(self.x, self.right)


@dataclass(frozen=True)
class Tile:
    """`core` is what the tile is responsible for, `read` is the core and its context."""

    core: Region
    read: Region

    @property
    def kept(self) -> Region:
        """The core within what was read."""
        return self.core.relative_to(self.read)


def tiles_of(width: int, height: int, tile_px: int, overlap_px: int) -> list[Tile]:
    """The tiles of a frame, row by row. Every corner is a multiple of `tile_px` or off it by `overlap_px`."""
    if width < 1 or height < 1:
        raise ValueError(f"a frame of {width}x{height} px has no tiles")
    if tile_px < 1 or overlap_px < 0:
        raise ValueError(f"a tile of {tile_px} px with an overlap of {overlap_px} px: at least 1 and 0 are needed")
    frame = Region(0, 0, width, height)
    cores = [
        Region(x, y, min(tile_px, width - x), min(tile_px, height - y))
        for y in range(0, height, tile_px)
        for x in range(0, width, tile_px)
    ]
    return [Tile(core, core.grown(overlap_px, inside=frame)) for core in cores]
