"""Receiving files: one sink for raw, multipart and resumable bodies, and the uploads that are not a job yet.

A file grows as `.part` in the uploads folder (a resumable one as `.tus`, see `app.tus`), on the disk where it will
stay. Only when whole is it fsynced and renamed; whatever ends an upload early, down to a kill of this process, leaves
nothing that is ever taken for a file.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO, IOBase
from pathlib import Path
from types import TracebackType
from typing import Annotated, Protocol, Self

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from app.dependencies import OwnerDep, Services, ServicesDep, count_rejections, require_api_key
from app.errors import (
    EmptyFileError,
    InvalidRequestError,
    KeyStorageFullError,
    MalformedBodyError,
    OutOfDiskError,
    QueueUnavailableError,
    TooManyKeyUploadsError,
    TooManyUploadsError,
    UnauthorizedError,
    UploadBusyError,
    UploadNotFoundError,
    UploadStalledError,
    UploadTooLargeError,
    responses,
)
from app.kept_bytes import DESCRIPTION_SUFFIX
from app.limits import more_bytes_of_key, refuse_beyond_key_bytes, upload_slot
from app.schemas import UPLOAD_ID_PATTERN, Upload
from app.settings import GatewaySettings
from worker.contract.storage import PARTIAL_SUFFIX, JobStorage, fsync_folder, out_of_disk_named, try_to_lock

log = structlog.get_logger(__name__)

_MAX_BUFFER_BYTES = 1024 * 1024
_MIN_BUFFER_BYTES = 64 * 1024
_ALL_BUFFERS_BYTES = 16 * 1024 * 1024
# What the kernel takes at once (IOV_MAX).
_CHUNKS_PER_WRITE = 1024
# Making a job takes milliseconds, unless Redis does not answer.
_HELD_PATIENCE_SECONDS = 10.0
_HELD_POLL_SECONDS = 0.02
_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}" + re.escape(PARTIAL_SUFFIX))
_UPLOAD_NAME = re.compile(r"([0-9a-f]{12}-)?[0-9a-f]{64}\.([0-9a-f]{64}|tus|tus\.json)")

router = APIRouter(tags=["uploads"], dependencies=[Depends(count_rejections), Depends(require_api_key)])


@router.put(
    "/v1/uploads/{upload_id}",
    status_code=201,
    summary="Upload a file: the body is the file",
    responses=responses(
        UnauthorizedError,
        UploadStalledError,
        UploadTooLargeError,
        EmptyFileError,
        InvalidRequestError,
        UploadBusyError,
        TooManyUploadsError,
        TooManyKeyUploadsError,
        KeyStorageFullError,
        QueueUnavailableError,
        OutOfDiskError,
    ),
    dependencies=[Depends(upload_slot)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
        }
    },
)
async def put_upload(
    upload_id: Annotated[str, PathParameter(pattern=UPLOAD_ID_PATTERN, description="Chosen by the client.")],
    request: Request,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
) -> Upload:
    """Then `POST /v1/jobs` with `{"upload_id": ...}`. The same id again replaces the file."""
    declared_bytes = content_length(request)
    await run_in_threadpool(refuse_beyond_key_bytes, services, owner, declared_bytes or 0)
    async with Incoming(services, declared_bytes) as incoming:
        async for chunk in body_chunks(request, services.settings):
            await incoming.write(chunk)
        received = await incoming.finish()
        # It may have announced no length, and others may have come meanwhile.
        keep = partial(_keep_within_limits, services, owner, upload_id, received)
        await to_thread.run_sync(keep, limiter=services.upload_threads.accepting)
    return Upload(id=upload_id, size_bytes=received.size_bytes, sha256=received.sha256)


@dataclass(frozen=True)
class ReceivedFile:
    """A whole, durable file that is still a `.part`, or an upload."""

    path: Path
    size_bytes: int
    sha256: str
    is_upload: bool = False
    """Among its owner's uploads, and counted with them."""


