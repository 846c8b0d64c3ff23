"""Where jobs live on disk. No file or folder is ever named after anything that a user said.

{root}/uploads/                 files that are not a job yet; `app.uploads` alone names and reads them
{root}/jobs/{id}/job.json       the record: the truth about the job
                 source         the user's file, untouched
                 pictures.mov   the source's pictures as one video, where it is a zip of them
                 plan.json      what will be done, segment by segment
                 rendering.json how all segments are rendered: batch and tiles
                 segments/      00000.mp4 ...: finished segments, each published atomically (the codec says the suffix),
                                and 00000.json ...: what is known of them for the report
                 live/          what is shown of the job while it is rendered (worker.contract.stream)
                 result.mp4     the finished file (the suffix is the container's)
                 report.json    what was kept and what was changed
                 caged.*.part/  what the process that reads the source is writing just now (worker.cage)
                 webhook.json   who was told of its end, and how often; `app.webhook_events` alone reads it
{root}/deleted/                 job folders on their way out
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JOB_ID_PATTERN, Container, JobRecord

PARTIAL_SUFFIX = ".part"
_LOCK_WAIT_SECONDS = 2.0
_LOCK_POLL_SECONDS = 0.01


class StorageBusyError(Exception):
    """Somebody else holds a job's lock for too long: frozen, or on a disk that does not answer. Try again later."""


@dataclass(frozen=True)
class JobFolder:
    """The files of one job: of the service under its storage folder, of `vsr upscale` beside the output."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "job.json"

    @property
    def source(self) -> Path:
        return self.path / "source"

    @property
    def pictures(self) -> Path:
        """What is opened as the source where that is a sequence of pictures."""
        return self.path / "pictures.mov"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def rendering(self) -> Path:
        return self.path / "rendering.json"

    @property
    def segments(self) -> Path:
        return self.path / "segments"

    @property
    def live(self) -> Path:
        return self.path / "live"

    @property
    def live_facts(self) -> Path:
        return self.live / "facts.json"

    @property
    def stream_header(self) -> Path:
        return self.live / "header.mp4"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def webhook(self) -> Path:
        return self.path / "webhook.json"

    def make_segments(self) -> None:
        """Raises `FileNotFoundError` when the job was deleted: its folder must not come back."""
        self.segments.mkdir(mode=0o700, exist_ok=True)

    def make_live(self) -> None:
        """Raises as `make_segments` does."""
        self.live.mkdir(mode=0o700, exist_ok=True)

    def segment(self, index: int, suffix: str) -> Path:
        """`suffix` as ".mp4": the plan's codec decides it."""
        return self.segments / f"{index:05d}{suffix}"

    def stream_segment(self, index: int) -> Path:
        return self.live / f"{index:05d}.json"

    @property
    def stream_in_result(self) -> Path:
        return self.live / "in_result.jsonl"

    @property
    def preview(self) -> Path:
        return self.live / "preview.mp4"

    @property
    def preview_facts(self) -> Path:
        return self.live / "preview.json"

    def still(self, name: str, of: Literal["source", "result"]) -> Path:
        """`name`: of the segment whose first frame it shows, as "00000", or "preview"."""
        return self.live / f"{name}.{of}.jpg"

    def result(self, container: Container) -> Path:
        return self.path / f"result.{container}"


