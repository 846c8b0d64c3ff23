"""SIGKILL the worker process at seeded random points of one job, and count what is lost.

    .venv/bin/python benchmarks/kill_recovery.py --kills 10 --seed 0

Brings its own Redis, storage, supervisor and video. No segment is hit more than twice: a third time would, rightly,
fail the job. Recovery is the time from the kill until a worker is at a task again; it holds the start of a new Python
process with torch and the model, unless another worker is idle.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import av
import numpy as np
from redis import Redis

from app.embedded_redis import EmbeddedRedis
from worker.contract.job import JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

# At 6 frames per second a segment has 24 frames.
FRAMES_PER_SECOND, SEGMENT_FRAMES = 6, 24
KILLS_PER_SEGMENT = 2
THREADS = 1
GIVE_UP_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--segments", type=int, default=15)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--preset", default="tiny-random")
    parser.add_argument("--size", default="96x64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kills: Counter[int] = Counter()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_video(folder / "source.mp4", options.segments * SEGMENT_FRAMES, options.size)
        undisturbed = upscale_here(source, folder / "undisturbed.mp4", options.preset)
        with EmbeddedRedis(folder / "redis") as server:
            run = Run(folder, server.url, options.workers, options.preset)
            try:
                job_id = run.submit(source, options.preset)
                segment_seconds = run.segment_seconds()
                seconds = [run.kill_after(chance.random() * segment_seconds, kills) for _ in range(options.kills)]
                run.wait(lambda: run.job(job_id).status.is_final, "the job's end")
                job = run.job(job_id)
                counted = run.metrics()
            finally:
                run.stop()
            result = job.result and run.storage.folder(job_id).result(job.result.container).read_bytes()

    finished = counted['vsr_segments_total{outcome="finished"}']
    print(f"kills                        {len(seconds)} (seed {options.seed})")
    print(f"jobs accepted / ended        1 / {int(job.status.is_final)} ({job.status})")
    print(f"result byte-identical        {'yes' if result == undisturbed else 'NO'}")
    print(f"segments                     {options.segments}")
    print(f"  hit                        {len(kills)}")
    print(f"  begun again after a kill   {counted['vsr_tasks_requeued_total']:.0f}")
    print(f"  finished more than once    {finished - options.segments:.0f}")
    print(f"task back in the queue       {1000 * mean(counted, 'vsr_recovery_seconds'):.0f} ms after the death, mean")
    print(f"seconds to recovery          median {statistics.median(seconds):.2f}, max {max(seconds):.2f}")
    if job.status is not JobStatus.SUCCEEDED or result != undisturbed:
        raise SystemExit(1)


class Run:
    """A supervisor with its processes, and the gateway's part of the job."""

    def __init__(self, folder: Path, redis_url: str, workers: int, preset: str) -> None:
        self.redis = Redis.from_url(redis_url)
        self.storage = JobStorage(folder / "storage")
        self.storage.prepare()
        self.registry = JobRegistry(self.redis, self.storage)
        self.queue = TaskQueue(self.redis)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        environment = os.environ | {
            "VSR_REDIS_URL": redis_url,
            "VSR_STORAGE_DIR": str(self.storage.root),
            "VSR_PRESET": preset,
            "VSR_METRICS_PORT": str(self.port),
            "VSR_LOG_LEVEL": "ERROR",
            # Threads that share a core with somebody else's wait for each other most of the time.
            "VSR_CPU_THREADS": str(THREADS),
        }
        self.supervisor = subprocess.Popen([sys.executable, "-m", "worker.supervisor", str(workers)], env=environment)

    def submit(self, source: Path, preset: str) -> str:
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=JobOptions(preset=preset, encoder_preset="ultrafast"),
            source_name=source.name,
            source_size_bytes=source.stat().st_size,
            source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        )
        self.storage.folder(record.id).path.mkdir()
        shutil.copy(source, self.storage.folder(record.id).source)
        self.registry.add(record)
        self.queue.enqueue_plan(record.id)
        return record.id

    def job(self, job_id: str) -> JobRecord:
        job = self.registry.get(job_id)
        assert job is not None
        return job

    def segment_seconds(self) -> float:
        """How long the first segment takes here."""
        self.wait(lambda: 0 in self.segments_under_way(), "the first segment")
        began = time.monotonic()
        self.wait(lambda: 0 not in self.segments_under_way(), "the end of the first segment")
        return time.monotonic() - began

    def kill_after(self, seconds: float, kills: Counter[int]) -> float:
        """SIGKILL a process that renders, `seconds` after one is seen doing so; return the seconds to recovery."""

        def spared() -> list[tuple[int, str]]:
            return [item for item in self.segments_under_way().items() if kills[item[0]] < KILLS_PER_SEGMENT]

        self.wait(spared, "a segment under way; take more of them")
        time.sleep(seconds)
        self.wait(spared, "a segment under way; take more of them")
        index, worker = spared()[0]
        before = set(self.executions().values())
        pid = self.redis.hget(f"rq:worker:{worker}", "pid")
        assert pid is not None
        killed_at = time.monotonic()
        os.kill(int(pid), signal.SIGKILL)
        kills[index] += 1
        self.wait(lambda: set(self.executions().values()) - before, "recovery")
        return time.monotonic() - killed_at

    def segments_under_way(self) -> dict[int, str]:
        """Index to the worker at it."""
        found = {}
        for worker, execution in self.executions().items():
            _, kind, *index = execution.partition(":")[0].split("-")
            if kind == "segment":
                found[int(index[0])] = worker
        return found

    def executions(self) -> dict[str, str]:
        """Worker to what it is at."""
        names = [key.decode().removeprefix("rq:worker:") for key in self.redis.smembers("rq:workers")]
        under_way = {name: self.redis.smembers(f"rq:worker:{name}:executions") for name in names}
        return {name: next(iter(found)).decode() for name, found in under_way.items() if found}

    def metrics(self) -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {GIVE_UP_SECONDS:.0f} s")
            time.sleep(0.005)

    def stop(self) -> None:
        self.supervisor.terminate()
        self.supervisor.wait()
        self.redis.close()


def mean(metrics: dict[str, float], name: str) -> float:
    count = metrics[f"{name}_count"]
    return metrics[f"{name}_sum"] / count if count else 0.0


def upscale_here(source: Path, output: Path, preset: str) -> bytes:
    """What `vsr upscale` makes of it, undisturbed."""
    vsr = Path(sys.executable).with_name("vsr")
    options = ["--preset", preset, "--device", "cpu", "--encoder-preset", "ultrafast"]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    subprocess.run([vsr, "upscale", source, output, *options], check=True, capture_output=True, env=environment)
    return output.read_bytes()


def write_video(path: Path, frames: int, size: str) -> Path:
    """A bright square that moves over a changing gradient."""
    width, height = map(int, size.split("x"))
    rows, columns = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.stack([rows * 2, columns, (rows + columns + number) % 256], axis=-1).clip(0, 255)
            left = number * 3 % (width - 16)
            picture[20:36, left : left + 16] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


if __name__ == "__main__":
    main()
