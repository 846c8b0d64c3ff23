"""The client for programs without an event loop: each method runs the coroutine of its name in `app.client.api`."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack

from app.client.api import PATIENCE_WITH_JOBS_SECONDS, POLL_SECONDS, Api, AsyncJobs, Options, Progress
from app.client.lines import BlockingLine, iterate, run
from app.client.service import Service, headers_for
from app.schemas import Estimate, Job, JobPage, ModelList


class Jobs:
    def __init__(self, jobs: AsyncJobs) -> None:
        self._jobs = jobs

    def create(
        self,
        source: Path | str,
        on_progress: Callable[[int, int], None] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        return run(self._jobs.create(source, on_progress, **options))

    def get(self, job_id: str) -> Job:
        return run(self._jobs.get(job_id))

    def list(
        self,
        status: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
        *,
        ids: Sequence[str] | None = None,
    ) -> JobPage:
        return run(self._jobs.list(status, limit, cursor, ids=ids))

    def cancel(self, job_id: str, *, keep_partial: bool = False) -> Job:
        return run(self._jobs.cancel(job_id, keep_partial=keep_partial))

    def retry(self, job_id: str) -> Job:
        return run(self._jobs.retry(job_id))

    def delete(self, job_id: str) -> None:
        run(self._jobs.delete(job_id))

    def report(self, job_id: str) -> bytes:
        return run(self._jobs.report(job_id))

    def events(
        self,
        job_id: str,
        *,
        patience_seconds: float = PATIENCE_WITH_JOBS_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> Generator[Job]:
        yield from iterate(self._jobs.events(job_id, patience_seconds=patience_seconds, poll_seconds=poll_seconds))

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        *,
        patience_seconds: float = PATIENCE_WITH_JOBS_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> Job:
        return run(self._jobs.wait(job_id, on_progress, patience_seconds=patience_seconds, poll_seconds=poll_seconds))

    def download(self, job_id: str, path: Path | str, on_progress: Callable[[int, int], None] | None = None) -> None:
        run(self._jobs.download(job_id, path, on_progress))

    def preview(
        self, job_id: str, path: Path | str, *, at_seconds: float = 0.0, patience_seconds: float = 600.0
    ) -> float:
        return run(self._jobs.preview(job_id, path, at_seconds=at_seconds, patience_seconds=patience_seconds))

    def thumbnail(
        self, job_id: str, path: Path | str, *, of: Literal["source", "result"] = "result", at_seconds: float = 0.0
    ) -> float:
        return run(self._jobs.thumbnail(job_id, path, of=of, at_seconds=at_seconds))


class Client:
    """Use as a context manager. Every method may raise a `ClientError`.

    with Client("http://127.0.0.1:8000") as client:
        client.upscale("clip.mp4", "clip_2x.mp4", print, codec="hevc")
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        *,
        patience_seconds: float = 20.0,
        uploads_dir: Path | None = None,
    ) -> None:
        """What is said of this is said of `AsyncClient` too.

        `timeout_seconds`: of silence, not of a whole transfer.
        `patience_seconds`: for how long a request is tried again where the line breaks or the service is away or asks
        for it (Retry-After); where it asks for more, that is an error at once.
        `uploads_dir`: where unfinished uploads are remembered, for another process to go on with. None: nowhere.
        """
        line = BlockingLine(base_url, headers_for(api_key), timeout_seconds)
        self._api = Api(Service(line, patience_seconds), uploads_dir)
        self.jobs = Jobs(self._api.jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def upscale(
        self,
        source: Path | str,
        out: Path | str,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[Options],
    ) -> Job:
        return run(self._api.upscale(source, out, on_progress, **options))

    def models(self) -> ModelList:
        return run(self._api.models())

    def estimate(
        self,
        width: int,
        height: int,
        *,
        frames: int | None = None,
        duration_seconds: float | None = None,
        **options: Unpack[Options],
    ) -> Estimate:
        return run(self._api.estimate(width, height, frames=frames, duration_seconds=duration_seconds, **options))

    def close(self) -> None:
        run(self._api.close())


def _take_words(facade: type, api: type) -> None:
    """Each method's docstring is that of the coroutine it runs, so that `help()` knows it."""
    for name, method in vars(facade).items():
        if not name.startswith("_"):
            method.__doc__ = getattr(api, name).__doc__


_take_words(Jobs, AsyncJobs)
_take_words(Client, Api)
