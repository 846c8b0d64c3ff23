"""Housekeeping: what has expired, and what no job and no upload owns any more, goes. Nothing else ever does.

It runs in the gateway, which is there also when no worker is, alone knows the uploads, and has time: a supervisor must
see a dead worker within milliseconds. Of several gateways one at a time is at it.

    uploads/          what killed gateways half received; uploads that nobody made a job of (app.uploads)
    deleted/          what a killed process left of a deletion
    jobs/{id}/        source and result when they expire; later the rest
                      a folder without a record: an acceptance that a kill cut short
                      segments that a result replaced, and partial files, whose worker was killed

A file that is not named as ours are is somebody else's and stays. Ages are told by `app.expiry_clock`; an end's moment
is the record's or the file system's, whichever is later: one wrong clock alone makes nothing expire early.
"""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from app.expiry_clock import ExpiryClock
from app.metrics import GatewayMetrics
from app.settings import GatewaySettings
from app.uploads import sweep_dead_uploads, sweep_old_uploads
from worker.contract.failure import JobFailureError
from worker.contract.job import JOB_ID_PATTERN, JobRecord, JobStatus, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import PARTIAL_SUFFIX, JobStorage, StorageBusyError, remove_partial, remove_tree

log = structlog.get_logger(__name__)

_LOCK_KEY = "vsr:lock:janitor"
# Renewed before every job; also for how long a killed janitor keeps the next one waiting.
_LOCK_SECONDS = 120
# No acceptance takes so long, no file of a living worker is left alone for so long, and no worker that has ended a job
# needs so long to clear up after itself.
_ABANDONED_SECONDS = 3600.0
_DELETED_NAME = re.compile(JOB_ID_PATTERN.strip("^$") + r"\.[0-9a-f]{8}")
_PARTIAL_NAME = re.compile(r".+\.(?P<host>[^/]+)\.(?P<pid>\d+)\.[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX))


def result_expires_at(record: JobRecord, settings: GatewaySettings) -> datetime | None:
    """When the result may be removed. None: never, or there is none."""
    if not (record.result and record.finished_at and settings.result_retention_seconds):
        return None
    return record.finished_at + timedelta(seconds=settings.result_retention_seconds)


class Janitor:
    def __init__(
        self,
        settings: GatewaySettings,
        redis: Redis,
        storage: JobStorage,
        registry: JobRegistry,
        queue: TaskQueue,
        metrics: GatewayMetrics,
        clock: ExpiryClock | None = None,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._storage = storage
        self._registry = registry
        self._queue = queue
        self._metrics = metrics
        self._clock = clock or ExpiryClock(redis)
        self._stopping = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A round now and then, in a thread of its own; the last is broken off when the context is left."""
        thread = threading.Thread(target=self._work, name="janitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _work(self) -> None:
        while not self._stopping.wait(self._settings.janitor_seconds):
            try:
                outcome = "done" if self.clean() else "skipped"
            except (RedisError, LockError) as error:
                log.warning("the janitor gave up for now", reason=str(error))
                outcome = "failed"
            except Exception:  # a bug, or a disk that fails: it must not be the last round
                log.exception("the janitor's round failed")
                outcome = "failed"
            self._metrics.janitor_rounds.labels(outcome).inc()

    def clean(self) -> bool:
        """One round over everything. False: another gateway is at it."""
        lock = self._redis.lock(_LOCK_KEY, timeout=_LOCK_SECONDS)
        if not lock.acquire(blocking=False):
            return False
        try:
            ages_can_be_trusted = self._clock.look()
            self.sweep_dead()
            if ages_can_be_trusted:
                self._sweep_old(lock)
        finally:
            with suppress(LockError):  # it took longer than the lock lasts
                lock.release()
        return True

    def sweep_dead(self) -> None:
        """What is known to be dead without asking a clock, or Redis. Harmless at any time."""
        self._count("partial", sweep_dead_uploads(self._storage))
        for folder in _folders_named(self._storage.deleted, _DELETED_NAME):
            remove_tree(folder)
            self._count("deleted")
            log.info("removed what a killed process left of a deletion", folder=folder.name)

    # --- what is old ----------------------------------------------------------------------------------------------

    def _sweep_old(self, lock: Lock) -> None:
        self._count("upload", sweep_old_uploads(self._storage, self._is_older(self._settings.upload_retention_seconds)))
        for folder in _folders_named(self._storage.jobs, re.compile(JOB_ID_PATTERN)):
            if self._stopping.is_set():
                return
            lock.reacquire()
            # One damaged record, or one of a later version, keeps its files, and the other jobs their turn.
            try:
                record = self._storage.read_record(folder.name)
            except ValidationError as error:
                log.error("job_files_unreadable", job_id=folder.name, reason=str(error))
                continue
            try:
                self._look_after(folder, record)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except StorageBusyError as error:  # whoever holds it is frozen: in the next sweep it may be gone
                log.warning("a job was left for the next sweep", job_id=folder.name, reason=str(error))

    def _look_after(self, folder: Path, record: JobRecord | None) -> None:
        if record is None:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if self._clock.age_seconds(newest) > _ABANDONED_SECONDS and self._storage.delete_unrecorded(folder.name):
                self._count("unaccepted")
                log.info("removed what a killed gateway left of an acceptance", folder=folder.name)
        elif not record.status.is_final or record.wants_partial_result:
            self._remove_partial_files(folder, of_the_dead_only=True)
        elif record.media_removed_at is None:
            keep_seconds = self._kept_seconds(record)
            if keep_seconds and self._age_of(record, record.finished_at) > keep_seconds:
                self._expire(record)
            elif self._age_of(record, record.finished_at) > _ABANDONED_SECONDS:
                self._remove_partial_files(folder, of_the_dead_only=False)
                if record.status is JobStatus.SUCCEEDED and (folder / "segments").is_dir():
                    remove_tree(folder / "segments")
                    self._count("segments")
        else:
            # A kill may have come between the record and the files, and a worker that slept may have written since.
            self._count("media", min(1, self._storage.remove_media(record.id)))
            keep_seconds = self._settings.job_retention_seconds
            if keep_seconds and self._age_of(record, record.media_removed_at) > keep_seconds:
                self._queue.forget_tasks(record.id, self._registry.progress(record.id).segments_total)
                self._registry.remove(record.id)
                self._count("job")
                log.info("job forgotten", job_id=record.id)

    def _kept_seconds(self, record: JobRecord) -> float:
        """0: for ever."""
        return self._settings.result_retention_seconds if record.result else self._settings.failed_retention_seconds

    def _expire(self, record: JobRecord) -> None:
        """First the record, which decides against whoever wants the media again; then the media."""
        try:
            expired = self._note_expired(record)
        except JobFailureError as failure:
            # Redis has decided; what cannot be written for want of space can be when the media are gone.
            log.warning("a full disk is made room on", job_id=record.id, reason=failure.message)
            self._storage.remove_media(record.id)
            expired = self._note_expired(record)
        if expired:
            self._storage.remove_media(record.id)
            self._count("media")
            log.info("source and result of a job expired", job_id=record.id, status=record.status)

    def _note_expired(self, seen: JobRecord) -> JobRecord | None:
        """None: the job is another than was seen. Where it is noted already, the note is written again."""
        return self._registry.change(
            seen.id,
            lambda job: (
                job.model_copy(update={"media_removed_at": job.media_removed_at or now()})
                if job.status.is_final and job.finished_at == seen.finished_at
                else None
            ),
        )

    def _remove_partial_files(self, folder: Path, *, of_the_dead_only: bool) -> None:
        places = ("", "segments/", "live/")
        for path in (found for place in places for found in folder.glob(f"{place}*{PARTIAL_SUFFIX}")):
            named = _PARTIAL_NAME.fullmatch(path.name)
            if named is None or (of_the_dead_only and not _is_dead(named["host"], int(named["pid"]))):
                continue
            with suppress(FileNotFoundError):
                # A file that grows in a folder does not make that younger.
                newest = max(one.stat().st_mtime for one in (path, *(path.iterdir() if path.is_dir() else ())))
                if self._clock.age_seconds(newest) > _ABANDONED_SECONDS:
                    remove_partial(path)
                    self._count("partial")
                    log.info("removed a partial file that nobody writes", job_id=folder.name, file=path.name)

    def _age_of(self, record: JobRecord, moment: datetime | None) -> float:
        written = self._storage.folder(record.id).record.stat().st_mtime
        return self._clock.age_seconds(max(written, moment.timestamp() if moment else written))

    def _is_older(self, seconds: float) -> Callable[[Path], bool]:
        return lambda path: self._clock.age_seconds(path.stat().st_mtime) > seconds

    def _count(self, kind: str, number: int = 1) -> None:
        self._metrics.janitor_removed.labels(kind).inc(number)


def _folders_named(parent: Path, name: re.Pattern[str]) -> list[Path]:
    """In order. Not what a link leads to: that lies elsewhere."""
    with os.scandir(parent) as entries:
        return sorted(Path(one) for one in entries if one.is_dir(follow_symlinks=False) and name.fullmatch(one.name))


def _is_dead(host: str, pid: int) -> bool:
    """Known of processes of this host alone; another host's may live."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False
