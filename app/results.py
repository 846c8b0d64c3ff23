"""The finished file, with ranges and validators, and the report."""

import re
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders

from app.dependencies import ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    JobCanceledError,
    JobFailedError,
    JobNotFoundError,
    NotFinishedError,
    QueueUnavailableError,
    RangeNotSatisfiableError,
    ResultExpiredError,
    UnauthorizedError,
    responses,
)
from app.filenames import attachment, result_file_name
from app.jobs import JobRecordDep
from worker.contract.job import JobRecord, JobStatus, PartialResult, ResultInfo
from worker.contract.report import Report

# A byte-range-set of RFC 9110: 0-499, 500- or -500, several with commas. No file needs more than 19 digits, and Python
# refuses to read numbers of thousands.
_RANGE = re.compile(
    r"bytes=\s*(?:\d{1,19}-\d{0,19}|-\d{1,19})(?:\s*,\s*(?:\d{1,19}-\d{0,19}|-\d{1,19}))*\s*", re.IGNORECASE
)

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], dependencies=[Depends(require_api_key)])

_problems = (
    UnauthorizedError,
    JobNotFoundError,
    NotFinishedError,
    JobFailedError,
    JobCanceledError,
    ResultExpiredError,
    RangeNotSatisfiableError,
    InvalidRequestError,
    QueueUnavailableError,
)


@router.head("/result", include_in_schema=False)
@router.get(
    "/result",
    summary="Download the finished file",
    response_class=FileResponse,
    responses={
        200: {"description": "The file.", "content": {"video/*": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The ranges that were asked for."},
        304: {"description": "Not modified: the client's copy is the file."},
        **responses(*_problems),
    },
)
def get_result(
    record: JobRecordDep,
    request: Request,
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Byte ranges resume a download. The ETag is the file's SHA-256: the same for as long as the job lives."""
    result = _result_of(record)
    path = services.storage.folder(record.id).result(result.container)
    if record.media_removed_at or not path.exists():
        raise ResultExpiredError("The result of this job has been removed; submit the video again.")
    name = result_file_name(record.source_name, result.container)
    return file_answer(request, if_none_match, path, result.sha256, name, result.container.media_type)


@router.get(
    "/report",
    summary="What was kept and what was changed",
    responses={200: {"model": Report, "description": "The report."}, **responses(*_problems)},
)
def get_report(record: JobRecordDep, services: ServicesDep) -> Response:
    """As the worker wrote it when the job succeeded: one of an earlier version has fewer fields, and no `version`."""
    _result_of(record)
    path = services.storage.folder(record.id).report
    if not path.exists():
        raise ResultExpiredError("The report of this job has been removed.")
    return Response(path.read_bytes(), media_type="application/json")


_WITHOUT_RESULT: dict[PartialResult | None, str] = {
    None: "The job was canceled before it was done.",
    PartialResult.NOTHING_FINISHED: "The job was canceled before its first segment was done.",
    PartialResult.FAILED: "The job was canceled, and what it had finished could not be put together.",
}


def _result_of(record: JobRecord) -> ResultInfo:
    """The result, or the problem that says why there is none."""
    if record.status in (JobStatus.SUCCEEDED, JobStatus.CANCELED) and record.result:
        return record.result
    if record.wants_partial_result:
        raise NotFinishedError("What the job had finished is being put together.", job_status=record.status)
    if record.status == JobStatus.FAILED and record.error:
        raise JobFailedError(record.error.message, job_status=record.status, error=record.error.model_dump())
    if record.status == JobStatus.CANCELED:
        raise JobCanceledError(
            _WITHOUT_RESULT.get(record.partial_result, _WITHOUT_RESULT[None]), job_status=record.status
        )
    raise NotFinishedError(f"The job is {record.status}; look at its progress.", job_status=record.status)


def file_answer(
    request: Request, if_none_match: str | None, path: Path, sha256: str, name: str, media_type: str
) -> Response:
    """A whole file, ranges of it, or that the client has it already. To save it, it is called `name`."""
    headers = {
        "ETag": f'"{sha256}"',
        # Keep a copy, but ask whether it is still good: what belongs to a deleted job must not live on in a cache.
        "Cache-Control": "private, no-cache",
        "Content-Disposition": attachment(name),
    }
    if if_none_match and _names(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    _check_range(request, path.stat().st_size, headers["ETag"])
    return FileResponse(path, headers=headers, media_type=media_type)


def _names(etag: str, if_none_match: str) -> bool:
    """Weak comparison, as If-None-Match wants it."""
    candidates = [candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")]
    return "*" in candidates or etag in candidates


def _check_range(request: Request, size_bytes: int, etag: str) -> None:
    """Leave to `FileResponse` only ranges that it can serve: its own refusals are plain text.

    A Range that cannot be read is ignored, as RFC 9110 allows; one beyond the end is a 416.
    """
    asked = request.headers.get("range")
    if asked is None or request.headers.get("if-range", etag) != etag:
        return
    ranges = re.findall(r"(\d*)-(\d*)", asked) if _RANGE.fullmatch(asked) else []
    if not ranges or any(first and last and int(first) > int(last) for first, last in ranges):
        del MutableHeaders(scope=request.scope)["range"]
    elif any(int(first) >= size_bytes if first else int(last) == 0 for first, last in ranges):
        raise RangeNotSatisfiableError(f"The file has {size_bytes} bytes.", {"Content-Range": f"bytes */{size_bytes}"})
