"""A whole house of real processes: Redis, storage, supervisor, worker processes. Only the gateway is played."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from urllib.request import urlopen

import av
import numpy as np
import pytest
import torch
from redis import Redis

from app.embedded_redis import EmbeddedRedis
from worker.contract.job import JobOptions, JobRecord, new_job_id, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobFolder, JobStorage
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

PRESET = "tiny-random"
OPTIONS = JobOptions(preset=PRESET, encoder_preset="ultrafast")
DEADLINE_SECONDS = 120.0


def wait_for(what: str, condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> float:
    """Poll until `condition` is true; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.01)
    return time.monotonic() - began


def write_moving_video(path: Path, frames: int, width: int = 64, height: int = 48, rate: int = 6) -> Path:
    """A bright square that moves over a gradient. At 6 frames per second a segment has 24 frames."""
    rows, columns = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.stack([rows * 2, columns, (rows + columns + number) % 256], axis=-1).clip(0, 255)
            left = number * 3 % (width - 16)
            picture[20:36, left : left + 16] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


class House:
    """Storage and Redis, with the gateway's part of a job's life, and supervisors on demand."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.redis_url = redis_url
        self.redis = Redis.from_url(redis_url)
        self.storage = JobStorage(folder)
        self.storage.prepare()
        self.registry = JobRegistry(self.redis, self.storage)
        self.queue = TaskQueue(self.redis)

    def submit(self, source: Path, preset: str = PRESET, options: JobOptions = OPTIONS) -> str:
        """Accept a job as the gateway does: source, record, task."""
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=options.model_copy(update={"preset": preset}),
            source_name=source.name,
            source_size_bytes=source.stat().st_size,
            source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        )
        folder = self.storage.folder(record.id)
        folder.path.mkdir()
        shutil.copy(source, folder.source)
        self.registry.add(record)
        self.queue.enqueue_plan(record.id)
        return record.id

    def job(self, job_id: str) -> JobRecord:
        job = self.registry.get(job_id)
        assert job is not None
        return job

    def folder(self, job_id: str) -> JobFolder:
        return self.storage.folder(job_id)

    def wait_for_end(self, job_id: str) -> JobRecord:
        wait_for("the job's end", lambda: self.job(job_id).status.is_final)
        return self.job(job_id)

    def result(self, job_id: str) -> bytes:
        result = self.job(job_id).result
        assert result is not None, self.job(job_id).error
        return self.folder(job_id).result(result.container).read_bytes()

    def finished_segments(self, job_id: str) -> dict[str, int]:
        """Name to time of publication."""
        return {path.name: path.stat().st_mtime_ns for path in self.folder(job_id).segments.glob("*.mp4")}

    def is_rendering(self, job_id: str) -> bool:
        """Whether at least one batch of a segment under way is done."""
        return any(name.startswith(b"segment:") for name in self.redis.hkeys(f"vsr:progress:{job_id}"))

    def wait_for_middle(self, job_id: str, segments_done: int = 1) -> None:
        """Until so many segments are finished and another is under way."""
        wait_for(
            "the middle of the job",
            lambda: self.is_rendering(job_id) and self.registry.progress(job_id).segments_done >= segments_done,
        )

    @contextmanager
    def workers(self, count: int = 1, **settings: str) -> Iterator["Workers"]:
        """A supervisor with `count` processes, ready for work; stopped at the end."""
        workers = Workers(self, count, settings)

        def are_ready() -> bool:
            assert workers.supervisor.poll() is None, "the supervisor ended"
            return len(workers.names()) == count

        try:
            wait_for("the worker processes", are_ready)
            yield workers
        finally:
            workers.stop()


class Workers:
    def __init__(self, house: House, count: int, settings: dict[str, str]) -> None:
        self._redis = house.redis
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.metrics_port: int = probe.getsockname()[1]
        environment = os.environ | {
            "VSR_REDIS_URL": house.redis_url,
            "VSR_STORAGE_DIR": str(house.storage.root),
            "VSR_PRESET": PRESET,
            "VSR_DEVICE": "cpu",
            "VSR_METRICS_PORT": str(self.metrics_port),
            "VSR_RECONCILE_SECONDS": "1",
            # Two threads that share a core with somebody else wait for each other most of the time.
            "VSR_CPU_THREADS": "1",
            **settings,
        }
        self.supervisor = subprocess.Popen([sys.executable, "-m", "worker.supervisor", str(count)], env=environment)

    def names(self) -> list[str]:
        """The worker processes that wait for tasks or work on one."""
        return sorted(key.decode().removeprefix("rq:worker:") for key in self._redis.smembers("rq:workers"))

    def pids(self) -> list[int]:
        values = [self._redis.hget(f"rq:worker:{name}", "pid") for name in self.names()]
        return [int(value) for value in values if value]

    def state(self, name: str) -> str | None:
        value = self._redis.hget(f"rq:worker:{name}", "state")
        return value.decode() if value else None

    def tasks(self) -> list[str]:
        """The kinds of the tasks under way."""
        executions = [item.decode() for item in self._redis.zrange("rq:wip:vsr", 0, -1)]
        return [execution.split("-")[1].split(":")[0] for execution in executions]

    def kill_process(self) -> None:
        """SIGKILL the only worker process, and wait until the supervisor has seen it."""
        [name], [pid] = self.names(), self.pids()
        self.signal_process(pid, signal.SIGKILL)
        wait_for("the burial", lambda: name not in self.names())

    def signal_process(self, pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)

    def metrics(self) -> dict[str, float]:
        """What Prometheus would read: series to value."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def stop(self) -> int:
        self.supervisor.terminate()
        return self.supervisor.wait(30)


@pytest.fixture(scope="module")
def running_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, "Workers"]]:
    """One for all tests of a file that leave it as it was: a process with torch takes seconds to start."""
    folder = tmp_path_factory.mktemp("house")
    with EmbeddedRedis(folder / "redis") as server:
        house = House(folder / "storage", server.url)
        with house.workers() as workers:
            yield house, workers
        house.redis.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A server of this test's own, which it may stop."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def house(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[House]:
    house = House(tmp_path / "storage", redis_server.url)
    yield house
    house.redis.close()


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five segments."""
    return write_moving_video(tmp_path_factory.mktemp("videos") / "five-segments.mp4", 120)


@pytest.fixture(scope="session")
def undisturbed(video: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `vsr upscale` makes of the video."""
    output = tmp_path_factory.mktemp("undisturbed") / "result.mp4"
    settings = WorkerSettings(preset=PRESET, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for the workers below
    upscale_file(video, output, OPTIONS, settings=settings, limits=VideoLimits())
    torch.set_num_threads(threads)
    return output.read_bytes()
