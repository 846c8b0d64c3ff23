"""Uploads that may be interrupted, on disk and in the hands of one request at a time. `app.tus` has the protocol.

An unfinished upload is two files in the uploads folder, named by the owner and the digest of the id:

    {key}.tus.json   what the client said when it began; written once
    {key}.tus        the bytes so far: its size is the offset, and no other record of that exists

So a kill at any moment leaves an upload to resume, and no two records that could disagree. Every offset is made durable
before it is told. With the last byte it becomes a finished upload like any other (`keep_upload`).
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import structlog
from anyio import to_thread
from fastapi import Request
from pydantic import BaseModel

from app.dependencies import Services
from app.errors import (
    ChecksumMismatchError,
    UploadBusyError,
    UploadNotFoundError,
    UploadOverrunError,
    UploadTakenOverError,
)
from app.kept_bytes import CONTENT_SUFFIX, DESCRIPTION_SUFFIX
from app.limits import more_bytes_of_key, refuse_beyond_begun_uploads
from app.uploads import (
    Hash,
    ReceivedFile,
    Sink,
    body_chunks,
    finished_uploads,
    is_at,
    keep_upload,
    remove_upload,
    upload_key,
)
from worker.contract.storage import JobStorage, fsync_folder, out_of_disk_named, try_to_lock

log = structlog.get_logger(__name__)

_LOCK_PATIENCE_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.02


class Description(BaseModel):
    length_bytes: int
    metadata: str = ""


class UploadFiles:
    """Where an upload lies. Its names are digests: nothing that a client sends is ever part of a path."""

    def __init__(self, storage: JobStorage, owner: str | None, upload_id: str) -> None:
        self.storage = storage
        self.owner = owner
        self.upload_id = upload_id
        self.key = upload_key(owner, upload_id)
        self.content = storage.uploads / f"{self.key}{CONTENT_SUFFIX}"
        self._description = storage.uploads / f"{self.key}{DESCRIPTION_SUFFIX}"

    def create(self, description: Description) -> None:
        """Durable when this returns. There is an upload as soon as there is a `.tus`, so that comes last."""
        with out_of_disk_named():
            with self._description.open("xb") as file:
                file.write(description.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            self.content.open("xb").close()
            fsync_folder(self.storage.uploads)

    def begin(self, services: Services, description: Description) -> None:
        """`create` within the limits of the key, which all that was announced counts in."""
        refuse_beyond_begun_uploads(services, self.owner)
        with more_bytes_of_key(services, self.owner, description.length_bytes):
            self.create(description)

    def describe(self) -> Description | None:
        """None for an upload that was not begun with tus."""
        try:
            return Description.model_validate_json(self._description.read_bytes())
        except FileNotFoundError:
            return None

    def finished(self) -> Path | None:
        versions = finished_uploads(self.storage, self.owner, self.upload_id)
        return versions[-1] if versions else None

    def finish(self, file: FileIO, sha256: str) -> None:
        """Publish the whole, durable content."""
        if self._description.exists():
            # Keeps it as long as the finished upload.
            os.utime(self._description)
        received = ReceivedFile(self.content, os.fstat(file.fileno()).st_size, sha256)
        keep_upload(self.storage, self.owner, self.upload_id, received)
        log.info("resumable upload finished", size_bytes=received.size_bytes)

    def remove(self) -> None:
        self.content.unlink(missing_ok=True)
        for path in finished_uploads(self.storage, self.owner, self.upload_id):
            remove_upload(path)
        self._description.unlink(missing_ok=True)


# --- one request's time with an upload --------------------------------------------------------------------------------


class Turn:
    """One request's time with an upload, until the next one comes for the same.

    Of a connection that was cut the server may learn nothing for a minute; the client that comes back knows better.
    """

    def __init__(self) -> None:
        self._is_over = False
        self._wait: asyncio.Timeout | None = None

    def end(self) -> None:
        self._is_over = True
        if self._wait is not None:
            self._wait.reschedule(0)

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Around an await that the end of the turn may break off with `UploadTakenOverError`."""
        if self._is_over:
            raise UploadTakenOverError("Another request has taken this upload over.")
        try:
            async with asyncio.timeout(None) as self._wait:
                yield
        except TimeoutError:
            raise UploadTakenOverError("Another request has taken this upload over.") from None
        finally:
            self._wait = None


