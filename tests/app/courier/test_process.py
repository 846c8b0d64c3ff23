"""A real courier process, killed, stopped, deprived of Redis's memory: nothing is lost, and no secret is in its log."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.client import verify_webhook
from tests.app.conftest import wait_until
from tests.app.courier.conftest import Desk, OtherHost, Request, StartHost, answer
from worker.contract.errands import ErrandKind
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobStatus
from worker.contract.queue import TaskKind, task_id

REPOSITORY = Path(__file__).parents[3]
SECRET = "a secret that no log may ever hold"
CLAIM_SECONDS = 1.5
CONTENT = bytes(range(256)) * 4000


class RunningCourier:
    def __init__(self, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
        self.process = process
        self.log_path = log_path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


StartCourier = Callable[..., RunningCourier]


@pytest.fixture
def start_courier(desk: Desk, redis_url: str, tmp_path: Path) -> Iterator[StartCourier]:
    """`vsr courier` on the desk's storage and Redis; keyword arguments are further settings."""
    started: list[RunningCourier] = []

    def start(**settings: str) -> RunningCourier:
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "VSR_REDIS_URL": redis_url,
            "VSR_STORAGE_DIR": str(desk.storage.root),
            "VSR_MIN_FREE_BYTES": "0",
            "VSR_COURIER_METRICS_PORT": "0",
            "VSR_COURIER_CLAIM_SECONDS": str(CLAIM_SECONDS),
            "VSR_COURIER_RECONCILE_SECONDS": "1",
            "VSR_ALLOW_SOURCE_URL": "true",
            "VSR_ALLOW_LOOPBACK_TARGETS": "true",
            "VSR_WEBHOOK_SECRET": SECRET,
            **{f"VSR_{name.upper()}": value for name, value in settings.items()},
        }
        log_path = tmp_path / f"courier-{len(started)}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "app.cli", "courier"], env=environment, stderr=log)
        courier = RunningCourier(process, log_path)
        started.append(courier)
        wait_until(lambda: "courier_started" in courier.log or process.poll() is not None)
        return courier

    yield start
    for courier in started:
        if courier.process.poll() is None:
            courier.kill()


class SlowFile:
    """Sends the first half of a file at once, and the rest when it is told to; notes when the other side leaves."""

    def __init__(self) -> None:
        self.half_sent = threading.Event()
        self.may_go_on = threading.Event()
        self.left_at: list[float] = []

    def __call__(self, connection: socket.socket, request: Request) -> None:
        half = len(CONTENT) // 2
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:half])
        self.half_sent.set()
        connection.settimeout(0.05)
        while not self.may_go_on.is_set():
            try:
                if not connection.recv(1):
                    self.left_at.append(time.monotonic())
                    return
            except TimeoutError:
                continue
        connection.settimeout(10)
        connection.sendall(CONTENT[half:])


@contextmanager
def downloading(desk: Desk, start_host: StartHost) -> Iterator[tuple[SlowFile, OtherHost, str]]:
    slow = SlowFile()
    host = start_host(slow)
    yield slow, host, desk.accept(f"{host.url}/clip.mp4?token=hidden")
    slow.may_go_on.set()


def is_fetched(desk: Desk, job_id: str) -> bool:
    return task_id(TaskKind.PLAN, job_id) in desk.queue.rq.job_ids


def test_it_loads_neither_torch_nor_av() -> None:
    code = "import sys, app.courier.process; sys.exit(bool({'torch', 'av', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_a_courier_fetches_delivers_counts_and_tells_no_secret(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    # Given a source to be fetched, and an end to be told
    file, hook = start_host(answer(body=CONTENT)), start_host(answer())
    job_id = desk.accept(f"{file.url}/clip.mp4?token=hidden", webhook_url=f"{hook.url}/hook?key=hidden")
    ended = desk.accept(webhook_url=f"{hook.url}/hook?key=hidden")
    desk.registry.cancel(ended)

    # When
    courier = start_courier()
    wait_until(lambda: is_fetched(desk, job_id) and hook.requests)
    wait_until(lambda: desk.errands.count(ErrandKind.WEBHOOK) == 0)

    # Then
    assert desk.job(job_id).source_sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert verify_webhook(hook.requests[0].headers, hook.requests[0].body, SECRET)["data"]["id"] == ended
    port = int(courier.log.partition('"metrics_port": ')[2].split(",")[0].split("}")[0])

    def metrics() -> str:
        return httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text

    # (its first look at the index may put up again what was delivered meanwhile, which is then found to be done)
    wait_until(lambda: "vsr_webhook_pending 0.0" in metrics())
    counted = metrics()
    assert 'vsr_webhook_deliveries_total{outcome="delivered"} 1.0' in counted
    assert 'vsr_source_fetches_total{outcome="fetched"} 1.0' in counted
    # And it ends when it is told to
    courier.process.terminate()
    assert courier.process.wait(20) == 0
    for secret in (SECRET, "hidden"):
        assert secret not in courier.log
    assert job_id in courier.log


