"""A job's life: plan, its segments, assemble. RQ calls the functions by name; all that a message holds is JSON.

    queued ──plan──▶ running ──segment 0..n-1, W at a time──▶ assemble ──▶ succeeded
       └────────────────┴──────────── an expected failure, or all attempts used ────▶ failed
                                                            (canceled: by the gateway, at any time;
                                                             assemble then keeps what is finished, if that is wanted)

A preview belongs to none of these steps: it may come at any time before the end, and changes nothing of the job.

Every task may run twice, also at the same time: it looks first at what storage already holds, publishes atomically, and
counts through scripts and unique ids that do not mind a repetition.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog
from rq import Retry, get_current_job
from structlog.contextvars import bound_contextvars

from worker import metrics
from worker.assemble import assemble as assemble_video
from worker.cage import Cages, Decoding
from worker.contract import tracing
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobError, JobRecord, JobStatus, PartialResult, ResultInfo, VideoCodec, now
from worker.contract.presets import announce_maker, is_there_a_maker
from worker.contract.queue import MAX_ATTEMPTS, TaskKind, TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.report import Report
from worker.contract.speeds import note_segment
from worker.contract.storage import (
    PARTIAL_SUFFIX,
    JobFolder,
    JobStorage,
    partial_folder,
    publishing,
    remove_partial,
    write_atomically,
)
from worker.contract.tracing import trace_id_of
from worker.job_files import finished_segments, read_plan, segments_from_start
from worker.live import (
    as_streamed,
    forget_stream,
    make_playable,
    publish_failed_preview,
    publish_live,
    publish_preview,
    publish_stream_in_result,
    remove_preview,
    remove_streamed_segments,
    stills_of,
    write_live_facts,
)
from worker.loaded_models import LoadedModels
from worker.metrics import preset_label
from worker.opened_source import opened_source
from worker.pipeline import StageTimes, Stills, render_segment
from worker.plan import SCALE, Plan, make_plan
from worker.preview import preview_plan
from worker.rendering import (
    Rendering,
    RenderingChangedError,
    agreed_rendering,
    read_rendering,
    start_over,
    step_down,
    take_over,
    unchanged,
    with_rendering,
)
from worker.settings import VideoLimits, WorkerSettings
from worker.task_watch import JobCanceledError, TaskGivenBackError, TaskWatch

log = structlog.get_logger(__name__)

# Giving a task back is no attempt, so RQ's limit for it is one that no task ever reaches.
_GIVE_BACK = Retry(max=1_000_000, enqueue_at_front=True)
# At the end of the queue, so that this worker has its hands free for what it can do.
_LEAVE = Retry(max=1_000_000)
_LEAVE_SECONDS = 0.5
_PROGRESS_EVERY_SECONDS = 0.5
# A few beats of the lease may be missed before a worker counts as gone.
_BEATS_BEFORE_FORGOTTEN = 4


@dataclass(frozen=True)
class Workbench:
    """What a worker process has laid ready for its tasks."""

    registry: JobRegistry
    queue: TaskQueue
    storage: JobStorage
    models: LoadedModels
    watch: TaskWatch
    settings: WorkerSettings
    limits: VideoLimits
    cages: Cages

    def decoding(self, job: JobRecord) -> Decoding:
        """The way to read the job's source; the one place where strangers' bytes are parsed."""
        return self.cages.of(self.storage.folder(job.id).path)

    def announce(self, maker: str) -> None:
        """Say that this worker makes segments with this network. Its beats say it again."""
        ttl_seconds = round(self.settings.lease_seconds / 3 * _BEATS_BEFORE_FORGOTTEN)
        announce_maker(self.queue.rq.connection, maker, max(1, ttl_seconds))

    def note_segment(self, job: JobRecord, codec: VideoCodec, *, pixels: int, seconds: float, size_bytes: int) -> None:
        """Say what a segment has cost: estimates are made of it."""
        note_segment(
            self.queue.rq.connection, job.options, codec, pixels=pixels, seconds=seconds, size_bytes=size_bytes
        )

    def has_maker(self, maker: str) -> bool:
        """Whether a live worker has this network."""
        return is_there_a_maker(self.queue.rq.connection, maker)

    def on_progress(self) -> None:
        """To be called for every frame or packet of a long task: says that it lives, stops it when it is time."""
        self.watch.note_progress()
        self.watch.check()


workbench: ContextVar[Workbench] = ContextVar("workbench")
"""Set once by the worker process (worker.process): RQ can hand a task its message, but no objects."""


def plan(job_id: str) -> Retry | None:
    """Look at the source, refuse what cannot be done, lay out the segments."""
    return _perform(TaskKind.PLAN, job_id, _plan)


def segment(job_id: str, index: int) -> Retry | None:
    """Render one segment and pass the baton: to the next of its chain, or to `assemble`."""
    return _perform(TaskKind.SEGMENT, job_id, lambda bench, job: _segment(bench, job, index))


def preview(job_id: str, at_seconds: float) -> Retry | None:
    """Render two seconds of the job, to be looked at. Whatever comes of it, the job goes its way as if it were not."""

    def note_failure(bench: Workbench, job: JobRecord, code: FailureCode, message: str) -> None:
        tracing.note_failure(code)
        log.warning("preview_failed", code=code, reason=message)
        publish_failed_preview(bench.storage.folder(job.id), at_seconds, JobError(code=code, message=message))

    return _perform(TaskKind.PREVIEW, job_id, lambda bench, job: _preview(bench, job, at_seconds), fail=note_failure)


def assemble(job_id: str) -> Retry | None:
    """Join the segments and the source's other streams to the result; of a canceled job, what is there of it."""
    return _perform(TaskKind.ASSEMBLE, job_id, _assemble)