class Turns:
    """Whose turn it is, for every upload that some request of this process is at."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    @contextmanager
    def take(self, key: str) -> Iterator[Turn]:
        if before := self._turns.get(key):
            before.end()
        turn = self._turns[key] = Turn()
        try:
            yield turn
        finally:
            if self._turns.get(key) is turn:
                del self._turns[key]


class Checksum:
    """What a chunk must hash to."""

    def __init__(self, algorithm: str, digest: bytes) -> None:
        self.hash: Hash = hashlib.new(algorithm, usedforsecurity=False)
        self._digest = digest

    def verify(self) -> None:
        if self.hash.digest() != self._digest:
            raise ChecksumMismatchError("The bytes are not those that Upload-Checksum tells of; send them again.")


@dataclass
class HeldUpload:
    """An upload that no other request, of this gateway or of another, can touch meanwhile."""

    services: Services
    files: UploadFiles
    turn: Turn
    description: Description
    offset_bytes: int
    modified_at: float
    file: FileIO | None
    """None once it is finished."""

    @property
    def expires_at(self) -> datetime:
        return datetime.fromtimestamp(self.modified_at + self.services.settings.upload_retention_seconds, UTC)

    async def append(self, request: Request, checksum: Checksum | None) -> None:
        """Take the request's body. What came is durable when this returns, and when it raises."""
        if self.file is None:
            return
        begin_bytes = self.offset_bytes
        # Where the rest comes in one piece, the checksum of the file is there as soon as the file is.
        whole = hashlib.sha256() if begin_bytes == 0 else None
        hashes: list[Hash] = [whole] if whole else []
        if checksum:
            hashes.append(checksum.hash)
        sink = Sink(self.services, self.file, begin_bytes, hashes)
        try:
            try:
                async for chunk in self._chunks(request):
                    if sink.size_bytes + len(chunk) > self.description.length_bytes:
                        raise UploadOverrunError(self.description.length_bytes)
                    await sink.write(chunk)
            finally:
                await sink.sync()
            if checksum:
                checksum.verify()
        except BaseException:
            await sink.settle()
            if checksum:
                await to_thread.run_sync(self.file.truncate, begin_bytes, limiter=self.services.upload_threads.syncing)
            raise
        status = os.fstat(self.file.fileno())
        self.offset_bytes, self.modified_at = status.st_size, status.st_mtime
        if self.offset_bytes == self.description.length_bytes:
            await _finish(self.services, self.files, self.file, whole.hexdigest() if whole else None)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        chunks = body_chunks(request, self.services.settings)
        while True:
            async with self.turn.waiting():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk


@asynccontextmanager
async def held_upload(services: Services, turns: Turns, files: UploadFiles) -> AsyncIterator[HeldUpload]:
    """The upload, for this request alone. Raises `UploadNotFoundError`, `UploadBusyError`, `UploadTakenOverError`."""
    with turns.take(files.key) as turn:
        file = await _locked(files.content, turn)
        syncing = services.upload_threads.syncing
        try:
            is_whole = file is not None and await to_thread.run_sync(_is_whole, files, file, limiter=syncing)
            if file is not None and is_whole:  # a gateway was killed between the last byte and the renaming
                await _finish(services, files, file, None)
            unfinished = None if is_whole else file
            yield await to_thread.run_sync(_opened, services, files, turn, unfinished, limiter=syncing)
        finally:
            if file is not None:
                # In a thread: of an upload that was removed meanwhile, the last to close it gives the blocks back.
                await asyncio.shield(asyncio.create_task(to_thread.run_sync(file.close, limiter=syncing)))


def _is_whole(files: UploadFiles, file: FileIO) -> bool:
    description = files.describe()
    # What a gateway wrote before it was killed may be in memory only.
    os.fsync(file.fileno())
    return description is not None and file.seek(0, os.SEEK_END) == description.length_bytes


async def _finish(services: Services, files: UploadFiles, file: FileIO, sha256: str | None) -> None:
    """`sha256`: of the content, if that is known already; else it takes as long as to read it all."""
    if sha256 is None:
        sha256 = await to_thread.run_sync(_digest, file, limiter=services.upload_threads.hashing)
    await to_thread.run_sync(files.finish, file, sha256, limiter=services.upload_threads.syncing)


def _digest(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(services: Services, files: UploadFiles, turn: Turn, file: FileIO | None) -> HeldUpload:
    description = files.describe()
    if file is not None and description is not None:
        status = os.fstat(file.fileno())
        return HeldUpload(services, files, turn, description, status.st_size, status.st_mtime, file)
    finished = files.finished()
    if finished is None:
        raise UploadNotFoundError(files.upload_id)
    try:
        status = finished.stat()
    except FileNotFoundError:  # became a job meanwhile
        raise UploadNotFoundError(files.upload_id) from None
    description = description or Description(length_bytes=status.st_size)
    return HeldUpload(services, files, turn, description, status.st_size, status.st_mtime, None)


async def _locked(path: Path, turn: Turn) -> FileIO | None:
    """The file, locked for this request. None: there is none (any more)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            file = path.open("r+b", buffering=0)
        except FileNotFoundError:
            return None
        if try_to_lock(file):
            if is_at(path, file):
                return file
        elif loop.time() > deadline:
            file.close()
            raise UploadBusyError("Another request is writing to this upload.", {"Retry-After": "1"})
        file.close()
        async with turn.waiting():
            await asyncio.sleep(_LOCK_POLL_SECONDS)
