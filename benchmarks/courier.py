"""What the courier costs and keeps: kills, cancels, a large download, many webhooks. Everything on this machine.

    .venv/bin/python benchmarks/courier.py --kills 20 --seed 0

Brings its own Redis, storage, couriers and other host. Recovery is the time from the kill of the only courier until
the other host hears from its successor; it holds the start of a Python process.
"""

import argparse
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from redis import Redis

from app.embedded_redis import EmbeddedRedis
from worker.contract.errands import ErrandKind, Errands
from worker.contract.job import JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

MEBIBYTE = 1024 * 1024
GIVE_UP_SECONDS = 300.0
SMALL_FILE = bytes(range(256)) * 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=60, help="with a source and a webhook each, during the kills")
    parser.add_argument("--cancels", type=int, default=20)
    parser.add_argument("--webhooks", type=int, default=500)
    parser.add_argument("--download-mebibytes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, EmbeddedRedis(Path(name) / "redis") as server, other_host() as host:
        house = House(Path(name) / "storage", server.url, host)
        survive_kills(house, options.kills, options.jobs, random.Random(options.seed))
        with house.courier() as courier:
            cancel_downloads(house, options.cancels)
            download(house, courier, options.download_mebibytes)
            deliver(house, options.webhooks)


class OtherHost:
    """Gives small files after a moment, endless ones, a large one, and hears webhooks."""

    def __init__(self) -> None:
        self.url = ""
        self.large_bytes = 0
        self.heard: Counter[str] = Counter()
        self.last_request_at = 0.0
        self.under_way = 0
        self.left_at: list[float] = []


class House:
    def __init__(self, folder: Path, redis_url: str, host: OtherHost) -> None:
        self.host = host
        self.redis = Redis.from_url(redis_url)
        self.redis_url = redis_url
        self.storage = JobStorage(folder)
        self.storage.prepare()
        self.registry = JobRegistry(self.redis, self.storage)
        self.errands = Errands(self.redis)

    def accept(self, path: str | None = None) -> str:
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=JobOptions(),
            source_name="clip.mp4",
            source_size_bytes=0,
            source_sha256="" if path else "0" * 64,
            source_url=self.host.url + path if path else None,
            webhook_url=f"{self.host.url}/hook",
        )
        self.storage.make_folder(record.id)
        self.registry.add(record)
        return record.id

    def start_courier(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "VSR_REDIS_URL": self.redis_url,
            "VSR_STORAGE_DIR": str(self.storage.root),
            "VSR_COURIER_METRICS_PORT": "0",
            "VSR_COURIER_CLAIM_SECONDS": "2",
            "VSR_ALLOW_SOURCE_URL": "true",
            "VSR_ALLOW_LOOPBACK_TARGETS": "true",
            "VSR_WEBHOOK_SECRET": "a secret for this benchmark only",
            "VSR_LOG_LEVEL": "WARNING",
        }
        return subprocess.Popen([sys.executable, "-m", "app.cli", "courier"], env=environment)

    @contextmanager
    def courier(self) -> Iterator["subprocess.Popen[bytes]"]:
        process = self.start_courier()
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def survive_kills(house: House, kills: int, jobs: int, chance: random.Random) -> None:
    ids = [house.accept("/small") for _ in range(jobs)]
    told = {job_id for job_id in ids if chance.random() < 0.5}
    for job_id in told:
        house.registry.cancel(job_id)
    recoveries = []
    killed_at = 0.0
    for _ in range(kills):
        process = house.start_courier()
        wait_for(lambda since=killed_at: house.host.last_request_at > since)
        if killed_at:
            recoveries.append(house.host.last_request_at - killed_at)
        time.sleep(chance.uniform(0.0, 0.6))
        process.kill()
        process.wait()
        killed_at = time.monotonic()
        if not remaining(house):  # nothing left to hit
            for _ in range(8):
                job_id = house.accept("/small")
                ids.append(job_id)
                if chance.random() < 0.5:
                    house.registry.cancel(job_id)
                    told.add(job_id)
    with house.courier():
        wait_for(lambda: not remaining(house))
    fetched = [job_id for job_id in ids if job_id not in told]
    wrong = [job_id for job_id in fetched if not is_whole(house, job_id)]
    leftovers = list(house.storage.root.rglob("*.part"))
    lost = [job_id for job_id in told if not any(job_id in heard for heard in house.host.heard)]
    again = sum(count - 1 for count in house.host.heard.values())
    print(f"kills: {kills}; sources: {len(fetched)}, lost or wrong: {len(wrong)}, partial files left: {len(leftovers)}")
    print(f"events: {len(told)}, lost: {len(lost)}, heard more than once (same id): {again}")
    print(f"recovery: median {statistics.median(recoveries):.2f} s, maximum {max(recoveries):.2f} s")


