"""Bring Redis back in line with storage, so that no accepted job is ever lost.

Not by an emptied Redis, not by a process that died between two steps, not by a host that is gone. A pass is harmless
at any time: it enqueues only what storage shows to be missing and nobody has, under ids that Redis holds once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog
from pydantic import ValidationError
from redis.exceptions import LockError, LockNotOwnedError
from redis.lock import Lock

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobError, JobRecord, JobStatus, PartialResult
from worker.contract.queue import TaskKind, TaskQueue, task_id
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage, StorageBusyError
from worker.job_files import finished_segments, read_plan
from worker.task_recovery import TaskRecovery

log = structlog.get_logger(__name__)

_LOCK_KEY = "vsr:lock:reconcile"
# What a supervisor that dies in a pass costs the others; one job takes far less, and then the lock is renewed.
_LOCK_SECONDS = 5
_GIVEN_UP = "every worker process that tried it was lost"


class Reconciler:
    """May run in a thread of its own, beside one that uses the same `TaskRecovery` for deaths and leases."""

    def __init__(
        self,
        registry: JobRegistry,
        queue: TaskQueue,
        storage: JobStorage,
        recovery: TaskRecovery,
        on_failed: Callable[[FailureCode], None] = lambda code: None,
    ) -> None:
        """`on_failed` hears of every job that is ended here, and why."""
        self._on_failed = on_failed
        self._registry = registry
        self._queue = queue
        self._storage = storage
        self._recovery = recovery

    def run(self) -> None:
        """One pass over everything; nothing if another supervisor is at it.

        Raises `RedisError` where Redis is away; whatever is wrong with one job is logged, and keeps no other waiting.
        """
        lock = self._queue.rq.connection.lock(_LOCK_KEY, timeout=_LOCK_SECONDS)
        if not lock.acquire(blocking=False):
            return
        try:
            self._recovery.return_stuck_handovers()
            self._recovery.forget_expired()
            for job_id, work in self._pass():
                if not _is_ours(lock):
                    return
                with _trouble_logged(job_id):
                    work(job_id)
        finally:
            with suppress(LockError):  # the last job took longer than the lock lasts
                lock.release()

    def _pass(self) -> Iterator[tuple[str, Callable[[str], object]]]:
        """What to do for which job, in this order: those that somebody waits for come first."""
        for job_id in self._registry.unwritten_ids():
            yield job_id, self._registry.settle
        # Storage knows new jobs first, and loses deleted ones first.
        indexed = self._registry.indexed_ids()
        stored = self._storage.job_ids()
        # A Redis that was started again may have lost its last second, and with it that an old job is tried again.
        is_checked = self._registry.is_checked()
        unsettled = [job_id for job_id in stored if job_id not in indexed or not is_checked]
        ended: list[str] = []
        for job_id in unsettled:
            yield job_id, lambda job_id: self._index_again(job_id, later=ended)
        for job_id in [*self._registry.unfinished_ids(), *self._registry.partial_ids()]:
            yield job_id, self._reconcile
        for job_id in ended:
            yield job_id, self._registry.settle
        for job_id in indexed.difference(stored):
            yield job_id, self._registry.remove
        if not is_checked:
            self._registry.note_checked()

    def _index_again(self, job_id: str, later: list[str]) -> None:
        """Let Redis know the job, if it is one to work on; else put it on the list `later`."""
        record = self._storage.read_record(job_id)
        if record is None:
            return
        if record.status.is_final and not record.wants_partial_result:
            later.append(job_id)
        else:
            self._registry.settle(job_id)

    def _reconcile(self, job_id: str) -> None:
        record = self._registry.settle(job_id)
        if record is None or (record.status.is_final and not record.wants_partial_result):
            return
        if not record.status.is_final and record.awaits_source:
            self._registry.expect_errands(record)
            return
        # First the tasks, then storage: a task that ends in between has left its work there.
        live = self._recovery.live_tasks()
        for kind, index in self._expected_tasks(record):
            task = task_id(kind, record.id, index)
            if task in live or task in self._recovery.live_tasks():  # the second: enqueued since
                continue
            if self._recovery.has_failed(task):
                # Cannot happen while worker.tasks can talk to Redis: it fails the job itself, before RQ gives up.
                if self._registry.end_partial_result(record.id, PartialResult.FAILED):
                    return
                if self._registry.fail(record.id, JobError(code=FailureCode.WORKER_LOST, message=_GIVEN_UP)):
                    self._on_failed(FailureCode.WORKER_LOST)
                return
            log.warning("task_enqueued_again", job_id=record.id, request_id=record.request_id, task=task)
            self._queue.enqueue_again(kind, record.id, index)

    def _expected_tasks(self, record: JobRecord) -> list[tuple[TaskKind, int | None]]:
        """For each chain of the job its first task that storage does not show to be done."""
        if record.wants_partial_result:
            return [(TaskKind.ASSEMBLE, None)]
        folder = self._storage.folder(record.id)
        plan = read_plan(folder)
        if plan is None or record.status is JobStatus.QUEUED:
            return [(TaskKind.PLAN, None)]
        total = len(plan.segments)
        finished = finished_segments(plan, folder)
        if self._registry.progress(record.id).segments_total == 0:
            self._registry.start_rendering(record.id, plan.frames, total, finished)
        step = plan.segments_in_flight
        first_missing = [
            next((index for index in range(chain, total, step) if index not in finished), None) for chain in range(step)
        ]
        expected: list[tuple[TaskKind, int | None]] = [
            (TaskKind.SEGMENT, index) for index in first_missing if index is not None
        ]
        return expected or [(TaskKind.ASSEMBLE, None)]


def _is_ours(lock: Lock) -> bool:
    """Renew it, or take it again: one job may have taken longer than it lasts. False: somebody else has it by now."""
    try:
        lock.reacquire()
    except LockNotOwnedError:
        return bool(lock.acquire(blocking=False))
    return True


@contextmanager
def _trouble_logged(job_id: str) -> Iterator[None]:
    """A damaged file or one of another version, a full disk, a frozen process that holds a job: of this job alone."""
    try:
        yield
    except ValidationError as error:
        log.error("job_files_unreadable", job_id=job_id, reason=str(error))
    except JobFailureError as failure:
        log.error("job_not_reconciled", job_id=job_id, reason=failure.message)
    except (StorageBusyError, OSError) as error:
        log.error("job_not_reconciled", job_id=job_id, reason=f"{type(error).__name__}: {error}")