# --- the three steps --------------------------------------------------------------------------------------------------


def _plan(bench: Workbench, job: JobRecord) -> None:
    folder = bench.storage.folder(job.id)
    made = _made_plan(bench, job)
    started = bench.registry.start(job.id, made.source_info())
    if started is None:
        raise JobCanceledError
    if job.started_at is None:
        metrics.JOB_WAIT_SECONDS.observe((now() - job.created_at).total_seconds())
    bench.registry.start_rendering(job.id, made.frames, len(made.segments), finished_segments(made, folder))
    bench.queue.enqueue_first_segments(job.id, len(made.segments), made.segments_in_flight)
    log.info("job_started", frames=made.frames, segments=len(made.segments))


def _made_plan(bench: Workbench, job: JobRecord) -> Plan:
    """The job's plan: the one that is there, as segments may have been made from it, or else a new one."""
    folder = bench.storage.folder(job.id)
    made = read_plan(folder)
    if made is None:
        with metrics.STAGE_DURATION_SECONDS.labels("plan", preset_label(job.options.preset)).time():
            made = bench.decoding(job).call(
                make_plan,
                folder.source,
                job.options,
                bench.limits,
                Path(job.source_name).suffix,
                opened=_opened_source(bench, job),
                source_sha256=job.source_sha256,
                segment_frames=bench.settings.segment_frames,
                try_encoder=False,
                returns=Plan,
                on_progress=bench.on_progress,
            )
        made.demand_usable(job.options, bench.limits)
        made = made.model_copy(update={"segments_in_flight": bench.queue.fair_segments_in_flight()})
        with bench.storage.locked(job.id):
            # A preview may need it as soon as the job does; of two, the first stays.
            first = read_plan(folder)
            if first is None:
                # Segments without a plan are of another version of this program.
                shutil.rmtree(folder.segments, ignore_errors=True)
                folder.rendering.unlink(missing_ok=True)
                forget_stream(folder)
                write_atomically(folder.plan, made.model_dump_json().encode())
            else:
                made = first
    write_live_facts(folder, made)
    return made


def _segment(bench: Workbench, job: JobRecord, index: int) -> None:
    folder = bench.storage.folder(job.id)
    made = _plan_of(folder)
    tracing.note(segment=index, frames=made.segments[index].frames, preset=job.options.preset)
    try:
        if made.segment_file(folder, index).exists():
            raise _MadeByNowError
        _render(bench, job, made, index)
        metrics.SEGMENTS.labels("finished").inc()
    except _MadeByNowError:
        metrics.SEGMENTS.labels("existing").inc()
        log.info("segment_existing", index=index)

    total = len(made.segments)
    bench.queue.enqueue_segment_after(job.id, index, total, made.segments_in_flight)
    if bench.registry.finish_segment(job.id, index, made.segments[index].frames, total):
        bench.queue.enqueue_assemble(job.id)


