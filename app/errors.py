"""Every error that a client can get: each class knows its status and its stable code, one function renders them all.

Responses are RFC 9457 problem+json. Unexpected errors become a 500 that says nothing of the inside; the log has it all.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.schemas import Problem
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.redis_faults import is_unavailable
from worker.contract.storage import StorageBusyError

PROBLEM_MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5


class ProblemError(Exception):
    """An error for the client. `detail` is one line for a person; `extensions` are further members of the problem."""

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None, **extensions: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions


class MalformedBodyError(ProblemError):
    status, code, title = 400, "malformed_body", "The body cannot be read"


class UnsupportedChecksumError(ProblemError):
    status, code, title = 400, "unsupported_checksum", "The checksum cannot be read"


class UnauthorizedError(ProblemError):
    status, code, title = 401, "unauthorized", "A valid API key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"WWW-Authenticate": "Bearer"})


class JobNotFoundError(ProblemError):
    status, code, title = 404, "job_not_found", "There is no such job"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id!r}; it may have been deleted.")


class WebhookNotFoundError(ProblemError):
    status, code, title = 404, "webhook_not_found", "The job has no webhook"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The job {job_id!r} was submitted without webhook_url.")


class NothingFinishedError(ProblemError):
    status, code, title = 404, "nothing_finished", "Nothing of the job can be watched yet"


class NoPictureError(ProblemError):
    status, code, title = 404, "no_picture", "There is no picture of the job yet"


class NoPreviewError(ProblemError):
    status, code, title = 404, "no_preview", "There is no preview of the job"


class UploadNotFoundError(ProblemError):
    status, code, title = 404, "upload_not_found", "There is no such upload"

    def __init__(self, upload_id: str) -> None:
        super().__init__(
            f"There is no upload {upload_id!r}: it was never finished, or is a job already, or has expired."
        )


class UploadStalledError(ProblemError):
    status, code, title = 408, "upload_stalled", "The upload stalled"


class NotFinishedError(ProblemError):
    status, code, title = 409, "not_finished", "The job has not finished yet"


class JobFailedError(ProblemError):
    status, code, title = 409, "job_failed", "The job failed and has no result"


class JobCanceledError(ProblemError):
    status, code, title = 409, "job_canceled", "The job was canceled and has no result"


class JobSucceededError(ProblemError):
    status, code, title = 409, "job_succeeded", "The job has succeeded and has its result"


class NotStreamableError(ProblemError):
    status, code, title = 409, "not_streamable", "Browsers cannot play this result as a stream"


class PreviewUnderWayError(ProblemError):
    status, code, title = 409, "preview_under_way", "A preview is being made"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"Retry-After": "1"})


class PreviewFailedError(ProblemError):
    status, code, title = 409, "preview_failed", "The preview could not be made"


class JobEndedError(ProblemError):
    status, code, title = 409, "job_ended", "The job has ended"


class UploadOffsetError(ProblemError):
    status, code, title = 409, "upload_offset", "The upload is at another offset"

    def __init__(self, offset_bytes: int) -> None:
        super().__init__(f"Go on at byte {offset_bytes}.", {"Upload-Offset": str(offset_bytes)})


class UploadTakenOverError(ProblemError):
    status, code, title = 409, "upload_taken_over", "Another request took this upload over"


class IdempotencyConflictError(ProblemError):
    status, code, title = 409, "idempotency_conflict", "A request with this Idempotency-Key is being worked on"


class ResultExpiredError(ProblemError):
    status, code, title = 410, "result_expired", "The result is no longer kept"


class TusVersionError(ProblemError):
    status, code, title = 412, "unsupported_tus_version", "This version of tus is not spoken here"


class UploadTooLargeError(ProblemError):
    status, code, title = 413, "upload_too_large", "The upload is too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The largest accepted file has {limit_bytes} bytes.", limit_bytes=limit_bytes)


class UploadOverrunError(ProblemError):
    status, code, title = 413, "upload_overrun", "The upload goes on past its length"

    def __init__(self, length_bytes: int) -> None:
        super().__init__(f"Upload-Length announced {length_bytes} bytes.", length_bytes=length_bytes)


class UnsupportedMediaTypeError(ProblemError):
    status, code, title = 415, "unsupported_media_type", "The body has the wrong media type"


class RangeNotSatisfiableError(ProblemError):
    status, code, title = 416, "range_not_satisfiable", "The range lies outside the file"


class InvalidRequestError(ProblemError):
    """`errors` holds one entry per mistake, with its location and message."""

    status, code, title = 422, "invalid_request", "The request is not valid"

    @classmethod
    def from_validation(cls, mistakes: Sequence[Mapping[str, Any]]) -> "InvalidRequestError":
        errors = [
            {"location": ".".join(str(part) for part in mistake["loc"]), "message": mistake["msg"]}
            for mistake in mistakes
        ]
        return cls("; ".join(f"{error['location']}: {error['message']}" for error in errors), errors=errors)


class UnknownPresetError(ProblemError):
    status, code, title = 422, FailureCode.UNKNOWN_PRESET.value, "There is no such preset"


class SourceUrlsOffError(ProblemError):
    status, code, title = 422, "source_url_disabled", "This service fetches no sources"

    def __init__(self) -> None:
        super().__init__("Upload the file, or ask the operator for VSR_ALLOW_SOURCE_URL.")


class WebhooksOffError(ProblemError):
    status, code, title = 422, "webhook_disabled", "This service sends no webhooks"

    def __init__(self) -> None:
        super().__init__("Submit without webhook_url and poll the job, or ask the operator for VSR_WEBHOOK_SECRET.")


class UrlRefusedError(ProblemError):
    status, code, title = 422, "url_refused", "The URL is not accepted"


class EmptyFileError(ProblemError):
    status, code, title = 422, FailureCode.EMPTY_FILE.value, "The file is empty"


class IdempotencyKeyReusedError(ProblemError):
    status, code, title = 422, "idempotency_key_reused", "The Idempotency-Key belongs to a different request"


class UploadBusyError(ProblemError):
    status, code, title = 423, "upload_busy", "The upload is being written to"


class LimitReachedError(ProblemError):
    """A limit on how much there may be at a time: its code says which, `limit` how many, Retry-After when to ask."""

    status = 429
    reason: ClassVar[str]
    retry_after_seconds: ClassVar[int] = 30

    def __init__(self, limit: int) -> None:
        headers = {"Retry-After": str(self.retry_after_seconds)}
        super().__init__(f"{self.reason.format(limit=limit)} Try again later.", headers, limit=limit)


class TooManyJobsError(LimitReachedError):
    code, title = "too_many_jobs", "Too many jobs are waiting"
    reason = "{limit} jobs are waiting already."


class TooManyKeyJobsError(LimitReachedError):
    code, title = "too_many_jobs_of_key", "This key has too many jobs under way"
    reason = "This key has {limit} jobs waiting or running already."


class TooManyPreviewsError(LimitReachedError):
    code, title = "too_many_previews", "A preview of another job is being made"
    reason = "Previews come before everything else, so of each key {limit} at a time is made."
    retry_after_seconds = 2


class TooManyUploadsError(LimitReachedError):
    code, title = "too_many_uploads", "Too many uploads are under way"
    reason = "{limit} uploads are under way already."
    retry_after_seconds = 5


class TooManyKeyUploadsError(LimitReachedError):
    code, title = "too_many_uploads_of_key", "This key has too many uploads under way"
    reason = "This key has {limit} uploads under way already."
    retry_after_seconds = 5


class TooManyListenersError(LimitReachedError):
    code, title = "too_many_listeners", "Too many follow jobs"
    reason = "{limit} streams of events are open already; look at the job itself."
    retry_after_seconds = 5


class TooManyKeyListenersError(LimitReachedError):
    code, title = "too_many_listeners_of_key", "Too many follow jobs with this key"
    reason = "This key has {limit} streams of events open already; look at several jobs at once by `id`."
    retry_after_seconds = 5


class KeyStorageFullError(LimitReachedError):
    code, title = "storage_of_key_full", "This key keeps too many bytes here"
    reason = "Sources and uploads of this key may take {limit} bytes together: delete jobs, or wait until some expire."
    retry_after_seconds = 3600


class ChecksumMismatchError(ProblemError):
    """460 is tus' own."""

    status, code, title = 460, "checksum_mismatch", "The bytes arrived damaged"


