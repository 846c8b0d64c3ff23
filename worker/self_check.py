"""The finished frames against the source: whether networks, colours and encoder gave what belongs there.

What is looked at, of each segment and right after it was encoded, in frames decoded again from its file:

- PSNR of a sample of frames, once they are averaged down to the source's size: a shifted, darkened or exchanged frame
  shows in it at once. Networks do not invert averaging exactly, so good results lie at 30 to 50 dB.
- What the encoder alone lost, in three frames against what it was given: "lossless" is measured, not believed.
- Seams in space: how much the difference between result and source changes from one side of a tile's border to the
  other, against other columns and rows of the same grid, on which encoders have the borders of their blocks too.
- Seams in time: the difference between result and source (in luma, on blocks) ought to change as little from the last
  frame of one segment to the first of the next as between any other two frames.

The figures of a segment lie beside it in `segments/00000.json` until `gather` makes the job's of them. Memory holds the
sampled frames of one segment, ten small ones and three large ones at most, however long the video.
"""

import base64
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from worker.contract.report import FramePlace, QualityReport, SeamReport
from worker.video.frames import RgbFrame
from worker.video.values import FrameTable

SAMPLE_EVERY_FRAMES = 12
MAX_SAMPLES = 8
"""Of one segment, beside its last frame."""

EQUAL_PSNR_DB = 100.0
"""What stands for the infinite PSNR of equal frames."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLOCKS_A_SIDE = 64
_TILE_GRID_PX = 16  # of the source: tiles begin at multiples of it
_LEAST_CHANGE = 0.05  # grey levels: what is below is no change, and no ground to divide by
_ROWS_AT_A_TIME = 256
_THUMB_STEPS = 64  # per grey level

Levels = npt.NDArray[np.float32]
"""Grey levels of 8 bits, 0 to 255, also of deeper video."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Edge(_Frozen):
    """What the first or last frame of a segment is compared by with its neighbour in another segment."""

    width: int
    height: int
    residual: str
    """Base64 of (height, width) little-endian int16: result less source, luma of blocks, in 64ths of a grey level."""

    @classmethod
    def of(cls, residual: Levels) -> "Edge":
        steps = np.round(residual * _THUMB_STEPS).astype("<i2")
        return cls(width=steps.shape[1], height=steps.shape[0], residual=base64.b64encode(steps.tobytes()).decode())

    def levels(self) -> Levels:
        steps = np.frombuffer(base64.b64decode(self.residual), "<i2").reshape(self.height, self.width)
        return steps.astype(np.float32) / np.float32(_THUMB_STEPS)


class Steps(_Frozen):
    """How much the residual changes across columns and rows on average, in grey levels, and of how many that is."""

    lines: int = 0
    mean: float = 0.0

    def with_more(self, other: "Steps") -> "Steps":
        lines = self.lines + other.lines
        total = self.mean * self.lines + other.mean * other.lines
        return Steps(lines=lines, mean=total / lines if lines else 0.0)


class SegmentFigures(_Frozen):
    """`segments/00000.json`: what is known of one finished segment."""

    psnr_db: dict[int, float]
    """By the frame's number in the video."""
    encoding_psnr_db: dict[int, float]
    """The same, of what came out of the encoder against what went in."""
    first: Edge
    last: Edge
    usual_changes: tuple[float, ...]
    """Of the residual between pairs of frames inside the segment, in grey levels."""
    at_tile_borders: Steps
    beside_tile_borders: Steps
    stage_seconds: dict[str, float] = {}
    tiles_computed: int = 0
    tiles_reused: int = 0
    """Both 0 without `reuse`."""