class JobStorage:
    """The storage folder. Writing raises `JobFailureError(OUT_OF_DISK)` when the disk is full."""

    def __init__(self, root: Path, lock_wait_seconds: float = _LOCK_WAIT_SECONDS) -> None:
        """`lock_wait_seconds`: how long to wait for somebody who writes the same job; it takes milliseconds."""
        self.root = root
        self._lock_wait_seconds = lock_wait_seconds
        self.jobs = root / "jobs"
        self.uploads = root / "uploads"
        self.deleted = root / "deleted"

    def prepare(self) -> None:
        """Make the folders, readable by this user alone."""
        for folder in (self.root, self.jobs, self.uploads, self.deleted):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def folder(self, job_id: str) -> JobFolder:
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            raise ValueError(f"not a job id: {job_id!r}")
        return JobFolder(self.jobs / job_id)

    def make_folder(self, job_id: str) -> JobFolder:
        """The job's folder, made durably if it is not there yet. It holds no job until it holds a record."""
        folder = self.folder(job_id)
        with suppress(FileExistsError), out_of_disk_named():
            folder.path.mkdir(mode=0o700)
            fsync_folder(self.jobs)
        return folder

    def write_record(self, record: JobRecord) -> None:
        """Durable when this returns."""
        folder = self.make_folder(record.id)
        write_atomically(folder.record, record.model_dump_json(indent=2).encode())

    def read_record(self, job_id: str) -> JobRecord | None:
        """None when there is no such job. Raises `ValidationError` for what is no record, or another job's."""
        try:
            record = JobRecord.model_validate_json(self.folder(job_id).record.read_bytes())
        except FileNotFoundError:
            return None
        if record.id != job_id:
            wrong = ValueError(f"the record in the folder of job {job_id} is that of another job")
            raise ValidationError.from_exception_data(
                JobRecord.__name__,
                [{"type": "value_error", "loc": ("id",), "input": record.id, "ctx": {"error": wrong}}],
            )
        return record

    def job_ids(self) -> list[str]:
        """Every job with a record, oldest first (ids sort by time of creation)."""
        return sorted(path.parent.name for path in self.jobs.glob("*/job.json"))

    def delete_job(self, job_id: str) -> None:
        """Remove the job and all its media; nothing if there is none.

        Moved away first: so it is gone at once, and a worker that still writes cannot get in the way of the removal.
        """
        moved = self.deleted / f"{job_id}.{os.urandom(4).hex()}"
        try:
            self.folder(job_id).path.rename(moved)
        except FileNotFoundError:
            return
        remove_tree(moved)

    def delete_unrecorded(self, job_id: str) -> bool:
        """Remove a folder that holds no job. False: it does by now, and is back in its place, or is gone."""
        folder = self.folder(job_id)
        # Under a name that nobody takes for a deleted job's as long as that is not certain.
        moved = self.deleted / f"{job_id}.{os.urandom(4).hex()}.unrecorded"
        try:
            folder.path.rename(moved)
        except FileNotFoundError:
            return False
        if JobFolder(moved).record.exists():  # accepted in this very moment
            moved.rename(folder.path)
            return False
        remove_tree(moved)
        return True

    def remove_media(self, job_id: str) -> int:
        """Remove what an expired job occupies, but for its record and report; return how many files and folders.

        Only what has the name of a job's file: anything else was put there by somebody else.
        """
        folder = self.folder(job_id)
        media = [
            folder.source,
            folder.pictures,
            folder.plan,
            folder.rendering,
            *(folder.result(container) for container in Container),
        ]
        partial = list(folder.path.glob(f"*{PARTIAL_SUFFIX}"))
        found = [path for path in media if path.is_file()] + partial
        for path in found:
            remove_partial(path)
        for inside in (folder.segments, folder.live):
            if inside.is_dir():
                remove_tree(inside)
                found.append(inside)
        return len(found)

    @contextmanager
    def locked(self, job_id: str) -> Iterator[bool]:
        """One writer of a job's storage at a time, also among processes. False: the job has no storage (any more).

        Raises `StorageBusyError` where another holds it for too long.
        """
        with ExitStack() as held:
            try:
                held.enter_context(folder_locked(self.folder(job_id).path, self._lock_wait_seconds))
            except FileNotFoundError:
                is_there = False
            else:
                is_there = True
            yield is_there

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free


@contextmanager
def folder_locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the lock of a folder. Raises `FileNotFoundError`, and `StorageBusyError` where another holds it so long.

    Whoever dies lets go of it; whoever is frozen does not, hence the limit.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + wait_seconds
        while not try_to_lock(descriptor):
            if time.monotonic() > deadline:
                raise StorageBusyError(f"another process has held {folder.name} for {wait_seconds:g} s")
            time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def try_to_lock(file: int | IOBase) -> bool:
    """Lock an open file for oneself, at once or not at all; return whether it is. Its end drops the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Give a partial path beside `target`; on leaving without error make it durable and rename it there.

    Readers see the whole file or none. Two writers of the same target are harmless: each has its own partial file.
    The folder must be there: one that was deleted under our hands stays deleted.
    """
    partial = target.with_name(f"{target.name}.{process_mark(os.getpid())}.{os.urandom(4).hex()}{PARTIAL_SUFFIX}")
    try:
        with out_of_disk_named():
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(target)
            fsync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def partial_folder(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder in `folder` that is named like a partial file, and remove it with all that is left in it."""
    made = folder / f"{name}.{process_mark(os.getpid())}.{os.urandom(4).hex()}{PARTIAL_SUFFIX}"
    with out_of_disk_named():
        made.mkdir(mode=0o700)
    try:
        yield made
    finally:
        remove_tree(made)


def remove_partial(path: Path) -> None:
    """Remove a partial file, or a partial folder; that it is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def process_mark(pid: int) -> str:
    """What the partial files of this host's process `pid` have in their names: in containers pids repeat."""
    return f"{socket.gethostname()}.{pid}"


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; that somebody else does so at the same moment is no error."""
    while path.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def write_atomically(target: Path, content: bytes) -> None:
    with publishing(target) as partial:
        partial.write_bytes(content)


def fsync_folder(path: Path) -> None:
    """A rename is durable only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def out_of_disk_named() -> Iterator[None]:
    """Turn the operating system's "no space" into the failure that users know."""
    try:
        yield
    except OSError as error:
        # EFBIG: beyond what the file system, or a limit on this process (ulimit -f), lets one file be.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise JobFailureError(
            FailureCode.OUT_OF_DISK, "the disk is full: free some space or choose another folder, then run it again"
        ) from error