def test_a_killed_couriers_download_is_begun_again_by_the_next(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    # Given a courier that is killed in the middle of a download
    with downloading(desk, start_host) as (slow, host, job_id):
        courier = start_courier()
        wait_until(lambda: any(name.startswith("source.") for name in desk.files(job_id)))
        courier.kill()

        # When another is started
        slow.may_go_on.set()
        start_courier()
        wait_until(lambda: is_fetched(desk, job_id))

    # Then
    assert desk.storage.folder(job_id).source.read_bytes() == CONTENT
    assert desk.files(job_id) == ["job.json", "source"]
    assert len(host.requests) == 2


def test_a_courier_that_is_asked_to_stop_gives_its_download_back_at_once(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    with downloading(desk, start_host) as (slow, _, job_id):
        courier = start_courier(courier_claim_seconds="600")
        assert slow.half_sent.wait(20)
        courier.process.terminate()
        assert courier.process.wait(20) == 0

        # Then another need not wait for the end of a claim, and no attempt is lost
        assert desk.files(job_id) == ["job.json"]
        errand = desk.claim(ErrandKind.FETCH)
        assert (errand.job_id, errand.losses, errand.failures) == (job_id, 0, 0)


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_the_download_of_a_job_that_is_ended_stops(
    desk: Desk, start_host: StartHost, start_courier: StartCourier, end: str
) -> None:
    with downloading(desk, start_host) as (slow, _, job_id):
        start_courier()
        assert slow.half_sent.wait(20)
        desk.registry.cancel(job_id)
        if end == "delete":
            desk.registry.remove(job_id)
        wait_until(lambda: slow.left_at)

    # Then nothing of it is left
    wait_until(lambda: desk.errands.count(ErrandKind.FETCH) == 0)
    wait_until(lambda: end == "delete" or desk.files(job_id) == ["job.json"])
    assert desk.storage.folder(job_id).path.exists() == (end == "cancel")


def test_an_emptied_redis_costs_neither_a_source_nor_an_event(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    # Given a courier at work, and a Redis that forgets everything before the courier has seen what came last
    start_courier()
    file, hook = start_host(answer(body=CONTENT)), start_host(answer())
    job_id, ended = desk.accept(file.url), desk.accept(webhook_url=hook.url)
    desk.registry.fail(ended, JobError(code=FailureCode.INTERNAL, message="x"))
    desk.redis.flushall()

    # Then storage brings both back
    wait_until(lambda: is_fetched(desk, job_id) and hook.requests)
    assert desk.storage.folder(job_id).source.read_bytes() == CONTENT


def test_every_event_arrives_however_often_the_courier_is_killed(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    # Given twenty ends, and a receiver that takes a moment for each
    def slowly(connection: socket.socket, request: Request) -> None:
        time.sleep(0.05)
        answer()(connection, request)

    host = start_host(slowly)
    jobs = [desk.accept(webhook_url=host.url) for _ in range(20)]
    for job_id in jobs:
        desk.registry.fail(job_id, JobError(code=FailureCode.NOT_A_VIDEO, message="x"))

    # When couriers are killed among them
    for killed_after in (5, 12):
        courier = start_courier(courier_deliveries="1")
        wait_until(lambda after=killed_after: len(host.requests) >= after)
        courier.kill()
    start_courier()
    wait_until(lambda: desk.errands.count(ErrandKind.WEBHOOK) == 0)

    # Then each has arrived, and what came twice can be told by its id
    ids = [request.headers["webhook-id"] for request in host.requests]
    assert len(set(ids)) == len(jobs)
    assert len(ids) <= len(jobs) + 2
    assert all(desk.job(job_id).status is JobStatus.FAILED for job_id in jobs)


def test_without_a_secret_events_wait_for_one(desk: Desk, start_host: StartHost, start_courier: StartCourier) -> None:
    host = start_host(answer())
    job_id = desk.accept(webhook_url=host.url)
    desk.registry.cancel(job_id)
    courier = start_courier(webhook_secret="")
    file = start_host(answer(body=CONTENT))
    fetched = desk.accept(file.url)
    wait_until(lambda: is_fetched(desk, fetched))
    courier.kill()
    assert host.requests == []
    assert desk.errands.count(ErrandKind.WEBHOOK) == 1

    start_courier()
    wait_until(lambda: host.requests)


def test_a_courier_that_cannot_start_says_why_in_one_line(start_courier: StartCourier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        courier = start_courier(courier_metrics_port=str(taken.getsockname()[1]))
    assert courier.process.wait(20) == 5
    assert courier.log.count("\n") == 1
    assert "VSR_COURIER_METRICS_PORT" in courier.log


def test_a_receiver_that_hangs_keeps_no_other_waiting(
    desk: Desk, start_host: StartHost, start_courier: StartCourier
) -> None:
    # Given more events for a receiver that never answers than can be delivered at a time
    never = threading.Event()
    hanging = start_host(lambda connection, request: never.wait(30) and None)
    for _ in range(6):
        desk.registry.cancel(desk.accept(webhook_url=hanging.url.replace("127.0.0.1", "localhost")))
    start_courier(courier_deliveries="4")
    wait_until(lambda: len(hanging.requests) == 2)

    # When an event for another comes
    host = start_host(answer())
    desk.registry.cancel(desk.accept(webhook_url=host.url))

    # Then it is delivered at once, and no more than half of the places are with the first
    wait_until(lambda: host.requests)
    assert len(hanging.requests) == 2
    never.set()
