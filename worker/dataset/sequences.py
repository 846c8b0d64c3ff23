"""From one source video to its sequences: 25 consecutive frames of one shot, framed, degraded and packed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import FRAMES_PER_SEQUENCE, SCALE, DecodedSequence, PackedSequence, Skipped, pack, shrink
from worker.contract.failure import FailureCode, JobFailureError
from worker.dataset.degradations import Condition
from worker.dataset.sources import SourceVideo, picture_files
from worker.scene_cuts import CutDetector
from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.frames import RgbFrame
from worker.video.pictures import read_png
from worker.video.survey import survey

Fit = Literal["resize", "crop", "keep"]

CROP_PX = 256
"""Side of a crop where no size was asked for; a smaller picture is taken whole."""
MIN_SIDE_PX = 32
"""Below, nothing is left of a picture at 1/32 of its size, where the U-Net's deepest features lie."""


@dataclass(frozen=True)
class Framing:
    """How frames become high-resolution frames.

    `resize`: to `size_px` square, whatever their shape, as the paper does. `crop`: a square of `size_px`, at a place
    drawn from the seed. `keep`: as they are, less an odd row or column. None: ready-made sequences are kept, others
    cropped.
    """

    fit: Fit | None = None
    size_px: int | None = None


@dataclass(frozen=True)
class SequenceRecipe:
    """All that decides what sequences a video gives."""

    seed: int
    framing: Framing
    conditions: tuple[Condition, ...]
    sequences_per_video: int


@dataclass(frozen=True)
class Footage:
    """The frames of a source, from any one on; `read(first, stop)` decodes them one by one."""

    frames: int
    height: int
    width: int
    read: Callable[[int, int], Iterator[RgbFrame]]


def make_sequences(
    video: SourceVideo, recipe: SequenceRecipe, limits: VideoLimits
) -> tuple[list[PackedSequence], list[Skipped]]:
    """The sequences of a video, or why it has none: a video that cannot be used is no reason to stop."""
    try:
        footage = open_footage(video, limits)
        sequences = [_pack(video, name, hr, recipe) for name, hr in _named_runs(video, footage, recipe)]
    except JobFailureError as failure:
        return [], [Skipped(video.name, failure.message)]
    except OSError as error:  # missing, or may not be read
        return [], [Skipped(video.name, error.strerror or str(error))]
    if not sequences:
        return [], [Skipped(video.name, f"no {FRAMES_PER_SEQUENCE} consecutive frames without a scene cut")]
    return sequences, []


def open_footage(video: SourceVideo, limits: VideoLimits) -> Footage:
    """Survey a source; raises `JobFailureError` where it cannot be decoded or is over the limits."""
    if video.kind == "pictures":
        files = picture_files(video.path)
        height, width = read_png(files[0], limits.max_pixels).shape[:2]
        return Footage(
            len(files),
            height,
            width,
            lambda first, stop: (
                _of_size(read_png(path, limits.max_pixels), height, width) for path in files[first:stop]
            ),
        )
    path = (
        video.path.absolute()
    )  # FFmpeg takes what stands before a colon for a protocol, unless it begins with a slash
    found = survey(path, limits)
    return Footage(
        len(found.frames),
        found.picture.height,
        found.picture.width,
        lambda first, stop: (
            frame.rgb for frame in decode_frames(path, found, first, stop, max_pixels=limits.max_pixels)
        ),
    )


def _of_size(frame: RgbFrame, height: int, width: int) -> RgbFrame:
    if frame.shape[:2] != (height, width):
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE,
            f"its pictures are of different sizes, {width}x{height} and {frame.shape[1]}x{frame.shape[0]}",
        )
    return frame


