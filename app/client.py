"""A client of a running service, for `vsr submit` and for anyone's Python."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from app.exit_codes import CommandError, ExitCode
from app.schemas import Job, JobPage, JobResult, ModelList, Problem, Upload
from app.webhook_signatures import is_signed
from worker.contract.storage import PARTIAL_SUFFIX, fsync_folder

_CHUNK_BYTES = 256 * 1024
_DOWNLOAD_ATTEMPTS = 5
_Model = TypeVar("_Model", bound=BaseModel)


class ClientError(CommandError):
    """One line for the user: what went wrong between here and the service."""

    exit_code = ExitCode.SERVICE


class InvalidWebhookError(ClientError):
    """What was received is not to be believed: answer 400 and forget it."""


class ServiceUnreachableError(ClientError):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no service answers at {url} ({reason}): is it running, and is VSR_URL right?")


class ProblemResponseError(ClientError):
    """The service's own words. Switch on `problem.code`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem


class UnauthorizedResponseError(ProblemResponseError):
    """401: the key is missing or wrong."""


class NotFoundResponseError(ProblemResponseError):
    """404: no such job or upload."""


class NoResultResponseError(ProblemResponseError):
    """409 or 410: not finished yet, failed, canceled or expired."""


class TryLaterResponseError(ProblemResponseError):
    """429 or 503: the same request may succeed later."""


class ForeignResponseError(ClientError):
    """What answered does not speak our language: another server, or a proxy's error page."""


class DamagedDownloadError(ClientError):
    """The bytes that arrived are not those of the result."""


_KINDS: dict[int, type[ProblemResponseError]] = {
    401: UnauthorizedResponseError,
    404: NotFoundResponseError,
    409: NoResultResponseError,
    410: NoResultResponseError,
    429: TryLaterResponseError,
    503: TryLaterResponseError,
}