def _render(bench: Workbench, job: JobRecord, made: Plan, index: int) -> None:
    """In the job's own way; one step down, again and again, while memory is too small for it."""
    folder = bench.storage.folder(job.id)
    maker = bench.models.get(job.options.preset).maker
    while True:
        bench.announce(maker)
        begun = read_rendering(folder) or _beginning(bench, job, made)
        rendering = agreed_rendering(folder, begun, maker)
        if rendering.made_by is not None and rendering.made_by != maker:
            _take_over(bench, job, made, rendering, rendering.made_by, maker)
            continue
        bench.registry.note_rendering(job.id, rendering.batch_frames, rendering.tile_px)
        try:
            _render_so(bench, job, made, index, rendering)
        except RenderingChangedError:
            continue
        except MemoryError:
            reason = "the processor's memory"
        except JobFailureError as failure:
            if failure.code is not FailureCode.OUT_OF_MEMORY:
                raise
            reason = failure.message
        else:
            return
        # Here, where the error and with it all that its frames held is gone.
        bench.watch.demand_lease()
        if bench.registry.is_final(job.id):  # what it has finished may be wanted
            raise JobCanceledError
        smaller = step_down(folder, made, rendering)
        counter = metrics.TILE_BACKOFFS if smaller.tile_px != rendering.tile_px else metrics.BATCH_BACKOFFS
        counter.inc()
        log.warning("memory_short", index=index, reason=reason, rendered=str(rendering), now_rendered=str(smaller))
        start_over(bench.registry, bench.queue, made, folder, job.id)
        bench.models.release_memory()


def _beginning(bench: Workbench, job: JobRecord, made: Plan) -> Rendering:
    width, height = made.picture.width // SCALE, made.picture.height // SCALE
    return bench.models.beginning(job.options.preset, width, height, reuse=job.options.reuse)


def _take_over(bench: Workbench, job: JobRecord, made: Plan, rendering: Rendering, others: str, maker: str) -> None:
    """Begin a job anew that was begun with other weights, or on another kind of device, where nobody has those now.

    Raises `_MadeByOthersError` where a live worker has: two kinds of workers shall not undo each other's work.
    """
    if bench.has_maker(others):
        _leave_to_others(bench)
    if bench.registry.is_final(job.id):
        raise JobCanceledError
    bench.watch.demand_lease()
    log.warning("job_started_over", reason="other weights, or another kind of device", before=others, now=maker)
    folder = bench.storage.folder(job.id)
    take_over(folder, rendering, maker)
    start_over(bench.registry, bench.queue, made, folder, job.id)


def _leave_to_others(bench: Workbench) -> NoReturn:
    """Raise `_MadeByOthersError`, but not at once: else nobody might be quicker than this very worker."""
    until = time.monotonic() + _LEAVE_SECONDS
    while time.monotonic() < until:
        bench.on_progress()
        time.sleep(_PROGRESS_EVERY_SECONDS / 5)
    raise _MadeByOthersError


def _render_so(bench: Workbench, job: JobRecord, made: Plan, index: int, rendering: Rendering) -> None:
    folder = bench.storage.folder(job.id)
    progress = _SegmentProgress(bench, job, index, made.picture.width * made.picture.height)
    times, stills, began = StageTimes(), stills_of(made, index), time.perf_counter()
    folder.make_segments()
    with ExitStack() as until_published, publishing(made.segment_file(folder, index)) as partial:
        render_segment(
            made,
            index,
            _opened_source(bench, job),
            partial,
            bench.models.get(job.options.preset, rendering, reuse=job.options.reuse),
            batch_frames=rendering.batch_frames,
            figures=made.figures_file(folder, index),
            on_frames_done=progress.note,
            on_batch=metrics.BATCH_FRAMES.observe,
            check_canceled=bench.watch.check,
            on_frame_decoded=bench.on_progress,
            decode=bench.decoding(job).frames,
            times=times,
            stills=stills,
        )
        wall_seconds, size_bytes = time.perf_counter() - began, partial.stat().st_size
        streamed = as_streamed(made, index, partial)
        bench.watch.demand_lease()
        until_published.enter_context(unchanged(folder, rendering))
        if made.segment_file(folder, index).exists():
            raise _MadeByNowError
        publish_live(folder, made, index, partial, streamed, stills)
    pixels = made.segments[index].frames * made.picture.width * made.picture.height // SCALE**2
    bench.note_segment(job, made.encoding.codec, pixels=pixels, seconds=wall_seconds, size_bytes=size_bytes)
    for stage, seconds in times.seconds.items():
        metrics.STAGE_DURATION_SECONDS.labels(stage, preset_label(job.options.preset)).observe(seconds)
    tracing.note(**{f"seconds.{stage}": spent for stage, spent in times.seconds.items()})
    log.info(
        "segment_finished", index=index, seconds={stage: round(spent, 3) for stage, spent in times.seconds.items()}
    )


