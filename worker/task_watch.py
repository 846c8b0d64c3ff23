"""A thread beside the task: renews its lease, sees that its job was canceled, and ends a process that got stuck.

                       every 0.25 s                 every third of the lease
    the job is final? ──▶ the task's next check      the task made progress? ──▶ renew ──▶ still ours?
          still running 1.25 s later ──▶ exit                no, for too long ──▶ exit          no ──▶ exit

Python cannot interrupt a call into the network or the encoder from another thread. Hence the exits: the supervisor
starts a new process at once and gives the task back to the queue; a task of a canceled job ends there at once.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

import structlog

from worker.contract.registry import JobRegistry
from worker.exit_codes import ExitCode

log = structlog.get_logger(__name__)

_TICK_SECONDS = 0.25
# With one tick before it and the supervisor's poll after it, a cancel takes effect within two seconds.
_CANCEL_GRACE_SECONDS = 1.25


class JobCanceledError(Exception):
    """The job of the task under way is final (canceled, failed in another segment) or gone: stop, nothing to report."""


class TaskGivenBackError(Exception):
    """The process is asked to stop: leave the task to another worker."""


class Lease(Protocol):
    """The claim of this process on the task that it works on."""

    def renew(self) -> None: ...

    def is_held(self) -> bool: ...


class TaskWatch:
    """One per worker process. The task calls `check`, `note_progress` and `demand_lease`; the thread does the rest."""

    def __init__(
        self,
        lease: Lease,
        registry: JobRegistry,
        announce: Callable[[], None],
        *,
        lease_seconds: float,
        stall_seconds: float,
    ) -> None:
        """`announce` is called with every renewal, busy or not: it tells the others what this process has loaded."""
        self._lease = lease
        self._registry = registry
        self._announce = announce
        self._beat_seconds = lease_seconds / 3
        self._stall_seconds = stall_seconds
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._task: _WatchedTask | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="task-watch", daemon=True).start()

    def stop(self) -> None:
        """End the thread, in a process that goes on without it: from now on it ends nothing. Returns at once."""
        self._stopped.set()

    # --- for the task -------------------------------------------------------------------------------------------

    @contextmanager
    def over(self, job_id: str, has_ended: Callable[[], bool] | None = None) -> Iterator[None]:
        """Watch the task that runs inside. Raises as `check` does if it should not even begin.

        `has_ended`: says when the task has no purpose any more. None: when its job is final.
        """
        self._task = _WatchedTask(job_id, has_ended or (lambda: self._registry.is_final(job_id)))
        try:
            self.check()
            yield
        finally:
            self._task = None

    def check(self) -> None:
        """To be called between batches. Raises `JobCanceledError` or `TaskGivenBackError` when it is time to stop."""
        if self._task and self._task.canceled_at is not None:
            raise JobCanceledError
        if self._draining.is_set():
            raise TaskGivenBackError

    def note_progress(self) -> None:
        """To be called whenever something was done: a task that stops doing so has stalled."""
        if self._task:
            self._task.progress_at = time.monotonic()

    def demand_lease(self) -> None:
        """To be called right before publishing. Does not return if the task was given to another worker meanwhile."""
        if not self._lease.is_held():
            _exit(ExitCode.LEASE_LOST, "the task was given to another worker")

    def drain(self) -> None:
        """Make every check from now on give the task back. Safe in a signal handler."""
        self._draining.set()

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_beat = time.monotonic()
        try:
            while not self._stopped.is_set():
                task = self._task
                if task:
                    self._look_for_cancel(task)
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + self._beat_seconds
                    self._announce()
                    # A canceled task is only given time to stop; the supervisor gives it to nobody.
                    if task and task.canceled_at is None:
                        self._renew(task)
                self._stopped.wait(_TICK_SECONDS)
        except Exception:
            if self._stopped.is_set():
                return
            # Without this thread the lease would run out under a task that goes on: better to end both.
            log.exception("watch_crashed")
            _exit(ExitCode.REDIS_LOST, "the thread that renews the lease ended")

    def _look_for_cancel(self, task: "_WatchedTask") -> None:
        if task.canceled_at is None and task.has_ended():
            task.canceled_at = time.monotonic()
        if task.canceled_at is not None and time.monotonic() - task.canceled_at > _CANCEL_GRACE_SECONDS:
            self._exit_if_still_at(task, ExitCode.CANCELED, "the canceled task did not stop by itself")

    def _renew(self, task: "_WatchedTask") -> None:
        if time.monotonic() - task.progress_at > self._stall_seconds:
            self._exit_if_still_at(task, ExitCode.STALLED, f"no progress for {self._stall_seconds:.0f} s")
            return
        if self._task is not task:
            return
        self._lease.renew()
        if not self._lease.is_held():
            self._exit_if_still_at(task, ExitCode.LEASE_LOST, "the task was given to another worker")

    def _exit_if_still_at(self, task: "_WatchedTask", code: ExitCode, reason: str) -> None:
        """The task may have ended while we looked; then all is well."""
        if self._task is task:
            _exit(code, reason, job_id=task.job_id)


class _WatchedTask:
    def __init__(self, job_id: str, has_ended: Callable[[], bool]) -> None:
        self.job_id = job_id
        self.has_ended = has_ended
        self.progress_at = time.monotonic()
        self.canceled_at: float | None = None


def _exit(code: ExitCode, reason: str, **context: str) -> NoReturn:
    log.warning("worker_exits", reason=reason, exit_code=code.name.lower(), **context)
    os._exit(code)
