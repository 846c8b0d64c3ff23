"""Decode ▶ triplets ▶ infer ▶ encode ▶ check: segments of a video from the source's file to files of their own.

    a thread                            the caller's thread               a thread per segment, two at most
    decode ▶ triplets ▶ batches  ────▶  infer: the networks       ────▶  encode ▶ read back, check ▶ publish

In between lies one batch at most: memory holds a few of them however long the video, and the networks, who are slowest,
find the next one ready. Of several segments one is brought to its end while the next is under way.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock, local
from typing import NamedTuple, TypeVar

import numpy as np

from worker.cage import Uncaged
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.storage import publishing, write_atomically
from worker.plan import SCALE, Plan
from worker.self_check import EQUAL_PSNR_DB, SegmentFigures, SelfCheck
from worker.stages import Channel, Taker, made_ahead
from worker.upscaler import FrameBatch, RemembersFrames, Tiled, TimesSteps, Upscaler
from worker.video.alpha import enlarge_alpha
from worker.video.colour import FromRgb, ToRgb
from worker.video.encode import encode_frames
from worker.video.frames import AlphaFrame, Frame, RgbFrame
from worker.video.read_segment import read_segment
from worker.video.still import jpeg
from worker.video.values import Picture

_Item = TypeVar("_Item")

_BATCHES_BETWEEN = 1
_THREADS = 3  # one that decodes, and of two segments those that encode


class Triplet(NamedTuple):
    """A frame and its neighbours in time."""

    previous_lr: Frame
    center_lr: Frame
    next_lr: Frame


class Batch(NamedTuple):
    """Frames for one call of the networks: previous, centre and next ones, each (B, H, W, 3), filled up to B."""

    frames: int
    """How many there are without the filling."""
    previous_lr: FrameBatch
    center_lr: FrameBatch
    next_lr: FrameBatch
    alphas: tuple[AlphaFrame | None, ...]
    """Transparency of the centre frames, enlarged; of the filling there is none."""


class UpscaledBatch(NamedTuple):
    """What became of a `Batch`: colours, (B, 2H, 2W, 3) with the filling, and transparency without."""

    colours: FrameBatch
    alphas: tuple[AlphaFrame | None, ...]


@dataclass
class Stills:
    """The first frame of a segment as JPEG, of the source and of the finished file. None: too large for that."""

    source: bytes | None = None
    result: bytes | None = None


@dataclass(frozen=True)
class SegmentOrder:
    """One segment to be rendered."""

    index: int
    target: Path
    figures: Path | None = None
    """Where to publish what the self-check finds: before the segment, so that none is ever without."""
    on_frames_done: Callable[[int], None] = lambda frames_done: None
    """Hears how many frames of the segment have been encoded so far, in the segment's own thread."""
    on_published: Callable[[], None] = lambda: None
    """Called in that thread too."""
    times: "StageTimes" = field(default_factory=lambda: StageTimes())
    stills: Stills | None = None
    """To be filled before it is published."""


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
    decode: Callable[..., Iterator[Frame]] = Uncaged.frames,
    times: "StageTimes | None" = None,
    stills: Stills | None = None,
) -> None:
    """Render one segment, as `render_segments` does with several."""
    render_segments(
        plan,
        [SegmentOrder(index, target, figures, on_frames_done, times=times or StageTimes(), stills=stills)],
        source,
        upscaler,
        batch_frames=batch_frames,
        on_batch=on_batch,
        check_canceled=check_canceled,
        on_frame_decoded=on_frame_decoded,
        decode=decode,
    )