def cancel_downloads(house: House, cancels: int) -> None:
    seconds = []
    for _ in range(cancels):
        house.host.left_at.clear()
        job_id = house.accept("/endless")
        wait_for(lambda: house.host.under_way)
        canceled_at = time.monotonic()
        house.registry.cancel(job_id)
        wait_for(lambda: house.host.left_at)
        seconds.append(house.host.left_at[0] - canceled_at)
        wait_for(lambda: not house.host.under_way)
    print(
        f"cancels: {cancels}; until the download ends: median {statistics.median(seconds):.2f} s, "
        f"maximum {max(seconds):.2f} s"
    )


def download(house: House, courier: "subprocess.Popen[bytes]", mebibytes: int) -> None:
    house.host.large_bytes = mebibytes * MEBIBYTE
    before = peak_mebibytes(courier.pid)
    began = time.monotonic()
    job_id = house.accept("/large")
    wait_for(lambda: is_fetched(house, job_id))
    seconds = time.monotonic() - began
    source = house.storage.folder(job_id).source
    began = time.monotonic()
    copy = house.storage.root / "copy"
    shutil.copyfile(source, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    copied_seconds = time.monotonic() - began
    print(
        f"download: {mebibytes} MiB at {mebibytes / seconds:.0f} MiB/s (a plain copy with fsync: "
        f"{mebibytes / copied_seconds:.0f} MiB/s); peak memory of the courier {before} -> "
        f"{peak_mebibytes(courier.pid)} MiB"
    )


def deliver(house: House, webhooks: int) -> None:
    house.host.heard.clear()
    for _ in range(webhooks):
        house.registry.cancel(house.accept())
    began = time.monotonic()
    wait_for(lambda: len(house.host.heard) >= webhooks)
    print(f"webhooks: {webhooks}, at {webhooks / (time.monotonic() - began):.0f} per second to one user")


def remaining(house: House) -> int:
    return sum(house.errands.count(kind) for kind in ErrandKind)


def is_fetched(house: House, job_id: str) -> bool:
    job = house.registry.get(job_id)
    return job is not None and not job.awaits_source


def is_whole(house: House, job_id: str) -> bool:
    job = house.storage.read_record(job_id)
    source = house.storage.folder(job_id).source
    content = source.read_bytes() if source.exists() else b""
    expected = hashlib.sha256(SMALL_FILE).hexdigest()
    return (
        content == SMALL_FILE and job is not None and job.source_sha256 == expected and job.status is JobStatus.QUEUED
    )


def peak_mebibytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


@contextmanager
def other_host() -> Iterator[OtherHost]:
    host = OtherHost()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.last_request_at = time.monotonic()
            host.under_way += 1
            try:
                with suppress(ConnectionError):
                    {"/small": self.send_small, "/endless": self.send_endless, "/large": self.send_large}[self.path]()
            finally:
                host.left_at.append(time.monotonic())
                host.under_way -= 1

        def do_POST(self) -> None:
            host.last_request_at = time.monotonic()
            self.rfile.read(int(self.headers["Content-Length"]))
            host.heard[self.headers["webhook-id"]] += 1
            self.send_response(204)
            self.end_headers()

        def send_head(self, size_bytes: int) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size_bytes))
            self.end_headers()

        def send_small(self) -> None:
            self.send_head(len(SMALL_FILE))
            self.wfile.write(SMALL_FILE[:1000])
            time.sleep(0.1)
            self.wfile.write(SMALL_FILE[1000:])

        def send_endless(self) -> None:
            self.send_head(10**9)
            for _ in range(10**6):
                self.wfile.write(b"a" * 1000)
                time.sleep(0.005)

        def send_large(self) -> None:
            self.send_head(host.large_bytes)
            piece = os.urandom(MEBIBYTE)
            for _ in range(host.large_bytes // MEBIBYTE):
                self.wfile.write(piece)

        def log_message(self, *arguments: object) -> None:
            """Not into the figures."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A killed courier hangs up without a word."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