class Hash(Protocol):
    """What hashlib gives; it has no public name of its own."""

    def update(self, content: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


class Sink:
    """The end of a body: an open file. Each byte is counted, hashed and written once, in threads: others go on.

    While one buffer is written the next one fills. What all uploads together have in memory is bounded: the more there
    are, the smaller are their buffers.
    """

    def __init__(self, services: Services, file: FileIO, size_bytes: int = 0, hashes: Sequence[Hash] = ()) -> None:
        """`file` is written at its end; `size_bytes` is where that is. `hashes` are fed with what comes."""
        self.size_bytes = size_bytes
        self._services = services
        self._file = file
        self._hashes = hashes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        # What a thread does with the file now. Never canceled, as that would not stop the thread.
        self._at_work: asyncio.Task[None] | None = None

    async def write(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self.size_bytes > self._services.settings.max_upload_bytes:
            raise UploadTooLargeError(self._services.settings.max_upload_bytes)
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        # A client that sends bytes one by one must not fill the memory with what surrounds each piece.
        if self._pending_bytes >= self._buffer_bytes() or len(self._pending) == _CHUNKS_PER_WRITE:
            await self._begin(partial(self._write, self._taken()), self._services.upload_threads.writing)

    async def sync(self) -> None:
        """What was written is durable when this returns."""
        await self._begin(partial(self._write, self._taken()), self._services.upload_threads.writing)
        await self._begin(self._sync, self._services.upload_threads.syncing)
        await self._done()

    async def settle(self) -> None:
        """Until no thread is at the file any more: then it may be closed. What is pending is dropped."""
        if self._at_work is not None:
            await asyncio.wait([self._at_work])
            with suppress(asyncio.CancelledError):  # the loop itself is at its end
                self._at_work.exception()  # was the business of whoever wrote

    async def _begin(self, work: Callable[[], None], limiter: CapacityLimiter) -> None:
        await self._done()
        self._at_work = asyncio.create_task(to_thread.run_sync(work, limiter=limiter))

    async def _done(self) -> None:
        if self._at_work is not None:
            await asyncio.shield(self._at_work)
            self._at_work = None

    def _taken(self) -> list[bytes]:
        taken, self._pending, self._pending_bytes = self._pending, [], 0
        return taken

    def _buffer_bytes(self) -> int:
        share = _ALL_BUFFERS_BYTES // max(1, self._services.upload_slots.taken)
        return min(max(share, _MIN_BUFFER_BYTES), _MAX_BUFFER_BYTES)

    def _write(self, chunks: list[bytes]) -> None:
        size_bytes = sum(map(len, chunks))
        refuse_full_disk(self._services, size_bytes)
        for chunk in chunks:
            for one in self._hashes:
                one.update(chunk)
        self._services.metrics.upload_bytes.inc(size_bytes)
        with out_of_disk_named():
            while chunks:
                chunks = _without(os.writev(self._file.fileno(), chunks), chunks)

    def _sync(self) -> None:
        with out_of_disk_named():
            os.fsync(self._file.fileno())


class Incoming:
    """A file being received. Leaving the context removes it unless it was renamed away."""

    def __init__(self, services: Services, declared_bytes: int | None) -> None:
        """`declared_bytes`: the request's Content-Length. Refused here, before the body, if it cannot be accepted."""
        refuse_upload(services, declared_bytes or 0)
        self._services = services

    async def __aenter__(self) -> Self:
        self._path, self._file = await to_thread.run_sync(
            _new_partial_file, self._services.storage, limiter=self._services.upload_threads.syncing
        )
        self._hash = hashlib.sha256()
        self._sink = Sink(self._services, self._file, hashes=[self._hash])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Seen through even where this request is cut off meanwhile.
        await asyncio.shield(asyncio.create_task(self._end()))

    async def write(self, chunk: bytes) -> None:
        await self._sink.write(chunk)

    async def finish(self) -> ReceivedFile:
        """The file is durable when this returns."""
        if not self._sink.size_bytes:
            raise EmptyFileError("The file has no bytes.")
        await self._sink.sync()
        return ReceivedFile(self._path, self._sink.size_bytes, self._hash.hexdigest())

    async def _end(self) -> None:
        try:
            await self._sink.settle()
            await to_thread.run_sync(self._remove, limiter=self._services.upload_threads.syncing)
        except asyncio.CancelledError:  # the loop is at its end, and starts no threads any more
            self._remove()
            raise

    def _remove(self) -> None:
        """In a thread: to give the blocks of gigabytes back takes a while."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def refuse_upload(services: Services, declared_bytes: int) -> None:
    """Asked at the start of every upload, before a byte of it is read."""
    if declared_bytes > services.settings.max_upload_bytes:
        raise UploadTooLargeError(services.settings.max_upload_bytes)
    refuse_full_disk(services, declared_bytes)


def refuse_full_disk(services: Services, more_bytes: int) -> None:
    if services.storage.free_bytes() - more_bytes < services.min_free_bytes:
        raise OutOfDiskError("The service's disk is nearly full. Try again later, or tell its operator.")


def _new_partial_file(storage: JobStorage) -> tuple[Path, FileIO]:
    """Locked: the kernel drops the lock when this process dies, and `sweep_dead_uploads` tells the dead by that."""
    while True:
        path = storage.uploads / f"{os.urandom(16).hex()}{PARTIAL_SUFFIX}"
        with out_of_disk_named():
            file = path.open("xb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        # Taken for a dead one in the moment before the lock.
        file.close()


def _without(written_bytes: int, chunks: list[bytes]) -> list[bytes]:
    """What a write that stopped early has left over."""
    for number, chunk in enumerate(chunks):
        if written_bytes < len(chunk):
            return [chunk[written_bytes:], *chunks[number + 1 :]]
        written_bytes -= len(chunk)
    return []


async def body_chunks(request: Request, settings: GatewaySettings) -> AsyncIterator[bytes]:
    """The body as it arrives. `ClientDisconnect` if the client leaves.

    `UploadStalledError` if it falls silent, or is too slow for too long; what we take ourselves is not held against it.
    """
    clock = asyncio.get_running_loop().time
    stream = request.stream()
    waited_seconds, came_bytes = 0.0, 0
    while True:
        since = clock()
        try:
            async with asyncio.timeout(settings.upload_idle_timeout_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise UploadStalledError(f"Nothing arrived for {settings.upload_idle_timeout_seconds:g} seconds.") from None
        if chunk is None:
            return
        waited_seconds, came_bytes = waited_seconds + clock() - since, came_bytes + len(chunk)
        if waited_seconds >= settings.upload_rate_window_seconds:
            if came_bytes < settings.upload_min_bytes_per_second * waited_seconds:
                raise UploadStalledError(
                    f"Less than {settings.upload_min_bytes_per_second} bytes a second arrived"
                    f" over {waited_seconds:.0f} seconds."
                )
            waited_seconds, came_bytes = 0.0, 0
        yield chunk


def content_length(request: Request) -> int | None:
    """None for a chunked body. The server has already refused what is not a number."""
    declared = request.headers.get("content-length")
    if declared is not None and not declared.isdecimal():
        raise MalformedBodyError(f"Content-Length is not a number: {declared!r}")
    return None if declared is None else int(declared)


# --- uploads that are not a job yet: [{owner}-]{sha256 of the id}.{sha256 of the content} -----------------------------


def keep_upload(storage: JobStorage, owner: str | None, upload_id: str, received: ReceivedFile) -> None:
    """Publish a received file under its id. Of two files of one id the newer counts. Durable when this returns.

    Raises `UploadBusyError` while the one that it replaces is becoming a job.
    """
    target = storage.uploads / f"{upload_key(owner, upload_id)}.{received.sha256}"
    # The file system's own clock is too coarse to order two small uploads.
    moment_ns = time.time_ns()
    os.utime(received.path, ns=(moment_ns, moment_ns))
    with _held(target):
        received.path.rename(target)
    fsync_folder(storage.uploads)
    versions = finished_uploads(storage, owner, upload_id)
    for older in versions[: versions.index(target)] if target in versions else []:
        with suppress(UploadBusyError):  # it goes with the job that it becomes
            remove_upload(older, patience_seconds=0.0)


def _keep_within_limits(services: Services, owner: str | None, upload_id: str, received: ReceivedFile) -> None:
    with more_bytes_of_key(services, owner, received.size_bytes):
        keep_upload(services.storage, owner, upload_id, received)


@contextmanager
def upload_for_job(storage: JobStorage, owner: str | None, upload_id: str) -> Iterator[ReceivedFile]:
    """The upload's file, which nobody else takes, replaces or removes meanwhile.

    Raises `UploadNotFoundError` or `UploadBusyError`.
    """
    while versions := finished_uploads(storage, owner, upload_id):
        with _held(versions[-1]) as file:
            if file is None:  # another request took it meanwhile, or a newer one replaced it
                continue
            sha256 = versions[-1].name.partition(".")[2]
            yield ReceivedFile(versions[-1], os.fstat(file.fileno()).st_size, sha256, is_upload=True)
            return
    raise UploadNotFoundError(upload_id)


def remove_upload(path: Path, patience_seconds: float | None = None) -> None:
    """A finished upload; nothing if it is gone. Raises `UploadBusyError` while it is becoming a job."""
    with _held(path, patience_seconds):
        path.unlink(missing_ok=True)


@contextmanager
def _held(path: Path, patience_seconds: float | None = None) -> Iterator[FileIO | None]:
    """What is at the path, locked. Whoever makes a job of a finished upload, replaces or removes it holds it so.

    None: nothing is there (any more). The kernel drops the lock of a process that dies.
    """
    deadline = time.monotonic() + (_HELD_PATIENCE_SECONDS if patience_seconds is None else patience_seconds)
    while True:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            yield None
            return
        with file:
            if not try_to_lock(file):
                if time.monotonic() > deadline:
                    raise UploadBusyError("Another request is making a job of this upload.", {"Retry-After": "1"})
            elif is_at(path, file):
                yield file
                return
        time.sleep(_HELD_POLL_SECONDS)


def is_at(path: Path, file: IOBase) -> bool:
    """Whether the path still leads to this open file: before it was locked, another may have taken its place."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def upload_key(owner: str | None, upload_id: str) -> str:
    """What the names of an upload's files begin with. Every API key has its own space of ids."""
    return (f"{owner}-" if owner else "") + hashlib.sha256(upload_id.encode()).hexdigest()


def finished_uploads(storage: JobStorage, owner: str | None, upload_id: str) -> list[Path]:
    """Oldest first; more than one only for the moment in which an upload replaces another."""
    found = []
    for path in storage.uploads.glob(f"{upload_key(owner, upload_id)}.{'[0-9a-f]' * 64}"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(found)]


def sweep_dead_uploads(storage: JobStorage) -> int:
    """Remove what killed processes left half received; return how many."""
    return _sweep(storage, _PARTIAL_NAME, lambda path: True)


def sweep_old_uploads(storage: JobStorage, is_old: Callable[[Path], bool]) -> int:
    """Remove uploads that were never finished, or never made a job of; return how many files."""

    def is_unwanted(path: Path) -> bool:
        # The description of an unfinished upload lives as long as that, however long ago it was written.
        is_needed = path.name.endswith(DESCRIPTION_SUFFIX) and path.with_suffix("").exists()
        return is_old(path) and not is_needed

    return _sweep(storage, _UPLOAD_NAME, is_unwanted)


def _sweep(storage: JobStorage, name: re.Pattern[str], is_wanted: Callable[[Path], bool]) -> int:
    """Only regular files that are named as ours are: nobody knows what others are for."""
    removed = 0
    with os.scandir(storage.uploads) as entries:
        found = [Path(one) for one in entries if one.is_file(follow_symlinks=False) and name.fullmatch(one.name)]
    for path in found:
        with suppress(FileNotFoundError):  # finished, or swept by another gateway
            if is_wanted(path) and _removed_unless_held(path, is_wanted):
                removed += 1
                log.info("removed an abandoned upload", file=path.name)
    return removed


def _removed_unless_held(path: Path, is_wanted: Callable[[Path], bool]) -> bool:
    """Whether it is gone now. Removed under its lock, so that nobody begins to write it meanwhile.

    By then another file may have taken its place, which is looked at anew: it may be an upload of this moment.
    """
    with path.open("rb") as file:
        if not (try_to_lock(file) and is_at(path, file) and is_wanted(path)):
            return False
        path.unlink()
    return True
