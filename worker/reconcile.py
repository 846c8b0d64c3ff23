"""Bring Redis back in line with storage, so that no accepted job is ever lost.

Not by an emptied Redis, not by a process that died between two steps, not by a host that is gone. A pass is harmless
at any time: it enqueues only what storage shows to be missing and nobody has, under ids that Redis holds once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from pydantic import ValidationError

from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobRecord, JobStatus, PartialResult
from worker.contract.queue import TaskKind, TaskQueue, task_id
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage
from worker.job_files import finished_segments, read_plan
from worker.task_recovery import TaskRecovery

log = structlog.get_logger(__name__)

_GIVEN_UP = "every worker process that tried it was lost"


class Reconciler:
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

    def run(self, *, reap_expired_leases: bool = True) -> None:
        """One pass over everything; nothing if another supervisor is at it.

        `reap_expired_leases`: False right after Redis was away, when every lease has run out while its worker lives.
        """
        lock = self._recovery.lock()
        if not lock.acquire(blocking=False):
            return
        try:
            if reap_expired_leases:
                self._recovery.reap_expired_leases()
            self._recovery.return_stuck_handovers()
            self._recovery.forget_expired()
            self._rebuild_index()
            for job_id in [*self._registry.unfinished_ids(), *self._registry.partial_ids()]:
                lock.reacquire()
                with _unreadable_files_logged(job_id):
                    if record := self._storage.read_record(job_id):
                        self._reconcile(record)
        finally:
            lock.release()

    def _rebuild_index(self) -> None:
        """Make Redis know exactly the jobs of storage, which new ones enter first and deleted ones leave first."""
        indexed = self._registry.indexed_ids()
        stored = self._storage.job_ids()
        for job_id in stored:
            if job_id in indexed:
                continue
            with _unreadable_files_logged(job_id):
                if record := self._storage.read_record(job_id):
                    log.warning("job_indexed_again", job_id=job_id, status=record.status)
                    # Not `index`: the status may have changed since it was read.
                    self._registry.change(job_id, lambda current: current)
        for job_id in indexed.difference(stored):
            self._registry.remove(job_id)

    def _reconcile(self, record: JobRecord) -> None:
        if record.status.is_final:
            if not (record.wants_partial_result and self._registry.is_final(record.id)):
                # Redis lost its last second in a power cut; storage did not.
                self._registry.index(record)
            if not self._registry.wants_partial_result(record.id):
                return
        elif record.awaits_source:
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


@contextmanager
def _unreadable_files_logged(job_id: str) -> Iterator[None]:
    """One damaged file, or one of another version, must not keep the other jobs from their turn."""
    try:
        yield
    except ValidationError as error:
        log.error("job_files_unreadable", job_id=job_id, reason=str(error))
