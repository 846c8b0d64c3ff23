"""Receiving files: one sink for raw and multipart bodies, and the uploads that are not a job yet.

A file grows as `.part` in the uploads folder, on the disk where it will stay. Only when whole is it fsynced and
renamed; whatever ends an upload early, down to a kill of this process, leaves nothing that is ever taken for a file.
"""

import asyncio
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import structlog
from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from app.dependencies import Services, ServicesDep, count_rejections, require_api_key
from app.errors import (
    EmptyFileError,
    InvalidRequestError,
    MalformedBodyError,
    OutOfDiskError,
    UnauthorizedError,
    UploadNotFoundError,
    UploadStalledError,
    UploadTooLargeError,
    responses,
)
from app.schemas import UPLOAD_ID_PATTERN, Upload
from worker.contract.storage import PARTIAL_SUFFIX, JobStorage, fsync_folder, out_of_disk_named

log = structlog.get_logger(__name__)

_WRITE_BUFFER_BYTES = 1024 * 1024

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
        OutOfDiskError,
    ),
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
) -> Upload:
    """Then `POST /v1/jobs` with `{"upload_id": ...}`. The same id again replaces the file."""
    with Incoming(services, content_length(request)) as incoming:
        async for chunk in body_chunks(request, services.settings.upload_idle_timeout_seconds):
            await incoming.write(chunk)
        received = await incoming.finish()
        await run_in_threadpool(keep_upload, services.storage, upload_id, received)
    return Upload(id=upload_id, size_bytes=received.size_bytes, sha256=received.sha256)


@dataclass(frozen=True)
class ReceivedFile:
    """A whole, durable file that is still a `.part`, or an upload: whoever takes it renames it."""

    path: Path
    size_bytes: int
    sha256: str


class Incoming:
    """A file being received. Leaving the context removes it unless it was renamed away."""

    def __init__(self, services: Services, declared_bytes: int | None) -> None:
        """`declared_bytes`: the request's Content-Length. Refused here, before the body, if it cannot be accepted."""
        self._storage = services.storage
        self._max_bytes = services.settings.max_upload_bytes
        self._min_free_bytes = services.min_free_bytes
        self._metrics = services.metrics
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._path = self._storage.uploads / f"{os.urandom(16).hex()}{PARTIAL_SUFFIX}"
        if declared_bytes is not None:
            self._refuse_too_large(declared_bytes)
        self._refuse_full_disk(declared_bytes or 0)

    def __enter__(self) -> Self:
        with out_of_disk_named():
            self._file = self._path.open("xb", buffering=0)
        # The kernel drops the lock when this process dies: `sweep_uploads` tells the dead from the living by it.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()

    async def write(self, chunk: bytes) -> None:
        self._size_bytes += len(chunk)
        self._refuse_too_large(self._size_bytes)
        self._buffer += chunk
        if len(self._buffer) >= _WRITE_BUFFER_BYTES:
            await run_in_threadpool(self._flush)

    async def finish(self) -> ReceivedFile:
        """The file is durable when this returns."""
        if not self._size_bytes:
            raise EmptyFileError("The file has no bytes.")
        await run_in_threadpool(self._sync)
        return ReceivedFile(self._path, self._size_bytes, self._hash.hexdigest())

    def _sync(self) -> None:
        self._flush()
        with out_of_disk_named():
            os.fsync(self._file.fileno())

    def _flush(self) -> None:
        self._refuse_full_disk(len(self._buffer))
        content = memoryview(bytes(self._buffer))
        self._buffer.clear()
        self._hash.update(content)
        self._metrics.upload_bytes.inc(len(content))
        with out_of_disk_named():
            while content:
                content = content[self._file.write(content) :]

    def _refuse_too_large(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise UploadTooLargeError(self._max_bytes)

    def _refuse_full_disk(self, more_bytes: int) -> None:
        if self._storage.free_bytes() - more_bytes < self._min_free_bytes:
            raise OutOfDiskError("The service's disk is nearly full. Try again later, or tell its operator.")


async def body_chunks(request: Request, idle_timeout_seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives. `ClientDisconnect` if the client leaves, `UploadStalledError` if it falls silent."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_timeout_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise UploadStalledError(f"Nothing arrived for {idle_timeout_seconds:g} seconds.") from None
        if chunk is None:
            return
        yield chunk


def content_length(request: Request) -> int | None:
    """None for a chunked body. The server has already refused what is not a number."""
    declared = request.headers.get("content-length")
    if declared is not None and not declared.isdecimal():
        raise MalformedBodyError(f"Content-Length is not a number: {declared!r}")
    return None if declared is None else int(declared)


# --- uploads that are not a job yet: {sha256 of the id}.{sha256 of the content} ---------------------------------------


def keep_upload(storage: JobStorage, upload_id: str, received: ReceivedFile) -> None:
    """Publish a received file under its id. Of two files of one id the newer counts."""
    target = storage.uploads / f"{_upload_key(upload_id)}.{received.sha256}"
    # The file system's own clock is too coarse to order two small uploads.
    moment_ns = time.time_ns()
    os.utime(received.path, ns=(moment_ns, moment_ns))
    received.path.rename(target)
    fsync_folder(storage.uploads)
    versions = _versions(storage, upload_id)
    for older in versions[: versions.index(target)] if target in versions else []:
        older.unlink(missing_ok=True)


@contextmanager
def moved_upload(storage: JobStorage, upload_id: str, target: Path) -> Iterator[ReceivedFile]:
    """Move an upload to `target`. If the caller then fails, it is put back, so that the client can try again."""
    versions = _versions(storage, upload_id)
    if not versions:
        raise UploadNotFoundError(upload_id)
    upload = versions[-1]
    try:
        upload.rename(target)
    except FileNotFoundError:  # another request took it meanwhile
        raise UploadNotFoundError(upload_id) from None
    try:
        fsync_folder(target.parent)
        yield ReceivedFile(target, target.stat().st_size, upload.name.partition(".")[2])
    except BaseException:
        target.rename(upload)
        raise


@contextmanager
def moved_file(received: ReceivedFile, target: Path) -> Iterator[ReceivedFile]:
    """The same for a file that was received with the request: nothing to put back."""
    received.path.rename(target)
    fsync_folder(target.parent)
    yield received


def sweep_uploads(storage: JobStorage, retention_seconds: float) -> None:
    """Remove what killed processes left half received, and finished uploads that nobody made a job of."""
    oldest_kept = time.time() - retention_seconds
    for path in storage.uploads.iterdir():
        with suppress(FileNotFoundError):  # finished, or swept by another gateway
            abandoned = path.suffix == PARTIAL_SUFFIX and not _is_locked(path)
            if abandoned or path.stat().st_mtime < oldest_kept:
                path.unlink()
                log.info("removed an abandoned upload", file=path.name)


def _upload_key(upload_id: str) -> str:
    return hashlib.sha256(upload_id.encode()).hexdigest()


def _versions(storage: JobStorage, upload_id: str) -> list[Path]:
    """Oldest first; more than one only for the moment in which an upload replaces another."""
    found = []
    for path in storage.uploads.glob(f"{_upload_key(upload_id)}.*"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(found)]


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