class SelfCheck:
    """Of one segment: sees the source's frames as they pass, and then those decoded from the finished file."""

    def __init__(self, first: int, stop: int, cuts: Collection[int], tile_px: int | None) -> None:
        """`first` to `stop - 1`: the frames, by their numbers in the video. `tile_px`: of the source, if any."""
        step = max(SAMPLE_EVERY_FRAMES, math.ceil((stop - first) / MAX_SAMPLES))
        self._compared = frozenset({*range(first, stop, step), stop - 1})
        in_order = sorted(self._compared)
        self.encoder_sample = frozenset({first, in_order[len(in_order) // 2], stop - 1})
        """The frames that `note_encoder_input` wants to see."""
        # Pairs inside of one shot; the second frame of each is wanted for its residual alone.
        self._pairs = [number for number in range(first, stop - 1, step) if number + 1 not in cuts]
        self._first, self._last = first, stop - 1
        self._tile_px = tile_px
        self._sources: dict[int, RgbFrame] = {}
        self._source_blocks: dict[int, Levels] = {}
        self._encoder_inputs: dict[int, RgbFrame] = {}

    @property
    def wanted(self) -> frozenset[int]:
        """The frames to bring to `compare`."""
        return self._compared | {number + 1 for number in self._pairs}

    def note_source(self, number: int, rgb: RgbFrame) -> None:
        """Take notice of the source's frame of this number, (H, W, 3)."""
        if number in self._compared:
            self._sources[number] = rgb
        if number in self.wanted:
            self._source_blocks[number] = _luma_blocks(_levels(rgb))

    def note_encoder_input(self, number: int, rgb: RgbFrame) -> None:
        """Take notice of what the encoder is given, (2H, 2W, 3), after colours were converted for it and back."""
        self._encoder_inputs[number] = rgb

    def compare(self, results: Iterable[tuple[int, RgbFrame]]) -> SegmentFigures:
        """Compare with the finished frames, each (2H, 2W, 3); `results` are those of `wanted`, with their numbers."""
        psnr_db: dict[int, float] = {}
        encoding_psnr_db: dict[int, float] = {}
        residuals: dict[int, Levels] = {}
        at_borders = beside_borders = Steps()
        for number, rgb in results:
            shrunk = _shrunk(rgb)
            residuals[number] = _luma_blocks(shrunk) - self._source_blocks.pop(number)
            if number in self._encoder_inputs:
                encoding_psnr_db[number] = _psnr_db(rgb, self._encoder_inputs.pop(number))
            if number in self._compared:
                source = _levels(self._sources.pop(number))
                psnr_db[number] = _psnr_db(shrunk, source)
                if self._tile_px is not None:
                    residual = _luma(shrunk - source)
                    at_borders = at_borders.with_more(_steps(residual, self._tile_px, at_borders=True))
                    beside_borders = beside_borders.with_more(_steps(residual, self._tile_px, at_borders=False))
        return SegmentFigures(
            psnr_db=psnr_db,
            encoding_psnr_db=encoding_psnr_db,
            first=Edge.of(residuals[self._first]),
            last=Edge.of(residuals[self._last]),
            usual_changes=tuple(_change(residuals[number], residuals[number + 1]) for number in self._pairs),
            at_tile_borders=at_borders,
            beside_tile_borders=beside_borders,
        )


def read_figures(path: Path) -> SegmentFigures | None:
    """None where there are none, or those of another version: figures are for the report, no result depends on them."""
    try:
        return SegmentFigures.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def gather(
    figures: Sequence[SegmentFigures | None], firsts: Sequence[int], cuts: Collection[int], table: FrameTable
) -> QualityReport:
    """The job's figures from those of all its segments, which begin at the frames `firsts`."""
    known = [segment for segment in figures if segment is not None]
    psnr_db = {frame: value for segment in known for frame, value in segment.psnr_db.items()}
    worst = min(psnr_db, key=lambda frame: psnr_db[frame]) if psnr_db else None
    encoding = [value for segment in known for value in segment.encoding_psnr_db.values()]
    return QualityReport(
        frames_compared=len(psnr_db),
        psnr_db=round(sum(psnr_db.values()) / len(psnr_db), 2) if psnr_db else None,
        worst_psnr_db=None if worst is None else round(psnr_db[worst], 2),
        worst_frame=None if worst is None else FramePlace(frame=worst, seconds=table.seconds(worst)),
        encoding_psnr_db=round(min(encoding), 2) if encoding else None,
        tile_borders=_tile_borders(known),
        segment_borders=_segment_borders(figures, firsts, cuts),
        segments_without_figures=len(figures) - len(known),
    )


def _tile_borders(known: Iterable[SegmentFigures]) -> SeamReport | None:
    at_borders = beside_borders = Steps()
    for segment in known:
        at_borders = at_borders.with_more(segment.at_tile_borders)
        beside_borders = beside_borders.with_more(segment.beside_tile_borders)
    if not at_borders.lines or not beside_borders.lines:
        return None
    return _seam_report(at_borders.lines, at_borders.mean, beside_borders.mean)


def _segment_borders(
    figures: Sequence[SegmentFigures | None], firsts: Sequence[int], cuts: Collection[int]
) -> SeamReport | None:
    changes = [
        _change(before.last.levels(), after.first.levels())
        for before, after, first in zip(figures, figures[1:], firsts[1:], strict=False)
        if before is not None and after is not None and first not in cuts
    ]
    usual = [change for segment in figures if segment is not None for change in segment.usual_changes]
    if not changes or not usual:
        return None
    return _seam_report(len(changes), sum(changes) / len(changes), sum(usual) / len(usual))


def _seam_report(seams: int, at_seams: float, elsewhere: float) -> SeamReport:
    ratio = max(at_seams, _LEAST_CHANGE) / max(elsewhere, _LEAST_CHANGE)
    return SeamReport(seams=seams, at_seams=round(at_seams, 3), elsewhere=round(elsewhere, 3), ratio=round(ratio, 3))


def _levels(image: RgbFrame | Levels) -> Levels:
    scale = np.float32(1 / 257 if image.dtype == np.uint16 else 1)
    return image.astype(np.float32) * scale


def _shrunk(rgb: RgbFrame) -> Levels:
    """(2H, 2W, 3) to (H, W, 3): the means of 2x2 pixels, in grey levels of 8 bits."""
    wide: npt.NDArray[np.uint32] = rgb.astype(np.uint32)
    rows = wide[::2] + wide[1::2]
    sums = rows[:, ::2] + rows[:, 1::2]
    return sums.astype(np.float32) * np.float32(1 / 4 if rgb.dtype == np.uint8 else 1 / (4 * 257))


def _psnr_db(one: RgbFrame | Levels, other: RgbFrame | Levels) -> float:
    total = 0.0
    for top in range(0, len(one), _ROWS_AT_A_TIME):
        rows = slice(top, top + _ROWS_AT_A_TIME)
        difference = (_levels(one[rows]) - _levels(other[rows])).ravel()
        total += float(np.dot(difference, difference))
    if total == 0:
        return EQUAL_PSNR_DB
    return min(EQUAL_PSNR_DB, 10 * math.log10(255**2 * one.size / total))


def _luma(levels: Levels) -> Levels:
    """(H, W, 3) to (H, W)."""
    return (levels @ _LUMA).astype(np.float32, copy=False)


def _luma_blocks(levels: Levels) -> Levels:
    """(H, W, 3) to the luma means of at most 127 x 127 blocks; what fills none at the edge is left out."""
    luma = _luma(levels)
    height, width = luma.shape
    step_y, step_x = (max(1, side // _BLOCKS_A_SIDE) for side in (height, width))
    rows, columns = height // step_y, width // step_x
    blocks = luma[: rows * step_y, : columns * step_x].reshape(rows, step_y, columns, step_x)
    means: Levels = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def _change(one: Levels, other: Levels) -> float:
    return float(np.abs(one - other).mean())


def _steps(residual: Levels, tile_px: int, *, at_borders: bool) -> Steps:
    """Steps of (H, W) across the grid's columns and rows that are borders of tiles, or those that are not."""
    steps: list[float] = []
    for axis, side in ((1, residual.shape[1]), (0, residual.shape[0])):
        lines = [x for x in range(_TILE_GRID_PX, side, _TILE_GRID_PX) if (x % tile_px == 0) == at_borders]
        change = residual.take(lines, axis) - residual.take([line - 1 for line in lines], axis)
        steps += np.abs(change).mean(axis=1 - axis).tolist()
    return Steps(lines=len(steps), mean=sum(steps) / len(steps) if steps else 0.0)
