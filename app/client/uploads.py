"""Resumable uploads: tus 1.0 (https://tus.io/protocols/resumable-upload), as `app.tus` speaks it.

A line that breaks costs what was under way, not the file. Where a folder is named for it, an upload that a process did
not finish is remembered there, and the next one that uploads the same file to the same service goes on with it.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.client.errors import ForeignResponseError, ProblemResponseError, TryLaterResponseError
from app.client.lines import FilePart
from app.client.service import PASSING_ERRORS, Service
from app.schemas import Problem
from worker.contract.storage import try_to_lock

_TUS = {"Tus-Resumable": "1.0.0"}
_FORGET_AFTER_SECONDS = 7 * 24 * 3600.0
# Where the upload stands is asked anew, and gone on from: it stalled, is elsewhere, or another request still holds it.
_ASK_AGAIN = frozenset({"upload_stalled", "upload_offset", "upload_busy"})


class Memory:
    """Which upload a file is under way in. Without a `file` it lasts as long as the object."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.upload_id = file.read_text() or None if file else None

    def remember(self, upload_id: str) -> None:
        self.upload_id = upload_id
        if self._file:
            self._file.write_text(upload_id)

    def forget(self) -> None:
        self.upload_id = None
        if self._file:
            self._file.unlink(missing_ok=True)


@contextmanager
def memory_of(folder: Path | None, service_url: str, path: Path) -> Iterator[Memory]:
    """What is remembered of the upload of this file, as it is now, to this service. None but this process has it.

    `folder` None, or one that cannot be written, remembers nothing; nor does the second of two processes that upload
    the same file at once: each has an upload of its own.
    """
    with ExitStack() as stack:
        file = None
        if folder:
            # A memory is a convenience: the upload goes on without it.
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _remove_old(folder)
                candidate = folder / _key(service_url, path)
                held = stack.enter_context(candidate.open("ab"))
                file = candidate if try_to_lock(held) else None
        memory = Memory(file)
        try:
            yield memory
        finally:
            if memory.upload_id is None:
                memory.forget()  # the empty file that was locked


def _key(service_url: str, path: Path) -> str:
    """A digest of the file as it is now: changed, it is another."""
    facts = path.stat()
    text = "\n".join([service_url, str(path.resolve()), str(facts.st_size), str(facts.st_mtime_ns)])
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def _remove_old(folder: Path) -> None:
    """The service has forgotten these long ago."""
    for file in folder.iterdir():
        if file.stat().st_mtime < time.time() - _FORGET_AFTER_SECONDS:
            file.unlink(missing_ok=True)


async def upload(service: Service, path: Path, memory: Memory, on_progress: Callable[[int, int], None]) -> str:
    """The id of the finished upload of a file. `on_progress` is called with the bytes sent and the bytes in all.

    A remembered one that is not there any more counts as finished: what makes a job of it tells whether it is one.
    """
    size_bytes = (await service.line.work(path.stat)).st_size
    offset_bytes = await _offset_bytes(service, memory.upload_id) if memory.upload_id else None
    if memory.upload_id is None:
        upload_id, offset_bytes = await _begin(service, size_bytes), 0
        memory.remember(upload_id)
    elif offset_bytes is None:
        return memory.upload_id
    else:
        upload_id = memory.upload_id
    on_progress(offset_bytes, size_bytes)
    patience = service.patience()
    while offset_bytes < size_bytes:
        body = FilePart(path, offset_bytes, size_bytes, on_sent=lambda sent: on_progress(sent, size_bytes))
        headers = _TUS | {"Upload-Offset": str(offset_bytes), "Content-Type": "application/offset+octet-stream"}
        try:
            response = await service.try_once("PATCH", f"/v1/uploads/{upload_id}", headers=headers, body=body)
            offset_bytes = int(response.headers["Upload-Offset"])
        except (*PASSING_ERRORS, ProblemResponseError) as error:
            if not isinstance(error, PASSING_ERRORS) and error.problem.code not in _ASK_AGAIN:
                raise
            await service.wait_after(error, patience)
            reached_bytes = await _offset_bytes(service, upload_id)
            if reached_bytes is None:
                raise
            if reached_bytes > offset_bytes:
                patience.renew()
            offset_bytes = reached_bytes
    return upload_id


async def _begin(service: Service, size_bytes: int) -> str:
    response = await service.request("POST", "/v1/uploads", headers=_TUS | {"Upload-Length": str(size_bytes)})
    location = response.headers.get("Location")
    if location is None:
        raise ForeignResponseError(f"{response.url} did not answer as this service does")
    # Only the id: the way to the service is known, and what stands between may have rewritten the rest.
    return str(location).rstrip("/").rpartition("/")[2]


async def _offset_bytes(service: Service, upload_id: str) -> int | None:
    """How much has arrived; None: the service has no such upload (any more), or does not tell."""
    patience = service.patience()
    while True:
        try:
            response = await service.line.exchange("HEAD", f"/v1/uploads/{upload_id}", headers=_TUS)
            # Answers to HEAD have no body: the status is all that is said.
            if response.status_code in (409, 423, 429, 502, 503, 504):
                problem = Problem(type="about:blank", title="The upload is busy", status=423, code="upload_busy")
                raise TryLaterResponseError(problem, response.headers)
            return int(response.headers["Upload-Offset"]) if response.is_success else None
        except PASSING_ERRORS as error:
            await service.wait_after(error, patience)
