"""The FETCH errand: get a job's source from its `source_url`, as the file that an upload would have been.

    queued, without source ──fetched──▶ `source`, whole and durable ──▶ its size and checksum in the record ──▶ `plan`
            └─────── refused, or not to be had in six attempts ──▶ failed

Killed anywhere, the next attempt goes on behind the last arrow that was reached: a `source` that is there is whole.
FFmpeg never sees the URL.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from app.courier.metrics import CourierMetrics
from app.guarded_http import Answer, Fault, GuardedHttp, TargetError, TimeLimits, shown_url
from app.kept_bytes import kept_bytes
from worker.contract.errands import Errand, Errands
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobError, JobRecord
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import PARTIAL_SUFFIX, JobStorage, publishing

log = structlog.get_logger(__name__)

RETRY_DELAYS_SECONDS = (5.0, 30.0, 120.0, 600.0, 1800.0)
# So many couriers may be lost with it before somebody must look at it.
_MAX_LOSSES = 10
_LONGEST_RETRY_AFTER_SECONDS = 3600.0
_REDIRECTS = 3
_CONNECT_SECONDS = 10.0
_OK = 200
# Answers that ask for another attempt; so do all from 500.
_TEMPORARY = (408, 425, 429)
_WRITE_BUFFER_BYTES = 1024 * 1024
_LOOK_AT_DISK_EVERY_BYTES = 16 * 1024 * 1024


class JobEndedError(Exception):
    """The job was canceled or deleted: nobody waits for its source."""


@dataclass(frozen=True)
class FetchLimits:
    max_bytes: int
    min_free_bytes: int
    idle_seconds: float
    total_seconds: float
    max_bytes_per_key: int = 0
    """That one API key may keep here, with its uploads. 0: any number."""


class SourceFetcher:
    def __init__(
        self,
        http: GuardedHttp,
        registry: JobRegistry,
        storage: JobStorage,
        queue: TaskQueue,
        errands: Errands,
        metrics: CourierMetrics,
        limits: FetchLimits,
        *,
        is_allowed: bool,
        retry_delays_seconds: tuple[float, ...] = RETRY_DELAYS_SECONDS,
    ) -> None:
        """`is_allowed`: False fails what was accepted before the operator changed his mind."""
        self._http = http
        self._registry = registry
        self._storage = storage
        self._queue = queue
        self._errands = errands
        self._metrics = metrics
        self._limits = limits
        self._is_allowed = is_allowed
        self._retry_delays_seconds = retry_delays_seconds
        # Two sources of one key must not pass its limit together; two couriers could, by one source each.
        self._counting = threading.Lock()

    def do(self, errand: Errand, check: Callable[[], None]) -> None:
        """`check` is called all the time, and raises `JobEndedError` or whatever else shall end this attempt."""
        # No change, but it makes durable what a courier that died told Redis and not yet storage.
        job = self._registry.change(errand.job_id, lambda current: current)
        if job is None or job.status.is_final:
            self._errands.finish(errand)
            return
        if errand.losses >= _MAX_LOSSES:
            self._fail(job, FailureCode.WORKER_LOST, "every courier process that fetched the source was lost")
            self._errands.finish(errand)
            return
        try:
            if job.awaits_source and self._has_ended(self._fetched(job, check)):
                raise JobEndedError
        except JobEndedError:
            self._count("stopped")
            log.info("fetch_stopped", reason="the job has ended")
        except _TemporaryError as error:
            self._try_later(errand, job, error)
            return
        except JobFailureError as failure:
            self._fail(job, failure.code, failure.message)
        else:
            # Also where the source was here already: whoever got it may have died before this.
            self._queue.enqueue_plan(job.id)
        self._errands.finish(errand)

    def _fetched(self, job: JobRecord, check: Callable[[], None]) -> "_Source":
        """The source, whole and durable in its place."""
        folder = self._storage.folder(job.id)
        if folder.source.exists():
            with folder.source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._count("existing")
            return _Source(job, folder.source.stat().st_size, sha256)
        if not self._is_allowed:
            raise JobFailureError(
                FailureCode.SOURCE_REFUSED, "this service fetches no sources (any more): upload the file"
            )
        self._remove_remains(job.id)
        try:
            with publishing(folder.source) as partial:
                source = self._download(job, partial, check)
        except FileNotFoundError:
            if folder.path.exists():
                raise
            raise JobEndedError from None
        except JobFailureError as failure:
            if failure.code is FailureCode.OUT_OF_DISK:  # others may end and make room
                raise _TemporaryError(failure.code, failure.message) from failure
            raise
        self._count("fetched")
        return source

    def _remove_remains(self, job_id: str) -> None:
        """What killed couriers left half written."""
        folder = self._storage.folder(job_id)
        with self._storage.locked(job_id):  # who writes a record holds it too
            for written in (folder.source, folder.record):
                for abandoned in folder.path.glob(f"{written.name}.*{PARTIAL_SUFFIX}"):
                    abandoned.unlink(missing_ok=True)

    def _download(self, job: JobRecord, partial: Path, check: Callable[[], None]) -> "_Source":
        assert job.source_url is not None
        limits = TimeLimits(_CONNECT_SECONDS, self._limits.idle_seconds, self._limits.total_seconds)
        try:
            with self._http.open("GET", job.source_url, limits, redirects=_REDIRECTS, check=check) as answer:
                _refuse_status(answer)
                self._refuse_size(job, _declared_bytes(answer))
                return self._save(job, answer, partial)
        except TargetError as error:
            if error.fault is Fault.REFUSED:
                raise JobFailureError(FailureCode.SOURCE_REFUSED, f"the source URL is refused: {error}") from error
            raise _TemporaryError(FailureCode.SOURCE_UNREACHABLE, f"the source cannot be fetched: {error}") from error

    def _save(self, job: JobRecord, answer: Answer, partial: Path) -> "_Source":
        size_bytes, looked_at_bytes = 0, 0
        sha256 = hashlib.sha256()
        with partial.open("xb", buffering=_WRITE_BUFFER_BYTES) as file:
            partial.chmod(0o600)
            for chunk in answer.chunks():
                size_bytes += len(chunk)
                if size_bytes > self._limits.max_bytes or size_bytes - looked_at_bytes > _LOOK_AT_DISK_EVERY_BYTES:
                    self._refuse_size(job, size_bytes, more_bytes=len(chunk))
                    looked_at_bytes = size_bytes
                sha256.update(chunk)
                file.write(chunk)
                self._metrics.fetched_bytes.inc(len(chunk))
        if not size_bytes:
            raise JobFailureError(FailureCode.EMPTY_FILE, "the source URL leads to an empty file")
        return _Source(job, size_bytes, sha256.hexdigest())

    def _refuse_size(self, job: JobRecord, size_bytes: int, more_bytes: int | None = None) -> None:
        """`more_bytes`: those that are still to be written, where it is not all of them."""
        if size_bytes > self._limits.max_bytes:
            raise JobFailureError(
                FailureCode.LIMIT_EXCEEDED,
                f"the source is too large: the largest accepted file has {self._limits.max_bytes} bytes",
            )
        self._refuse_beyond_key_bytes(job, size_bytes)
        needed_bytes = size_bytes if more_bytes is None else more_bytes
        if self._storage.free_bytes() - needed_bytes < self._limits.min_free_bytes:
            raise JobFailureError(FailureCode.OUT_OF_DISK, "the service's disk is nearly full: try again later")

    def _refuse_beyond_key_bytes(self, job: JobRecord, size_bytes: int) -> None:
        limit_bytes = self._limits.max_bytes_per_key
        if job.owner is None or not limit_bytes:
            return
        if kept_bytes(self._registry, self._storage, job.owner) + size_bytes > limit_bytes:
            raise JobFailureError(
                FailureCode.LIMIT_EXCEEDED,
                f"sources and uploads of this key may take {limit_bytes} bytes together: delete jobs, or wait until "
                "some expire",
            )

    def _has_ended(self, source: "_Source") -> bool:
        with self._counting:
            try:
                self._refuse_beyond_key_bytes(source.job, source.size_bytes)
            except JobFailureError:
                # Nobody counts what a job without a source keeps.
                self._storage.folder(source.job.id).source.unlink(missing_ok=True)
                raise
            return self._is_gone_when_noted(source)

    def _is_gone_when_noted(self, source: "_Source") -> bool:
        """Note in the record what was fetched; from here on the URL's query, which may be a secret, is not needed."""
        noted = self._registry.change(
            source.job.id,
            lambda job: (
                None
                if job.status.is_final
                else job.model_copy(
                    update={
                        "source_size_bytes": source.size_bytes,
                        "source_sha256": source.sha256,
                        "source_url": shown_url(job.source_url or ""),
                    }
                )
            ),
        )
        if noted:
            log.info("source_fetched", size_bytes=source.size_bytes)
        return noted is None

    def _try_later(self, errand: Errand, job: JobRecord, error: "_TemporaryError") -> None:
        if errand.failures >= len(self._retry_delays_seconds):
            self._fail(job, error.code, f"{error.message} ({errand.failures + 1} attempts)")
            self._errands.finish(errand)
            return
        delay_seconds = self._retry_delays_seconds[errand.failures]
        delay_seconds = max(delay_seconds, min(error.retry_after_seconds, _LONGEST_RETRY_AFTER_SECONDS))
        self._count("postponed")
        log.info("fetch_postponed", attempt=errand.failures + 1, seconds=delay_seconds, reason=error.message)
        self._errands.postpone(errand, delay_seconds)

    def _fail(self, job: JobRecord, code: FailureCode, message: str) -> None:
        self._count("failed")
        if self._registry.fail(job.id, JobError(code=code, message=message)):
            self._metrics.jobs_finished.labels("failed", code).inc()
            log.warning("job_failed", code=code, reason=message)

    def _count(self, outcome: str) -> None:
        self._metrics.fetches.labels(outcome).inc()


@dataclass(frozen=True)
class _Source:
    job: JobRecord
    size_bytes: int
    sha256: str


class _TemporaryError(Exception):
    def __init__(self, code: FailureCode, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


def _refuse_status(answer: Answer) -> None:
    if answer.status in _TEMPORARY or answer.status >= 500:
        retry_after = answer.headers.get("retry-after", "")
        seconds = float(retry_after[:9]) if retry_after.isdecimal() else 0.0
        raise _TemporaryError(
            FailureCode.SOURCE_UNREACHABLE, f"the source's host answered {answer.status}", retry_after_seconds=seconds
        )
    if answer.status != _OK:
        _unreachable(f"the source's host answered {answer.status}")
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        _unreachable("the source's host sends it compressed, though asked not to")


def _unreachable(message: str) -> NoReturn:
    raise JobFailureError(FailureCode.SOURCE_UNREACHABLE, message)


def _declared_bytes(answer: Answer) -> int:
    """0 where the answer does not say. Whether it keeps its word is the HTTP library's business."""
    declared = answer.headers.get("content-length", "")
    return int(declared[:18]) if declared.isdecimal() else 0
