"""Downloads that are whole, checked, and continued where they broke off."""

import hashlib
import os
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

from app.client.errors import DamagedDownloadError
from app.client.service import PASSING_ERRORS, Service
from app.schemas import JobResult
from worker.contract.storage import PARTIAL_SUFFIX, fsync_folder


async def download(service: Service, result: JobResult, path: Path, on_progress: Callable[[int, int], None]) -> None:
    """Save a result. `path` holds the whole file, or what it held before; the checksum is compared."""
    partial_file = path.with_name(f"{path.name}.{result.sha256[:12]}{PARTIAL_SUFFIX}")
    patience = service.patience()
    while True:
        before_bytes = _size_bytes(partial_file)
        try:
            await _continue(service, result, partial_file, on_progress)
            break
        except PASSING_ERRORS as error:
            if _size_bytes(partial_file) > before_bytes:
                patience.renew()
            await service.wait_after(error, patience)
    if await service.line.work(partial(_durable_sha256, partial_file)) != result.sha256:
        partial_file.unlink()
        raise DamagedDownloadError(f"the download of {path} arrived damaged: try again")
    partial_file.replace(path)
    fsync_folder(path.parent)


async def _continue(
    service: Service, result: JobResult, partial_file: Path, on_progress: Callable[[int, int], None]
) -> None:
    with partial_file.open("ab") as file:
        received_bytes = file.tell()
        if received_bytes >= result.size_bytes:
            return
        # As it lies there: a proxy that compresses would change the bytes that are counted.
        headers = {"Accept-Encoding": "identity"}
        if received_bytes:
            headers |= {"Range": f"bytes={received_bytes}-", "If-Range": f'"{result.sha256}"'}
        async with service.line.stream(result.url, headers) as stream:
            service.check(stream.response)
            if stream.response.status_code != 206:  # not the rest: all of it
                file.truncate(0)
                received_bytes = 0
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    await service.line.work(partial(file.write, chunk))
                    received_bytes += len(chunk)
                    on_progress(received_bytes, result.size_bytes)


def _size_bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _durable_sha256(path: Path) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return sha256