def render_segments(
    plan: Plan,
    orders: Sequence[SegmentOrder],
    source: Path,
    upscaler: Upscaler,
    *,
    batch_frames: int,
    on_batch: Callable[[int], None] = lambda frames: None,
    check_canceled: Callable[[], None] = lambda: None,
    on_frame_decoded: Callable[[], None] = lambda: None,
    decode: Callable[..., Iterator[Frame]] = Uncaged.frames,
) -> None:
    """Compute segments of the plan, one after the other, and publish each at its target, whole or not at all.

    The networks run in the caller's thread; all threads beside it have ended when this returns or raises. After an
    error segments that the networks are done with are still brought to their end, the others leave nothing.

    `on_batch` hears how many frames a network call was asked for (the filling not counted), in the caller's thread.
    `check_canceled` is called there between batches, and by the thread that reads a segment back for every frame; it
    stops the work by raising. So may `on_frame_decoded`, which hears of frames on the way to a segment too, in the
    thread that decodes. `decode` is `worker.cage.Decoding.frames`, and is used in that thread alone. Raises
    `JobFailureError` when the source no longer decodes as planned, or a segment does not hold what was encoded.
    """
    segments = [_Segment(plan, order, upscaler) for order in orders]

    def batches_of_all(taken: Channel[Batch]) -> Generator[Batch, None, None]:
        def on_decoded() -> None:
            taken.demand_open()
            on_frame_decoded()

        for segment in segments:
            yield from segment.batches(
                batch_frames, partial(decode, source, on_progress=on_decoded, check=taken.demand_open)
            )

    with (
        ThreadPoolExecutor(_THREADS, thread_name_prefix="render") as threads,
        closing(made_ahead(threads, batches_of_all, _BATCHES_BETWEEN)) as batches,
    ):
        networks_free_at = time.perf_counter()
        ending: Taker[UpscaledBatch] | None = None
        for segment in segments:
            times = segment.times
            times.networks_taken_at = networks_free_at
            with Taker(threads, partial(segment.encode, check_canceled), _BATCHES_BETWEEN) as encoding:
                of_segment = times.timed(None, islice(batches, -(-segment.frames // batch_frames)))
                own = upscaler.for_segment() if isinstance(upscaler, RemembersFrames) else upscaler
                if isinstance(own, TimesSteps):
                    own.take_step_seconds()  # of a segment that was given up
                for upscaled in times.timed("infer", upscale(of_segment, own, on_batch, check_canceled)):
                    encoding.put(upscaled)
                    del upscaled  # not to be held while the next is computed
                    if ending:
                        ending.demand_health()
                if isinstance(own, RemembersFrames):  # before the encoder learns that this is all
                    segment.tiles_computed, segment.tiles_reused = own.tiles_computed, own.tiles_reused
                if isinstance(own, TimesSteps):
                    times.note_steps(own.take_step_seconds())
                del own  # with what it remembers
                if segment is not segments[-1]:  # for whose end the networks wait
                    networks_free_at = times.networks_left_at = time.perf_counter()
            if ending:
                ending.wait()
            ending = encoding
        if ending:
            ending.wait()


class _Segment:
    """One segment on its way, on both sides of the networks."""

    def __init__(self, plan: Plan, order: SegmentOrder, upscaler: Upscaler) -> None:
        segment = plan.segments[order.index]
        self.frames = segment.frames
        self.times = order.times
        self.tiles_computed = self.tiles_reused = 0
        self._plan = plan
        self._order = order
        self._first, self._stop = segment.first, segment.stop
        self._made_by = upscaler.fingerprint
        self._cuts = frozenset(plan.survey.cuts)
        tile_px = upscaler.tile_px if isinstance(upscaler, Tiled) else None
        self._check = SelfCheck(segment.first, segment.stop, self._cuts, tile_px)

    def batches(self, batch_frames: int, decode: Callable[..., Iterator[Frame]]) -> Iterator[Batch]:
        """Yield what the networks are to be shown."""
        plan, timed = self._plan, self.times.timed
        # The halo: one more frame on each side, decoded but not upscaled, except at the ends of the video.
        first, stop = max(self._first - 1, 0), min(self._stop + 1, plan.frames)
        decoded = timed("decode", decode(plan.survey, first, stop, max_pixels=plan.max_pixels))
        triplets = with_neighbours(decoded, first, self._cuts, self._first, self._stop)
        noted = timed("check", noting_sources(triplets, self._first, self._check, self._note_source_still))
        yield from timed("decode", in_batches(noted, batch_frames))

    def encode(self, check_canceled: Callable[[], None], upscaled: Channel[UpscaledBatch]) -> None:
        """Bring what the networks have made into a file, look whether it is right, and publish it."""
        plan, times, check = self._plan, self.times, self._check
        with publishing(self._order.target) as partial_file:
            frames = frames_of(times.timed(None, upscaled))
            given = times.timed("check", noting_encoder_input(frames, self._first, plan.picture, check))
            pts = plan.survey.frames.pts[self._first : self._stop]
            encoded = encode_frames(given, pts, plan.picture, plan.encoding, partial_file, made_by=self._made_by)
            for frames_done in times.timed("encode", encoded):
                upscaled.demand_open()
                self._order.on_frames_done(frames_done)
            wanted = {number - self._first for number in check.wanted}
            finished = read_segment(partial_file, plan.picture, self.frames, wanted, check_canceled)
            with times.spent("check"):
                found = check.compare((self._first + place, rgb) for place, rgb in self._noting_result_still(finished))
            if plan.encoding.quality == "lossless":
                _check_lossless(found)
            times.note_wait()
            if self._order.figures is not None:
                complete = found.model_copy(
                    update={
                        "stage_seconds": dict(times.seconds),
                        "tiles_computed": self.tiles_computed,
                        "tiles_reused": self.tiles_reused,
                    }
                )
                write_atomically(self._order.figures, complete.model_dump_json().encode())
        self._order.on_published()

    def _note_source_still(self, first_frame: RgbFrame) -> None:
        if self._order.stills is not None:
            self._order.stills.source = jpeg(first_frame, self._plan.survey.picture)

    def _noting_result_still(self, finished: Iterable[tuple[int, RgbFrame]]) -> Iterator[tuple[int, RgbFrame]]:
        """Yield the frames that the check asked for; the first is always among them."""
        for place, rgb in finished:
            if place == 0 and self._order.stills is not None:
                self._order.stills.result = jpeg(rgb, self._plan.picture)
            yield place, rgb


def noting_sources(
    triplets: Iterable[Triplet], first: int, check: SelfCheck, note_first: Callable[[RgbFrame], None] = lambda rgb: None
) -> Iterator[Triplet]:
    """Yield `triplets`, whose first centre is frame `first`, and show their centres to `check` on the way."""
    for number, triplet in enumerate(triplets, first):
        check.note_source(number, triplet.center_lr.rgb)
        if number == first:
            note_first(triplet.center_lr.rgb)
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


def in_batches(triplets: Iterable[Triplet], batch_frames: int) -> Iterator[Batch]:
    """Put `batch_frames` triplets together at a time, and enlarge their transparency by Lanczos.

    The networks always see exactly so many: the last batch is filled up by repeating its last triplet, so that the
    bytes of a frame never depend on how many others were at hand.
    """
    remaining = iter(triplets)
    while taken := list(islice(remaining, batch_frames)):
        filled = taken + [taken[-1]] * (batch_frames - len(taken))
        previous, center, following = (
            np.stack([frame.rgb for frame in frames]) for frames in zip(*filled, strict=True)
        )
        alphas = (triplet.center_lr.alpha for triplet in taken)
        enlarged = tuple(None if alpha is None else enlarge_alpha(alpha, SCALE) for alpha in alphas)
        yield Batch(len(taken), previous, center, following, enlarged)
        del previous, center, following, enlarged  # not to be held while the next ones are put together


def upscale(
    batches: Iterable[Batch],
    upscaler: Upscaler,
    on_batch: Callable[[int], None],
    check_canceled: Callable[[], None],
) -> Iterator[UpscaledBatch]:
    """Yield what the networks make of `batches`."""
    for batch in batches:
        check_canceled()
        on_batch(batch.frames)
        yield UpscaledBatch(upscaler(batch.previous_lr, batch.center_lr, batch.next_lr), batch.alphas)


def frames_of(batches: Iterable[UpscaledBatch]) -> Iterator[Frame]:
    """Yield the upscaled frames one by one, without the filling."""
    for batch in batches:
        for rgb, alpha in zip(batch.colours, batch.alphas, strict=False):  # of the filling there is no transparency
            yield Frame(rgb, alpha)
        del batch, rgb  # not to be held while the next one is waited for


class StageTimes:
    """Seconds that one segment took in each stage. Stages overlap, as each has a thread: they add up to more.

    decode: frames to arrive from the decoder, and to be put into batches; infer: the networks, with all copies to and
    from their device, of which hat and unet are the two steps; encode; check: the self-check, in all threads; wait: the
    networks had nothing to do, from taking the segment up to taking up the next, or where there is none to the end.
    infer and wait together are the time that the segment took. Encoders have threads of their own beside, whose work
    shows where it is waited for.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.networks_taken_at = time.perf_counter()
        self.networks_left_at: float | None = None
        self._adding = Lock()
        self._thread = _RunningStages()

    def timed(self, stage: str | None, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield `items`; the time that it takes to make each, less that of stages it pulls from, goes to `stage`.

        None: it is nobody's, as these are waited for.
        """
        remaining = iter(items)
        while True:
            with self.spent(stage):
                item = next(remaining, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not the end mark
            del item  # not to be held while the next is made

    @contextmanager
    def spent(self, stage: str | None) -> Iterator[None]:
        """Count the time inside to `stage`, in this thread."""
        self._count()
        self._thread.stages.append(stage)
        try:
            yield
        finally:
            self._count()
            self._thread.stages.pop()

    def note_steps(self, seconds: dict[str, float]) -> None:
        """What of `infer` each step of the networks took."""
        with self._adding:
            self.seconds.update(seconds)

    def note_wait(self) -> None:
        """At the end of the segment: the rest of the time that the networks were there for it."""
        until = self.networks_left_at or time.perf_counter()
        self.seconds["wait"] = until - self.networks_taken_at - self.seconds["infer"]

    def _count(self) -> None:
        now, running = time.perf_counter(), self._thread.stages
        if running and (stage := running[-1]) is not None:
            with self._adding:
                self.seconds[stage] += now - self._thread.since
        self._thread.since = now


class _RunningStages(local):
    """Of each thread its own: the stages at work, the one that was pulled from last."""

    def __init__(self) -> None:
        self.stages: list[str | None] = []
        self.since = 0.0


_END = object()