def _preview(bench: Workbench, job: JobRecord, at_seconds: float) -> None:
    """In the job's way if that is agreed upon, else as it would begin; where memory is short for it, a smaller one."""
    folder = bench.storage.folder(job.id)
    made = _made_plan(bench, job)
    remove_preview(folder)
    maker = bench.models.get(job.options.preset).maker
    rendering = read_rendering(folder) or _beginning(bench, job, made)
    if rendering.made_by not in (None, maker) and bench.has_maker(rendering.made_by):
        _leave_to_others(bench)
    longer_side_px = max(made.survey.picture.width, made.survey.picture.height)
    ways = list(rendering.and_smaller(longer_side_px))
    # A worker that was lost at it may have needed too much.
    for way in ways[min(_attempt(), len(ways)) - 1 :]:
        try:
            with metrics.STAGE_DURATION_SECONDS.labels("preview", preset_label(job.options.preset)).time():
                _render_preview(bench, job, preview_plan(made, at_seconds), way)
        except MemoryError:
            log.warning("memory_short", reason="the processor's memory", rendered=str(way))
        except JobFailureError as failure:
            if failure.code is not FailureCode.OUT_OF_MEMORY:
                raise
            log.warning("memory_short", reason=failure.message, rendered=str(way))
        else:
            return
        bench.models.release_memory()
    raise JobFailureError(FailureCode.OUT_OF_MEMORY, f"the memory is too small even for {ways[-1]}")


def _render_preview(bench: Workbench, job: JobRecord, part: Plan, rendering: Rendering) -> None:
    folder, stills = bench.storage.folder(job.id), Stills()
    folder.make_live()
    with ExitStack() as until_published:
        rendered = until_published.enter_context(partial_folder(folder.live, "preview")) / "rendered.mp4"
        render_segment(
            part,
            0,
            _opened_source(bench, job),
            rendered,
            bench.models.get(job.options.preset, rendering, reuse=job.options.reuse),
            batch_frames=rendering.batch_frames,
            on_frames_done=lambda frames_done: bench.watch.note_progress(),
            check_canceled=bench.watch.check,
            on_frame_decoded=bench.on_progress,
            decode=bench.decoding(job).frames,
            stills=stills,
        )
        playable = rendered.with_name("playable.mp4")
        facts = make_playable(playable, part, rendered)
        bench.watch.demand_lease()
        until_published.enter_context(_still_wanted(bench, job))
        publish_preview(folder, playable, facts, stills)
    log.info("preview_made", frames=part.segments[0].frames)


def _assemble(bench: Workbench, job: JobRecord) -> None:
    if job.wants_partial_result:
        _keep_partial_result(bench, job)
        return
    folder = bench.storage.folder(job.id)
    made = _plan_of(folder)
    if len(finished_segments(made, folder)) < len(made.segments):
        raise _IncompleteError
    result = _publish_result(bench, job, made, made)
    publish_stream_in_result(folder, made, folder.result(made.container), bench.on_progress)
    ended = bench.registry.succeed(job.id, result)
    if ended is None:
        raise JobCanceledError
    _count_end(ended)
    _remove_what_the_result_replaces(folder)
    log.info("job_succeeded", frames=made.frames)


def _keep_partial_result(bench: Workbench, job: JobRecord) -> None:
    """The segments stay: whoever has the job tried again goes on from them."""
    folder = bench.storage.folder(job.id)
    whole = read_plan(folder)
    segments = segments_from_start(whole, folder) if whole else 0
    if whole is None or segments == 0:
        bench.registry.end_partial_result(job.id, PartialResult.NOTHING_FINISHED)
        log.info("nothing_to_keep")
        return
    result = _publish_result(bench, job, whole.cut_to(segments), whole)
    if bench.registry.end_partial_result(job.id, PartialResult.KEPT, result) is None:
        raise JobCanceledError
    log.info("partial_result_kept", frames=result.frames, frames_total=whole.frames)