class QueueUnavailableError(ProblemError):
    status, code, title = 503, "queue_unavailable", "The queue cannot be reached"

    def __init__(self) -> None:
        super().__init__(
            "Redis does not answer or takes no more data; accepted jobs are safe. Try again soon.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
        )


class JobBusyError(ProblemError):
    """A process that froze, or a disk that does not answer, holds the job."""

    status, code, title = 503, "job_busy", "The job is being written to for too long"

    def __init__(self) -> None:
        super().__init__(
            "What was asked for may still come to pass. Look at the job, or try again soon.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
        )


class ShuttingDownError(ProblemError):
    status, code, title = 503, "shutting_down", "The service is shutting down"

    def __init__(self) -> None:
        super().__init__("The request was cut off. Try again soon.", {"Retry-After": str(RETRY_AFTER_SECONDS)})


class TooManyConnectionsError(ProblemError):
    status, code, title = 503, "too_many_connections", "Too many requests are under way"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests are being worked on already. Try again soon.",
            {"Retry-After": str(RETRY_AFTER_SECONDS)},
            limit=limit,
        )


class OutOfDiskError(ProblemError):
    status, code, title = 507, FailureCode.OUT_OF_DISK.value, "The storage has no room for this"


class InternalError(ProblemError):
    status, code, title = 500, FailureCode.INTERNAL.value, "Something went wrong on our side"


