"""A real gateway on a real port, with a real Redis; no worker, so that tests say when a job moves on."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import structlog
import uvicorn
from pydantic import SecretStr
from redis import Redis

from app.gateway import create_app
from app.settings import GatewaySettings
from worker.contract.job import (
    Container,
    JobOptions,
    JobRecord,
    PartialResult,
    ResultInfo,
    SourceInfo,
    StreamInfo,
    new_job_id,
    now,
)
from worker.contract.registry import JobRegistry
from worker.contract.settings import RedisSettings, StorageSettings
from worker.contract.storage import JobStorage

SOURCE_INFO = SourceInfo(
    container="mp4",
    width=64,
    height=48,
    frames=30,
    duration_seconds=1.2,
    frame_rate="25/1",
    pixel_format="yuv420p",
    streams=[StreamInfo(index=0, type="video", codec="h264")],
)


@dataclass
class RunningGateway:
    url: str
    http: httpx2.Client
    storage: JobStorage
    registry: JobRegistry
    redis: Redis

    def add_job(self, name: str = "clip.mp4", content: bytes = b"abc", owner: str | None = None) -> JobRecord:
        """A job as accepted, without going through HTTP."""
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=JobOptions(),
            source_name=name,
            source_size_bytes=len(content),
            source_sha256="0" * 64,
            owner=owner,
        )
        self.registry.add(record)
        self.storage.folder(record.id).source.write_bytes(content)
        return record

    def finish_job(self, job_id: str, content: bytes, sha256: str = "ab" * 32) -> None:
        """What a worker does at the end of a job."""
        folder = self.storage.folder(job_id)
        folder.result(Container.MP4).write_bytes(content)
        folder.report.write_text('{"kept": []}')
        self.registry.start(job_id, SOURCE_INFO)
        self.registry.succeed(
            job_id,
            ResultInfo(
                container=Container.MP4, width=128, height=96, frames=30, size_bytes=len(content), sha256=sha256
            ),
        )

    def keep_partial_result(self, job_id: str, content: bytes, sha256: str = "cd" * 32) -> None:
        """What a worker does for a canceled job that is to keep what it had finished."""
        folder = self.storage.folder(job_id)
        folder.result(Container.MP4).write_bytes(content)
        folder.report.write_text('{"kept": []}')
        self.registry.end_partial_result(
            job_id,
            PartialResult.KEPT,
            ResultInfo(
                container=Container.MP4, width=128, height=96, frames=10, size_bytes=len(content), sha256=sha256
            ),
        )

    def files(self) -> list[str]:
        """Every file in the storage folder."""
        return sorted(
            str(path.relative_to(self.storage.root)) for path in self.storage.root.rglob("*") if path.is_file()
        )


@pytest.fixture(autouse=True)
def logs_go_to_pytest() -> Iterator[None]:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    yield
    structlog.reset_defaults()


StartGateway = Callable[..., RunningGateway]


@pytest.fixture
def start_gateway(redis_url: str, redis: Redis, tmp_path: Path) -> Iterator[StartGateway]:
    """Start a gateway; keyword arguments are its settings, and `redis_url` and `min_free_bytes`."""
    with ExitStack() as stack:

        def start(**settings: object) -> RunningGateway:
            url = str(settings.pop("redis_url", redis_url))
            storage_settings = StorageSettings(
                storage_dir=tmp_path / "storage", min_free_bytes=int(str(settings.pop("min_free_bytes", 0)))
            )
            app = create_app(
                GatewaySettings.model_validate(settings), RedisSettings(redis_url=SecretStr(url)), storage_settings
            )
            address = stack.enter_context(running(uvicorn.Config(app, log_config=None, access_log=False, ws="none")))
            storage = JobStorage(storage_settings.storage_dir)
            client = stack.enter_context(httpx2.Client(base_url=address, timeout=20))
            return RunningGateway(address, client, storage, JobRegistry(redis, storage), redis)

        yield start


@pytest.fixture
def gateway(start_gateway: StartGateway) -> RunningGateway:
    return start_gateway()


@contextmanager
def running(config: uvicorn.Config) -> Iterator[str]:
    """A real server in a thread; gives its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert thread.is_alive(), "the gateway did not start"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_until(condition: Callable[[], object], timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