def _publish_result(bench: Workbench, job: JobRecord, made: Plan, whole: Plan) -> ResultInfo:
    """Put the file and its report in their places. `made`: all of the job's plan (`whole`), or its beginning."""
    folder = bench.storage.folder(job.id)
    result = folder.result(made.container)
    source = _opened_source(bench, job)
    taken = metrics.STAGE_DURATION_SECONDS.labels("assemble", preset_label(job.options.preset)).time()
    with taken, ExitStack() as until_published:
        with publishing(result) as partial:
            with bench.decoding(job).making(partial) as (writer, path):
                report = writer.call(
                    assemble_video,
                    made,
                    source,
                    made.segment_files(folder),
                    path,
                    whole=whole if made.frames < whole.frames else None,
                    returns=Report,
                    on_progress=bench.on_progress,
                )
            bench.watch.demand_lease()
            until_published.enter_context(_still_wanted(bench, job))
        report = with_rendering(report, read_rendering(folder))
        write_atomically(folder.report, report.model_dump_json(indent=2).encode())
    return ResultInfo(
        container=made.container,
        width=made.picture.width,
        height=made.picture.height,
        frames=made.frames,
        size_bytes=report.result.size_bytes,
        sha256=report.result.sha256,
    )


@contextmanager
def _still_wanted(bench: Workbench, job: JobRecord) -> Iterator[None]:
    """To publish a result in, under the job's lock: no process that slept puts a beginning over the whole.

    Raises `JobCanceledError` if the job has been canceled meanwhile, or tried again.
    """
    with bench.storage.locked(job.id):
        current = bench.registry.get(job.id)
        if current is None or (current.status.is_final and not current.wants_partial_result):
            raise JobCanceledError
        if current.wants_partial_result != job.wants_partial_result:
            raise JobCanceledError
        yield


def _opened_source(bench: Workbench, job: JobRecord) -> Path:
    folder = bench.storage.folder(job.id)
    return opened_source(
        bench.decoding(job), folder.source, folder.pictures, job.options, bench.limits, bench.on_progress
    )


# --- around every step ------------------------------------------------------------------------------------------------


def _perform(
    kind: TaskKind,
    job_id: str,
    work: Callable[[Workbench, JobRecord], None],
    fail: Callable[[Workbench, JobRecord, FailureCode, str], None] | None = None,
) -> Retry | None:
    """One attempt at one task: skipped, done, given back, failed quietly, or crashed loudly and tried again.

    `fail` says so of the task; None: of its job.
    """
    fail = fail or _fail
    bench = workbench.get()
    job = bench.registry.get(job_id)
    trace_parent = job.trace_parent if job else None
    with (
        bound_contextvars(
            job_id=job_id, request_id=job.request_id if job else None, task=kind.value, **trace_id_of(trace_parent)
        ),
        tracing.span(
            f"vsr {kind}", trace_parent, job_id=job_id, request_id=job.request_id if job else None, attempt=_attempt()
        ),
    ):
        keeps_partial = kind is TaskKind.ASSEMBLE and job is not None and job.wants_partial_result
        if job is None or (job.status.is_final and not keeps_partial):
            _tidy_up_after(bench, job)
            return None

        def has_ended() -> bool:
            if keeps_partial:
                return not bench.registry.wants_partial_result(job_id)
            return bench.registry.is_final(job_id)

        attempt = _attempt()
        if attempt > MAX_ATTEMPTS:
            reason = f"{MAX_ATTEMPTS} attempts at one task ({kind}), and the worker process was lost in the last"
            fail(bench, job, FailureCode.WORKER_LOST, reason)
            return None
        try:
            bench.queue.note_begun(kind)
            with bench.watch.over(job_id, has_ended):
                work(bench, job)
        except JobCanceledError:
            log.info("task_stopped", reason="the job has ended")
            _count_segment(kind, "canceled")
            if kind is TaskKind.ASSEMBLE and not keeps_partial and bench.registry.wants_partial_result(job_id):
                return _GIVE_BACK  # canceled under our hands: as the same task, it is the one that keeps what is there
        except TaskGivenBackError:
            log.info("task_given_back")
            _count_segment(kind, "given_back")
            return _GIVE_BACK
        except _MadeByOthersError:
            log.info("task_left", reason="a worker with other weights, or of another kind, has begun the job")
            _count_segment(kind, "given_back")
            return _LEAVE
        except _IncompleteError:
            # Segments were removed after they had been counted. The reconciler hands them out again, and then this.
            log.warning("task_stopped", reason="segments are missing")
        except _NotPlannedError:
            # An update of the program came in between. The reconciler sees it and has the job planned anew.
            log.warning("task_stopped", reason="there is no plan of this version")
        except JobFailureError as failure:
            _count_segment(kind, "failed")
            fail(bench, job, failure.code, failure.message)
        except Exception:
            # Deleted under our hands: no wonder that files were missing. The folder goes first, then Redis forgets it.
            if not bench.storage.folder(job_id).path.exists() or has_ended():
                log.info("task_stopped", reason="the job has ended")
                return None
            log.exception("task_crashed", attempt=attempt)
            tracing.note_failure(FailureCode.INTERNAL)
            _count_segment(kind, "failed")
            if attempt < MAX_ATTEMPTS:
                raise
            fail(bench, job, FailureCode.INTERNAL, "the worker met an error that it does not know; its log has more")
    return None