class _PlainHttpError(ProblemError):
    """What the framework raises itself: 404 for an unknown path, 405, ..."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__(str(error.detail), error.headers)
        phrase = HTTPStatus(error.status_code).phrase
        self.status = error.status_code  # type: ignore[misc]
        self.code = phrase.lower().replace(" ", "_")  # type: ignore[misc]
        self.title = phrase  # type: ignore[misc]


# Expected errors that are raised elsewhere, and those of the framework. Anything else is a bug and becomes a 500.
_TRANSLATED: tuple[type[Exception], ...] = (
    ProblemError,
    HTTPException,
    RequestValidationError,
    JobFailureError,
    RedisError,
    StorageBusyError,
)


def add_error_handlers(app: FastAPI) -> None:
    for kind in _TRANSLATED:
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _unexpected)


def translate(error: Exception) -> ProblemError:
    """The problem that tells a client about `error`."""
    match error:
        case ProblemError():
            return error
        case HTTPException():
            return _PlainHttpError(error)
        case RequestValidationError():
            return InvalidRequestError.from_validation(error.errors())
        case JobFailureError(code=FailureCode.OUT_OF_DISK):
            return OutOfDiskError(error.message)
        case RedisError() if is_unavailable(error):
            return QueueUnavailableError()
        case StorageBusyError():
            return JobBusyError()
        case _:
            return InternalError("The error is in the service's log under this request id.")


def responses(*kinds: type[ProblemError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of an operation that may end in these problems, with an example for each code."""
    declared: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        example = Problem(
            type=_type(kind.code), title=kind.title, status=kind.status, code=kind.code, request_id="3f1c…"
        )
        content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}}
        response = declared.setdefault(kind.status, {"description": kind.title, "content": content})
        examples = response["content"][PROBLEM_MEDIA_TYPE]["examples"]
        examples[kind.code] = {"value": example.model_dump(exclude_none=True)}
    return declared


def render(problem: ProblemError) -> Response:
    body = Problem.model_validate(
        {
            "type": _type(problem.code),
            "title": problem.title,
            "status": problem.status,
            "detail": problem.detail,
            "code": problem.code,
            "request_id": correlation_id.get(),
            **problem.extensions,
        }
    )
    return Response(
        body.model_dump_json(exclude_none=True), problem.status, problem.headers, media_type=PROBLEM_MEDIA_TYPE
    )


async def _expected(request: Request, error: Exception) -> Response:
    problem = translate(error)
    if isinstance(problem, InternalError):
        raise error
    if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
        problem.headers["Allow"] = ", ".join(allowed_methods(request))
    return render(problem)


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette answers these outside of every middleware, then raises on, so that the server logs the traceback.
    response = render(translate(error))
    response.headers["X-Request-ID"] = correlation_id.get() or ""
    # Which the server does then: a client that was not told would send its next request into a closing connection.
    response.headers["Connection"] = "close"
    return response


async def _client_left(request: Request, error: Exception) -> Response:
    """Nobody reads this; nginx's 499 is what the access log and the metrics show."""
    return Response(status_code=499)


def _type(code: str) -> str:
    return f"urn:twostep-vsr:problem:{code}"


def allowed_methods(request: Request) -> list[str]:
    """Of every route on this path: Starlette names only those of the first."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in request.app.routes)
    ]
