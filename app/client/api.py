"""What a client can do, each thing written once, as coroutines: `AsyncClient` offers them so, `Client` runs them."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict, Unpack
from uuid import uuid4

import httpx2

from app.client.downloads import download
from app.client.errors import ForeignResponseError, JobEndedError, NoResultResponseError, ProblemResponseError
from app.client.following import follow
from app.client.service import Patience, Service
from app.client.uploads import memory_of, upload
from app.schemas import Estimate, Job, JobPage, ModelList
from worker.contract.job import Container, JobStatus
from worker.contract.storage import publishing

PATIENCE_WITH_JOBS_SECONDS = 120.0
POLL_SECONDS = 0.5
# Of a remembered upload: it became no job, or one that was asked for in other words than now.
_UPLOAD_ANEW = frozenset({"upload_not_found", "idempotency_key_reused"})


class Options(TypedDict, total=False):
    """How the result is to be made: see `worker.contract.job.JobOptions`. None leaves a thing to the service."""

    preset: str | None
    container: Literal["mp4", "mkv", "mov", "webm", "zip"] | None
    codec: Literal["h264", "hevc", "av1", "vp9", "ffv1", "prores", "png"] | None
    quality: Literal["small", "balanced", "high", "lossless"] | None
    crf: int | None
    encoder_preset: Literal["ultrafast", "veryfast", "faster", "fast", "medium", "slow", "veryslow"] | None
    encoder_options: str | None
    deinterlace: Literal["auto", "always", "never"] | None
    on_error: Literal["fail", "conceal"] | None
    frame_rate: str | None
    drop_unsupported: bool | None
    reuse: bool | None
    filename: str | None
    """The file's name, for the result's; without it that of the path or URL."""
    webhook_url: str | None
    reuse_result: bool | None


@dataclass(frozen=True)
class Progress:
    """How far `upscale` is."""

    step: Literal["uploading", "queued", "running", "downloading"]
    done: int
    total: int | None
    """Bytes of what is uploaded or downloaded, frames of what is running; None: not known yet."""
    job: Job | None = None
    """Once there is one."""

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.total else 0.0


class AsyncJobs:
    def __init__(self, service: Service, uploads_dir: Path | None) -> None:
        self._service = service
        self._uploads_dir = uploads_dir

    async def create(
        self,
        source: Path | str,
        on_progress: Callable[[int, int], None] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Upload a file, or name an https URL for the service to fetch, and make it a job.

        `on_progress` is called with the bytes sent and the bytes in all. Cut connections are gone on from, and with
        the client's `uploads_dir` also an upload that an earlier process did not finish.
        """
        body = {name: value for name, value in options.items() if value is not None}
        if isinstance(source, str) and "://" in source:
            return await self._submit(body | {"source_url": source}, uuid4().hex)
        path = Path(source)
        with memory_of(self._uploads_dir, self._service.line.url, path) as memory:
            tell = on_progress or (lambda sent, total: None)
            body = {"filename": path.name} | body
            is_remembered = memory.upload_id is not None
            upload_id = await upload(self._service, path, memory, tell)
            try:
                job = await self._submit(body | {"upload_id": upload_id}, upload_id)
            except ProblemResponseError as error:
                if not is_remembered or error.problem.code not in _UPLOAD_ANEW:
                    raise
                memory.upload_id = None
                upload_id = await upload(self._service, path, memory, tell)
                job = await self._submit(body | {"upload_id": upload_id}, upload_id)
            memory.forget()
        return job

    async def _submit(self, body: Mapping[str, object], idempotency_key: str) -> Job:
        headers = {"Idempotency-Key": idempotency_key}
        return await self._service.ask(Job, "POST", "/v1/jobs", json=body, headers=headers)

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._service.ask(Job, "GET", f"/v1/jobs/{job_id}")

    async def list(
        self,
        status: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
        *,
        ids: Sequence[str] | None = None,
    ) -> JobPage:
        """A page of jobs, newest first; `cursor` is the `next_cursor` of the page before.

        `ids`: instead these, up to 100, in this order, without those that do not exist.
        """
        if ids is not None and not ids:
            return JobPage(jobs=[], next_cursor=None)  # no `id` at all would ask for the newest
        asked = {"id": ids} if ids is not None else {"status": status, "limit": limit, "cursor": cursor}
        params = {name: value for name, value in asked.items() if value is not None}
        return await self._service.ask(JobPage, "GET", "/v1/jobs", params=params)

    async def cancel(self, job_id: str, *, keep_partial: bool = False) -> Job:
        """`keep_partial`: make a result of what is finished; `partial_result` of the job tells when it is there."""
        body = {"keep_partial": keep_partial}
        return await self._service.ask(Job, "POST", f"/v1/jobs/{job_id}/cancel", json=body)

    async def retry(self, job_id: str) -> Job:
        """Try a failed or canceled job again. What it had finished is kept."""
        return await self._service.ask(Job, "POST", f"/v1/jobs/{job_id}/retry")

    async def delete(self, job_id: str) -> None:
        """Cancel the job if it has not ended, and remove all its media."""
        await self._service.request("DELETE", f"/v1/jobs/{job_id}")

    async def report(self, job_id: str) -> bytes:
        """What became of everything in the source: JSON, by `worker.contract.report.Report` where it is of today."""
        content: bytes = (await self._service.request("GET", f"/v1/jobs/{job_id}/report")).content
        return content

    async def events(
        self,
        job_id: str,
        *,
        patience_seconds: float = PATIENCE_WITH_JOBS_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> AsyncGenerator[Job]:
        """The job as it is, then after each change; the last one is final: succeeded, failed or canceled.

        As the service tells it; asked for every `poll_seconds` where events do not get through. A service that is away
        for less than `patience_seconds`, such as one that restarts, is waited for.
        """
        jobs = follow(self._service, job_id, patience_seconds=patience_seconds, poll_seconds=poll_seconds)
        async with aclosing(jobs):
            async for job in jobs:
                yield job

    async def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        *,
        patience_seconds: float = PATIENCE_WITH_JOBS_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> Job:
        """The job when it is final: succeeded, failed or canceled. `on_progress` sees it at each change before."""
        jobs = self.events(job_id, patience_seconds=patience_seconds, poll_seconds=poll_seconds)
        async with aclosing(jobs):
            async for job in jobs:
                if on_progress:
                    on_progress(job)
        return job

    async def download(
        self, job_id: str, path: Path | str, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Save the result. `path` holds the whole file or what it held before; its checksum is compared.

        A transfer that breaks off is continued where it stopped, also by a later call. `on_progress` is called with the
        bytes received and the bytes in all.
        """
        result = (await self.get(job_id)).result
        if result is None:
            await self._service.request("GET", f"/v1/jobs/{job_id}/result")  # answers with the reason
            raise ForeignResponseError(f"job {job_id} has a result that its description does not mention")
        await download(self._service, result, Path(path), on_progress or (lambda received, total: None))

    async def preview(
        self, job_id: str, path: Path | str, *, at_seconds: float = 0.0, patience_seconds: float = 600.0
    ) -> float:
        """Have two seconds from `at_seconds` made before everything else, and save them (mp4); returns their own time.

        One that is being made already is waited for first.
        """
        address = f"/v1/jobs/{job_id}/preview"
        patience = self._service.patience(patience_seconds)
        await self._once_it_may("POST", address, patience, json={"at_seconds": at_seconds})
        response = await self._once_it_may("GET", address, patience)
        await self._service.line.work(partial(_write, Path(path), response.content))
        return float(response.headers.get("VSR-At-Seconds", at_seconds))

    async def thumbnail(
        self, job_id: str, path: Path | str, *, of: Literal["source", "result"] = "result", at_seconds: float = 0.0
    ) -> float:
        """Save the picture that there is nearest to `at_seconds` (jpeg); returns its own time."""
        params = {"of": of, "at_seconds": at_seconds}
        response = await self._service.request("GET", f"/v1/jobs/{job_id}/thumbnail", params=params)
        await self._service.line.work(partial(_write, Path(path), response.content))
        return float(response.headers.get("VSR-At-Seconds", at_seconds))

    async def _once_it_may(self, method: str, address: str, patience: Patience, json: object = None) -> httpx2.Response:
        """The answer, as soon as it is another than 409 with a word of when to ask again."""
        while True:
            try:
                return await self._service.request(method, address, json=json)
            except NoResultResponseError as error:
                if error.retry_after_seconds is None:
                    raise  # it will never be there
                await self._service.wait_after(error, patience)


class Api:
    """What `AsyncClient` and `Client` have in common."""

    def __init__(self, service: Service, uploads_dir: Path | None) -> None:
        self._service = service
        self.jobs = AsyncJobs(service, uploads_dir)

    async def upscale(
        self,
        source: Path | str,
        out: Path | str,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Upload, wait, download: `source` (a file, or an https URL) twice its size in `out`.

        Raises `JobEndedError` where the job fails or someone cancels it. Interrupted, the job goes on in the service.
        """
        tell = on_progress or (lambda progress: None)
        if "container" not in options:
            options["container"] = next((one.value for one in Container if Path(out).suffix.lower() == f".{one}"), None)
        job = await self.jobs.create(source, lambda sent, total: tell(Progress("uploading", sent, total)), **options)

        def tell_of_job(now: Job) -> None:
            step: Literal["queued", "running"] = "queued" if now.status is JobStatus.QUEUED else "running"
            tell(Progress(step, now.progress.frames_done, now.progress.frames_total or None, now))

        job = await self.jobs.wait(job.id, tell_of_job)
        if job.status is not JobStatus.SUCCEEDED:
            raise JobEndedError(job)
        await self.jobs.download(
            job.id, out, lambda received, total: tell(Progress("downloading", received, total, job))
        )
        return job

    async def models(self) -> ModelList:
        """The presets, and which of them a worker has in memory."""
        return await self._service.ask(ModelList, "GET", "/v1/models")

    async def estimate(
        self,
        width: int,
        height: int,
        *,
        frames: int | None = None,
        duration_seconds: float | None = None,
        **options: Unpack[Options],
    ) -> Estimate:
        """How long a job would take and wait, and how large its result would be; None where nothing was measured yet.

        Of `frames`, or `duration_seconds`.
        """
        length = {"frames": frames, "duration_seconds": duration_seconds}
        wished = {**options, **length, "width": width, "height": height}
        body = {name: value for name, value in wished.items() if value is not None}
        return await self._service.ask(Estimate, "POST", "/v1/estimate", json=body)

    async def close(self) -> None:
        await self._service.line.close()


def _write(path: Path, content: bytes) -> None:
    with publishing(path) as partial_file:
        partial_file.write_bytes(content)
