"""Decode ▶ triplets ▶ infer ▶ encode: one segment of a video from the source's file to its own."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from worker.contract.storage import publishing
from worker.plan import Plan
from worker.upscaler import Upscaler
from worker.video.colour import RgbFrame
from worker.video.decode import decode_frames
from worker.video.encode import encode_frames

_Item = TypeVar("_Item")


class Triplet(NamedTuple):
    """A frame and its neighbours in time, each (H, W, 3)."""

    previous_lr: RgbFrame
    center_lr: RgbFrame
    next_lr: RgbFrame


def render_segment(
    plan: Plan,
    index: int,
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    batch_frames: int,
    on_frames_done: Callable[[int], None] = lambda frames_done: None,
    on_batch: Callable[[int], None] = lambda frames: None,
    check_canceled: Callable[[], None] = lambda: None,
    on_frame_decoded: Callable[[], None] = lambda: None,
    times: "StageTimes | None" = None,
) -> None:
    """Compute segment `index` of the plan and publish it at `target`, whole or not at all.

    `on_frames_done` hears how many frames of the segment are done, `on_batch` how many frames a network call was
    asked for (the filling not counted); `check_canceled` is called between batches and
    stops the work by raising. So may `on_frame_decoded`, which hears of frames on the way to the segment too. Raises
    `JobFailureError` when the source no longer decodes as planned.
    """
    segment = plan.segments[index]
    table = plan.survey.frames
    times = times or StageTimes()
    # The halo: one more frame on each side, decoded but not upscaled, except at the ends of the video.
    first, stop = max(segment.first - 1, 0), min(segment.stop + 1, plan.frames)

    with publishing(target) as partial:
        decoded = times.timed(
            "decode",
            decode_frames(
                source,
                plan.survey.stream_index,
                plan.survey.picture,
                table,
                first,
                stop,
                max_pixels=plan.max_pixels,
                on_progress=on_frame_decoded,
            ),
        )
        triplets = with_neighbours(decoded, halo_before=first < segment.first, halo_after=stop > segment.stop)
        upscaled = times.timed("infer", upscale(triplets, upscaler, batch_frames, on_batch, check_canceled))
        pts = table.pts[segment.first : segment.stop]
        encoded = encode_frames(upscaled, pts, plan.picture, plan.encoding, partial, made_by=upscaler.fingerprint)
        for frames_done in times.timed("encode", encoded):
            on_frames_done(frames_done)


def with_neighbours(frames: Iterable[RgbFrame], *, halo_before: bool, halo_after: bool) -> Iterator[Triplet]:
    """Yield every frame between its neighbours; the halo frames appear as neighbours only.

    Where there is no neighbour, at the first and at the last frame of a video, the frame itself stands in for it. Cuts
    between scenes are not detected yet (issue 4): across one, a frame of another scene is given as the neighbour.
    """
    remaining = iter(frames)
    center = next(remaining)
    previous = center
    if halo_before:
        center = next(remaining)
    for following in remaining:
        yield Triplet(previous, center, following)
        previous, center = center, following
    if not halo_after:
        yield Triplet(previous, center, center)


def upscale(
    triplets: Iterable[Triplet],
    upscaler: Upscaler,
    batch_frames: int,
    on_batch: Callable[[int], None],
    check_canceled: Callable[[], None],
) -> Iterator[RgbFrame]:
    """Yield the upscaled centre frames, (2H, 2W, 3).

    The network always sees exactly `batch_frames` frames: the last batch is filled up by repeating its last triplet, so
    that the bytes of a frame never depend on how many others were at hand.
    """
    remaining = iter(triplets)
    while batch := list(islice(remaining, batch_frames)):
        check_canceled()
        on_batch(len(batch))
        filled = batch + [batch[-1]] * (batch_frames - len(batch))
        yield from upscaler(*(np.stack(frames) for frames in zip(*filled, strict=True)))[: len(batch)]


class StageTimes:
    """Seconds spent in each stage itself, while the stages pull frames from one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def timed(self, stage: str, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield `items`; the time that it takes to make each, less that of stages it pulls from, goes to `stage`."""
        remaining = iter(items)
        while True:
            self._switch(enter=stage)
            try:
                item = next(remaining, _END)
            finally:
                self._switch(enter=None)
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not the end mark

    def _switch(self, *, enter: str | None) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
        if enter is None:
            self._running.pop()
        else:
            self._running.append(enter)


_END = object()