def _attempt() -> int:
    """1 for the first. RQ counts down, for crashes and for lost workers alike, but not for tasks given back."""
    task = get_current_job()
    retries_left = task.retries_left if task else None
    return 1 if retries_left is None else MAX_ATTEMPTS - retries_left + 1


def _fail(bench: Workbench, job: JobRecord, code: FailureCode, message: str) -> None:
    """The source and the finished segments stay until the job is deleted: what was computed is kept."""
    tracing.note_failure(code)
    if job.wants_partial_result:
        if bench.registry.end_partial_result(job.id, PartialResult.FAILED):
            log.warning("partial_result_failed", code=code, reason=message)
        return
    bench.storage.folder(job.id).pictures.unlink(missing_ok=True)
    ended = bench.registry.fail(job.id, JobError(code=code, message=message))
    if ended:
        _count_end(ended)
        log.warning("job_failed", code=code, reason=message)


def _count_end(job: JobRecord) -> None:
    metrics.JOBS_FINISHED.labels(status=job.status, reason=job.error.code if job.error else "").inc()
    if job.started_at and job.finished_at:
        duration = metrics.JOB_DURATION_SECONDS.labels(preset_label(job.options.preset))
        duration.observe((job.finished_at - job.started_at).total_seconds())


def _count_segment(kind: TaskKind, outcome: str) -> None:
    tracing.note(outcome=outcome)
    if kind is TaskKind.SEGMENT:
        metrics.SEGMENTS.labels(outcome).inc()


def _tidy_up_after(bench: Workbench, job: JobRecord | None) -> None:
    """A worker may have died right after reporting success."""
    if job and job.status is JobStatus.SUCCEEDED:
        _remove_what_the_result_replaces(bench.storage.folder(job.id))


def _remove_what_the_result_replaces(folder: JobFolder) -> None:
    """Keeping what the result holds, or the source, would double what every finished job occupies.

    Those are the segments' very packets, and the source's very pictures. Partial files of dead workers go too.
    """
    shutil.rmtree(folder.segments, ignore_errors=True)
    remove_streamed_segments(folder)
    folder.pictures.unlink(missing_ok=True)
    folder.rendering.unlink(missing_ok=True)
    for partial in (*folder.path.glob(f"*{PARTIAL_SUFFIX}"), *folder.live.glob(f"*{PARTIAL_SUFFIX}")):
        remove_partial(partial)


def _plan_of(folder: JobFolder) -> Plan:
    made = read_plan(folder)
    if made is None:
        raise _NotPlannedError
    return made


class _NotPlannedError(Exception):
    """The job's plan is gone, or of another version of this program."""


class _MadeByOthersError(Exception):
    """The job is made with other weights, or on another kind of device, by a worker that lives."""


class _MadeByNowError(Exception):
    """The segment is there: by an earlier attempt, or by a worker that got the task while this one stood still."""


class _IncompleteError(Exception):
    """Not all segments are there."""


class _SegmentProgress:
    """Tells Redis how far the segment is, twice per second at most; the watch and the metrics hear of every frame."""

    def __init__(self, bench: Workbench, job: JobRecord, index: int, frame_pixels: int) -> None:
        self._bench = bench
        self._job_id = job.id
        self._frames = metrics.FRAMES.labels(preset_label(job.options.preset))
        self._output_pixels = metrics.OUTPUT_PIXELS.labels(preset_label(job.options.preset))
        self._index = index
        self._frame_pixels = frame_pixels
        self._frames_done = 0
        self._told_at = 0.0

    def note(self, frames_done: int) -> None:
        """`frames_done`: of this segment, so far."""
        self._bench.watch.note_progress()
        self._frames.inc(frames_done - self._frames_done)
        self._output_pixels.inc((frames_done - self._frames_done) * self._frame_pixels)
        self._frames_done = frames_done
        if time.monotonic() - self._told_at >= _PROGRESS_EVERY_SECONDS:
            self._told_at = time.monotonic()
            self._bench.registry.note_segment_progress(self._job_id, self._index, frames_done)