def _named_runs(video: SourceVideo, footage: Footage, recipe: SequenceRecipe) -> Iterator[tuple[str, Tensor]]:
    """Name and high-resolution frames of each run, which are spread evenly over the video."""
    if footage.frames < FRAMES_PER_SEQUENCE:
        raise JobFailureError(
            FailureCode.NO_FRAMES, f"it has {footage.frames} frames, {FRAMES_PER_SEQUENCE} are needed"
        )
    count = 1 if video.ready_made else min(recipe.sequences_per_video, footage.frames // FRAMES_PER_SEQUENCE)
    for number in range(count):
        name = video.name if video.ready_made else f"{video.name}#{number}"
        framed = framed_as(recipe.framing, video.ready_made, footage.height, footage.width, f"{recipe.seed}/{name}")
        start, stop = (place * footage.frames // count for place in (number, number + 1))
        middle = start + (stop - start - FRAMES_PER_SEQUENCE) // 2
        # From the middle of its part of the video, else from before it: a video begins with titles and fades.
        for first, end in ((middle, stop), (start, middle + FRAMES_PER_SEQUENCE - 1)):
            run = run_in_one_shot(footage.read(first, end), framed) if end - first >= FRAMES_PER_SEQUENCE else None
            if run is not None:
                yield name, run
                break


def run_in_one_shot(frames: Iterator[RgbFrame], framed: Callable[[RgbFrame], Tensor]) -> Tensor | None:
    """The first 25 consecutive frames without a cut among them, framed: (25, 3, H, W) uint8; None if there are none."""
    cuts = CutDetector()
    run: list[Tensor] = []
    for frame in frames:
        if cuts.begins_shot(frame):
            run.clear()
        run.append(framed(frame))
        if len(run) == FRAMES_PER_SEQUENCE:
            return torch.stack(run)
    return None


def framed_as(
    framing: Framing, ready_made: bool, height: int, width: int, drawn_from: str
) -> Callable[[RgbFrame], Tensor]:
    """What makes of a frame (H, W, 3) its part in a sequence: (3, h, w) uint8, h and w even.

    `drawn_from` decides the place of a crop. Raises `JobFailureError` for frames too small: nothing is enlarged.
    """
    fit = framing.fit or ("keep" if ready_made else "crop")
    least = MIN_SIDE_PX if fit == "keep" or framing.size_px is None else framing.size_px
    if min(height, width) < least:
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE, f"it is too small: {width}x{height}, {least} px are needed"
        )
    if fit == "resize":
        side = framing.size_px or CROP_PX
        return lambda frame: _resized(_eight_bits(frame), side)
    side = max(height, width) if fit == "keep" else framing.size_px or CROP_PX
    rows, columns = (min(side, length) // SCALE * SCALE for length in (height, width))
    drawn = random.Random(drawn_from)  # noqa: S311 no secret is drawn
    top, left = drawn.randint(0, height - rows), drawn.randint(0, width - columns)
    if fit == "keep":
        top = left = 0
    return lambda frame: _eight_bits(frame[top : top + rows, left : left + columns])


def _eight_bits(frame: RgbFrame) -> Tensor:
    """(H, W, 3) to (3, H, W) uint8. Deeper video comes as 16 bits, of which the upper eight are kept."""
    eight = (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame
    return torch.from_numpy(np.ascontiguousarray(eight.transpose(2, 0, 1)))


def _resized(frame: Tensor, side_px: int) -> Tensor:
    """Bicubic, antialiased, to a square."""
    square = F.interpolate(frame[None].float(), (side_px, side_px), mode="bicubic", antialias=True)[0]
    return square.round().clamp(0, 255).to(torch.uint8)


def _pack(video: SourceVideo, name: str, hr: Tensor, recipe: SequenceRecipe) -> PackedSequence:
    lr = shrink(hr)
    degraded = {condition.name: condition.apply(lr, name, recipe.seed) for condition in recipe.conditions}
    return pack(
        DecodedSequence(
            name,
            video.source,
            video.licence,
            video.split,
            hr,
            {condition: frames for condition, (frames, _) in degraded.items()},
            {condition: drawn for condition, (_, drawn) in degraded.items()},
        )
    )
