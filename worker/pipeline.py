"""Decode ▶ triplets ▶ infer ▶ encode ▶ check: one segment of a video from the source's file to its own."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.storage import publishing, write_atomically
from worker.plan import SCALE, Plan
from worker.self_check import EQUAL_PSNR_DB, SegmentFigures, SelfCheck
from worker.upscaler import Tiled, Upscaler
from worker.video.alpha import enlarge_alpha
from worker.video.colour import FromRgb, ToRgb
from worker.video.decode import decode_frames
from worker.video.encode import encode_frames
from worker.video.frames import Frame
from worker.video.read_segment import read_segment
from worker.video.values import Picture

_Item = TypeVar("_Item")


class Triplet(NamedTuple):
    """A frame and its neighbours in time."""

    previous_lr: Frame
    center_lr: Frame
    next_lr: Frame


def render_segment(
    plan: Plan,
    index: int,
    source: Path,
    target: Path,
    upscaler: Upscaler,
    *,
    batch_frames: int,
    figures: Path | None = None,
    on_frames_done: Callable[[int], None] = lambda frames_done: None,
    on_batch: Callable[[int], None] = lambda frames: None,
    check_canceled: Callable[[], None] = lambda: None,
    on_frame_decoded: Callable[[], None] = lambda: None,
    decode: Callable[..., Iterator[Frame]] = decode_frames,
    times: "StageTimes | None" = None,
) -> None:
    """Compute segment `index` of the plan and publish it at `target`, whole or not at all.

    What the self-check finds in it is published at `figures` first, so that no segment is ever without them.
    `on_frames_done` hears how many frames of the segment are done, `on_batch` how many frames a network call was
    asked for (the filling not counted); `check_canceled` is called between batches and
    stops the work by raising. So may `on_frame_decoded`, which hears of frames on the way to the segment too. `decode`
    is `decode_frames`, here or in another process (worker.cage). Raises
    `JobFailureError` when the source no longer decodes as planned, or the segment does not hold what was encoded.
    """
    segment = plan.segments[index]
    table = plan.survey.frames
    cuts = frozenset(plan.survey.cuts)
    times = times or StageTimes()
    check = SelfCheck(segment.first, segment.stop, cuts, upscaler.tile_px if isinstance(upscaler, Tiled) else None)
    # The halo: one more frame on each side, decoded but not upscaled, except at the ends of the video.
    first, stop = max(segment.first - 1, 0), min(segment.stop + 1, plan.frames)

    with publishing(target) as partial:
        decoded = times.timed(
            "decode",
            decode(
                source,
                plan.survey,
                first,
                stop,
                max_pixels=plan.max_pixels,
                on_progress=on_frame_decoded,
            ),
        )
        triplets = with_neighbours(decoded, first, cuts, segment.first, segment.stop)
        noted = times.timed("check", noting_sources(triplets, segment.first, check))
        upscaled = times.timed("infer", upscale(noted, upscaler, batch_frames, on_batch, check_canceled))
        given = times.timed("check", noting_encoder_input(upscaled, segment.first, plan.picture, check))
        pts = table.pts[segment.first : segment.stop]
        encoded = encode_frames(given, pts, plan.picture, plan.encoding, partial, made_by=upscaler.fingerprint)
        for frames_done in times.timed("encode", encoded):
            on_frames_done(frames_done)
        wanted = {number - segment.first for number in check.wanted}
        finished = read_segment(partial, plan.picture, segment.frames, wanted, check_canceled)
        began = time.perf_counter()
        found = check.compare((segment.first + place, rgb) for place, rgb in finished)
        times.seconds["check"] += time.perf_counter() - began
        if plan.encoding.quality == "lossless":
            _check_lossless(found)
        if figures is not None:
            complete = found.model_copy(update={"stage_seconds": dict(times.seconds)})
            write_atomically(figures, complete.model_dump_json().encode())


def noting_sources(triplets: Iterable[Triplet], first: int, check: SelfCheck) -> Iterator[Triplet]:
    """Yield `triplets`, whose first centre is frame `first`, and show their centres to `check` on the way."""
    for number, triplet in enumerate(triplets, first):
        check.note_source(number, triplet.center_lr.rgb)
        yield triplet


def noting_encoder_input(frames: Iterable[Frame], first: int, picture: Picture, check: SelfCheck) -> Iterator[Frame]:
    """Yield `frames`, the first being frame `first`, and show some to `check` as the encoder will be given them."""
    from_rgb, to_rgb = FromRgb(picture), ToRgb(picture)
    for number, frame in enumerate(frames, first):
        if number in check.encoder_sample:
            check.note_encoder_input(number, to_rgb(from_rgb(frame)).rgb)
        yield frame


def _check_lossless(found: SegmentFigures) -> None:
    """A result that the user asked to be lossless is so, or is none."""
    for number, psnr_db in found.encoding_psnr_db.items():
        if psnr_db < EQUAL_PSNR_DB:
            raise JobFailureError(
                FailureCode.VERIFICATION_FAILED,
                f"the encoder did not give frame {number} back as it was ({psnr_db:.1f} dB), "
                "though the result shall be lossless: choose another codec",
            )


def with_neighbours(
    frames: Iterable[Frame], first: int, cuts: Collection[int], segment_first: int, segment_stop: int
) -> Iterator[Triplet]:
    """Yield frames `segment_first` to `segment_stop - 1` between their neighbours.

    `frames` are those from number `first` on; frames outside the segment (its halo) appear as neighbours only. Where
    there is no neighbour, at both ends of the video and at the `cuts` (frames that begin another shot), the frame
    itself stands in for it: no frame ever sees another shot.
    """
    remaining = enumerate(frames, first)
    number, center = next(remaining)
    previous = center
    for following_number, following in remaining:
        same_shot = following_number not in cuts
        if segment_first <= number < segment_stop:
            yield Triplet(previous, center, following if same_shot else center)
        previous, (number, center) = center if same_shot else following, (following_number, following)
    if segment_first <= number < segment_stop:
        yield Triplet(previous, center, center)


def upscale(
    triplets: Iterable[Triplet],
    upscaler: Upscaler,
    batch_frames: int,
    on_batch: Callable[[int], None],
    check_canceled: Callable[[], None],
) -> Iterator[Frame]:
    """Yield the upscaled centre frames: colours by the network, transparency by Lanczos beside it.

    The network always sees exactly `batch_frames` frames: the last batch is filled up by repeating its last triplet, so
    that the bytes of a frame never depend on how many others were at hand.
    """
    remaining = iter(triplets)
    while batch := list(islice(remaining, batch_frames)):
        check_canceled()
        on_batch(len(batch))
        filled = batch + [batch[-1]] * (batch_frames - len(batch))
        colours = upscaler(*(np.stack([frame.rgb for frame in frames]) for frames in zip(*filled, strict=True)))
        for triplet, rgb in zip(batch, colours, strict=False):  # the filling has no triplet
            alpha = triplet.center_lr.alpha
            yield Frame(rgb, None if alpha is None else enlarge_alpha(alpha, SCALE))


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