class Client:
    """Use as a context manager. Every method may raise a `ClientError`."""

    def __init__(self, base_url: str, api_key: str | None = None, timeout_seconds: float = 60.0) -> None:
        """`timeout_seconds`: of silence, not of a whole transfer."""
        self._http = httpx2.Client(
            base_url=base_url,
            headers={"X-API-Key": api_key} if api_key else {},
            timeout=httpx2.Timeout(timeout_seconds, connect=5.0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(
        self,
        path: Path,
        options: Mapping[str, object] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Job:
        """Upload a file and make it a job.

        `options`: fields of `worker.contract.job.JobOptions`, and `webhook_url`; those that are None are left to the
        service.
        `on_progress` is called with the bytes sent and the bytes in all.
        """
        upload = self._upload(path, on_progress or (lambda sent, total: None))
        body = {name: value for name, value in (options or {}).items() if value is not None}
        body |= {"upload_id": upload.id, "filename": path.name}
        return self._ask(Job, "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": upload.id})

    def submit_url(self, source_url: str, options: Mapping[str, object] | None = None) -> Job:
        """Let the service fetch the source itself. `options` as for `submit`, and `filename`."""
        body = {name: value for name, value in (options or {}).items() if value is not None}
        return self._ask(Job, "POST", "/v1/jobs", json=body | {"source_url": source_url})

    def get(self, job_id: str) -> Job:
        return self._ask(Job, "GET", f"/v1/jobs/{job_id}")

    def list(self, status: str | None = None, limit: int = 20, cursor: str | None = None) -> JobPage:
        asked = {"status": status, "limit": limit, "cursor": cursor}
        return self._ask(JobPage, "GET", "/v1/jobs", params={n: v for n, v in asked.items() if v is not None})

    def cancel(self, job_id: str, *, keep_partial: bool = False) -> Job:
        """`keep_partial`: make a result of what is finished; `partial_result` of the job tells when it is there."""
        return self._ask(Job, "POST", f"/v1/jobs/{job_id}/cancel", json={"keep_partial": keep_partial})

    def retry(self, job_id: str) -> Job:
        return self._ask(Job, "POST", f"/v1/jobs/{job_id}/retry")

    def delete(self, job_id: str) -> None:
        self._request("DELETE", f"/v1/jobs/{job_id}")

    def models(self) -> ModelList:
        return self._ask(ModelList, "GET", "/v1/models")

    def report(self, job_id: str) -> bytes:
        """What became of everything in the source: JSON, by `worker.contract.report.Report` where it is of today."""
        content: bytes = self._request("GET", f"/v1/jobs/{job_id}/report").content
        return content

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        poll_seconds: float = 0.5,
        patience_seconds: float = 120.0,
    ) -> Job:
        """Poll until the job is final: succeeded, failed or canceled.

        A service that is away for less than `patience_seconds`, such as one that restarts, is waited for.
        """
        last_answer = time.monotonic()
        while True:
            try:
                job = self.get(job_id)
            except (ServiceUnreachableError, TryLaterResponseError):
                if time.monotonic() - last_answer > patience_seconds:
                    raise
            else:
                last_answer = time.monotonic()
                if on_progress:
                    on_progress(job)
                if job.status.is_final:
                    return job
            time.sleep(poll_seconds)

    def download(self, job_id: str, path: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Save the result. `path` holds the whole file or what it held before; its checksum is compared.

        A transfer that breaks off is continued where it stopped, also by a later call.
        """
        result = self.get(job_id).result
        if result is None:
            self._request("GET", f"/v1/jobs/{job_id}/result")  # answers with the reason
            raise ForeignResponseError(f"job {job_id} has a result that its description does not mention")
        partial = path.with_name(f"{path.name}.{result.sha256[:12]}{PARTIAL_SUFFIX}")
        for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
            try:
                self._continue_download(result, partial, on_progress or (lambda received, total: None))
                break
            except ServiceUnreachableError:
                if attempt == _DOWNLOAD_ATTEMPTS:
                    raise
        with partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if sha256 != result.sha256:
            partial.unlink()
            raise DamagedDownloadError(f"the download of job {job_id} arrived damaged: try again")
        partial.replace(path)
        fsync_folder(path.parent)

    def _upload(self, path: Path, on_progress: Callable[[int, int], None]) -> Upload:
        total_bytes = path.stat().st_size

        def content() -> Iterator[bytes]:
            sent_bytes = 0
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                    sent_bytes += len(chunk)
                    on_progress(sent_bytes, total_bytes)

        return self._ask(
            Upload,
            "PUT",
            f"/v1/uploads/{uuid.uuid4().hex}",
            content=content(),
            headers={"Content-Length": str(total_bytes), "Content-Type": "application/octet-stream"},
        )

    def _continue_download(self, result: JobResult, partial: Path, on_progress: Callable[[int, int], None]) -> None:
        with partial.open("ab") as file:
            received_bytes = file.tell()
            if received_bytes >= result.size_bytes:
                return
            headers = {"Range": f"bytes={received_bytes}-", "If-Range": f'"{result.sha256}"'} if received_bytes else {}
            try:
                with self._http.stream("GET", result.url, headers=headers) as response:
                    if response.is_error:
                        response.read()
                    _raise_problem(response)
                    if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                        file.truncate(0)
                        received_bytes = 0
                    for chunk in response.iter_raw(_CHUNK_BYTES):
                        file.write(chunk)
                        received_bytes += len(chunk)
                        on_progress(received_bytes, result.size_bytes)
            except httpx2.RequestError as error:
                raise self._unreachable(error) from error

    def _ask(self, model: type[_Model], method: str, path: str, **request: object) -> _Model:
        response = self._request(method, path, **request)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise ForeignResponseError(f"{response.url} did not answer as this service does") from error

    def _request(self, method: str, path: str, **request: object) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **request)  # type: ignore[arg-type]
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from error
        _raise_problem(response)
        return response

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        return ServiceUnreachableError(str(self._http.base_url).rstrip("/"), str(error) or type(error).__name__)


def verify_webhook(
    headers: Mapping[str, str], body: bytes, secret: str, *, tolerance_seconds: float = 300.0
) -> dict[str, Any]:
    """For receivers: what the webhook says, if it is ours and new. Raises `InvalidWebhookError`.

    `body` is what arrived, byte by byte: of parsed and rewritten JSON the signature is another. `secret` is the
    service's VSR_WEBHOOK_SECRET. `tolerance_seconds`: how far the clocks may be apart, and how old a message may be.
    The same event may come more than once: `webhook-id` is the same then.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, timestamp_text = given["webhook-id"], given["webhook-timestamp"]
        signatures, timestamp = given["webhook-signature"], int(timestamp_text)
    except (KeyError, ValueError):
        raise InvalidWebhookError("a header webhook-id, webhook-timestamp or webhook-signature is missing") from None
    if not is_signed(signatures, secret, webhook_id, timestamp, body):
        raise InvalidWebhookError("the signature is not of this secret and this body")
    if abs(time.time() - timestamp) > tolerance_seconds:
        raise InvalidWebhookError(f"the message was signed more than {tolerance_seconds:g} seconds ago, or will be")
    content: dict[str, Any] = json.loads(body)
    return content


def _raise_problem(response: httpx2.Response) -> None:
    if not response.is_error:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError as error:
        raise ForeignResponseError(
            f"{response.url} answered {response.status_code}, and not as this service does"
        ) from error
    raise _KINDS.get(problem.status, ProblemResponseError)(problem)
