"""Everything that can go wrong between a client and the service.

ClientError                     any of these
├─ ServiceUnreachableError      nothing answers, or the line broke
├─ ForeignResponseError         what answers is not this service
│  └─ ProxyResponseError        502 or 504 of something in between: the service is away
├─ ProblemResponseError         the service's own words; switch on `problem.code`
│  ├─ RejectedResponseError     400, 413, 415, 422: the same request will never be accepted
│  ├─ UnauthorizedResponseError 401, 403
│  ├─ NotFoundResponseError     404
│  ├─ NoResultResponseError     409, 410
│  └─ TryLaterResponseError     429, 503, and 409 while a request of the same Idempotency-Key is worked on
├─ JobEndedError                `upscale`: the job failed or was canceled
├─ DamagedDownloadError         the bytes that arrived are not those of the result
├─ SourceChangedError           the file became shorter while it was uploaded
└─ InvalidWebhookError          not a message of this service
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
from pydantic import ValidationError

from app.exit_codes import CommandError, ExitCode
from app.schemas import Job, Problem


class ClientError(CommandError):
    """One line for the user: what went wrong between here and the service."""

    exit_code = ExitCode.SERVICE


class InvalidWebhookError(ClientError):
    """What was received is not to be believed: answer 400 and forget it."""


class ServiceUnreachableError(ClientError):
    """`never_connected`: not even a connection came about; `was_silent`: there was one, and nothing came in time."""

    def __init__(self, url: str, reason: str, *, never_connected: bool = False, was_silent: bool = False) -> None:
        super().__init__(f"no service answers at {url} ({reason}): is it running, and is VSR_URL right?")
        self.never_connected = never_connected
        self.was_silent = was_silent


class ProblemResponseError(ClientError):
    """The service's own words. Switch on `problem.code`."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem
        self.retry_after_seconds = _seconds((headers or {}).get("Retry-After"))
        """When the service wants to be asked again; None: it does not say."""


class RejectedResponseError(ProblemResponseError):
    """400, 413, 415 or 422: the same request will never be accepted."""


class UnauthorizedResponseError(ProblemResponseError):
    """401 or 403: the key is missing or wrong."""


class NotFoundResponseError(ProblemResponseError):
    """404: no such job or upload."""


class NoResultResponseError(ProblemResponseError):
    """409 or 410: not finished yet, failed, canceled or expired."""


class TryLaterResponseError(ProblemResponseError):
    """429, 503, or 409 `idempotency_conflict`: the same request may succeed later."""


class ForeignResponseError(ClientError):
    """What answered does not speak our language: another server, or a proxy's error page."""


class ProxyResponseError(ForeignResponseError):
    """502, 503 or 504 of something between here and the service, which is away."""


class JobEndedError(ClientError):
    """The job came to an end without a result: `job.error` says why, where it failed."""

    exit_code = ExitCode.JOB_FAILED

    def __init__(self, job: Job) -> None:
        why = f": {job.error.code}: {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} {job.status}{why}")
        self.job = job


class DamagedDownloadError(ClientError):
    """The bytes that arrived are not those of the result."""


class SourceChangedError(ClientError):
    """The file became shorter while it was uploaded."""


_KINDS: dict[int, type[ProblemResponseError]] = {
    400: RejectedResponseError,
    401: UnauthorizedResponseError,
    403: UnauthorizedResponseError,
    404: NotFoundResponseError,
    409: NoResultResponseError,
    410: NoResultResponseError,
    413: RejectedResponseError,
    415: RejectedResponseError,
    422: RejectedResponseError,
    429: TryLaterResponseError,
    503: TryLaterResponseError,
}


def raise_problem(response: httpx2.Response) -> None:
    """Raise what an answer of 400 and more says; its body has been read."""
    if not response.is_error:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError as error:
        kind = ProxyResponseError if response.status_code in (502, 503, 504) else ForeignResponseError
        raise kind(f"{response.url} answered {response.status_code}, and not as this service does") from error
    # After a line that broke, the first try may still be worked on.
    is_passing = problem.code == "idempotency_conflict"
    problem_kind = TryLaterResponseError if is_passing else _KINDS.get(problem.status, ProblemResponseError)
    raise problem_kind(problem, response.headers)


def _seconds(retry_after: str | None) -> float | None:
    """What Retry-After says: a number of seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
