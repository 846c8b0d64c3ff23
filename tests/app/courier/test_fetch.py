"""A source is fetched whole or not at all; what passes is tried again, what does not fails the job with its reason."""

import hashlib
import itertools
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.courier.fetch import FetchLimits, JobEndedError, SourceFetcher
from app.guarded_http import GuardedHttp, TargetPolicy
from tests.app.courier.conftest import Desk, Request, Respond, StartHost, answer, answers
from worker.contract.errands import ErrandKind
from worker.contract.failure import FailureCode
from worker.contract.job import JobStatus
from worker.contract.queue import TaskKind, task_id
from worker.contract.storage import JobStorage

CONTENT = bytes(range(256)) * 4000
LIMITS = FetchLimits(max_bytes=2_000_000, min_free_bytes=0, idle_seconds=5, total_seconds=20)
LOOPBACK_TOO = TargetPolicy(allow_loopback=True)
FETCH = ErrandKind.FETCH


def fetcher(
    desk: Desk,
    limits: FetchLimits = LIMITS,
    *,
    policy: TargetPolicy = LOOPBACK_TOO,
    is_allowed: bool = True,
    retry_delays_seconds: tuple[float, ...] = (60.0, 60.0),
) -> SourceFetcher:
    return SourceFetcher(
        GuardedHttp(policy),
        desk.registry,
        desk.storage,
        desk.queue,
        desk.errands,
        desk.metrics,
        limits,
        is_allowed=is_allowed,
        retry_delays_seconds=retry_delays_seconds,
    )


def never() -> None:
    """No reason to stop."""


def attempt(desk: Desk, fetch: SourceFetcher, job_id: str, check: Callable[[], None] = never) -> None:
    desk.make_due(FETCH, job_id)
    fetch.do(desk.claim(FETCH), check)


def failure_of(desk: Desk, job_id: str) -> tuple[FailureCode, str]:
    job = desk.job(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert desk.errands.count(FETCH) == 0
    assert desk.files(job_id) == ["job.json"]
    assert desk.queue.waiting() == 0
    assert desk.count("vsr_jobs_finished_total", status="failed", reason=job.error.code) == 1
    return job.error.code, job.error.message


def test_a_source_is_fetched_and_planned(desk: Desk, start_host: StartHost) -> None:
    # Given
    host = start_host(answer(body=CONTENT))
    job_id = desk.accept(f"{host.url}/clip.mp4?X-Signature=secret")

    # When
    attempt(desk, fetcher(desk), job_id)

    # Then the source is there, as a file that was uploaded would be
    job = desk.job(job_id)
    assert desk.storage.folder(job_id).source.read_bytes() == CONTENT
    assert desk.storage.folder(job_id).source.stat().st_mode & 0o777 == 0o600
    assert (job.status, job.source_size_bytes) == (JobStatus.QUEUED, len(CONTENT))
    assert job.source_sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert desk.files(job_id) == ["job.json", "source"]
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert desk.errands.count(FETCH) == 0
    # And what may have been a key is kept nowhere
    assert job.source_url == f"{host.url}/clip.mp4"
    assert desk.count("vsr_source_fetches_total", outcome="fetched") == 1
    assert desk.count("vsr_source_fetched_bytes_total") == len(CONTENT)


@pytest.mark.parametrize("failing", ["503 Service Unavailable", "429 Too Many Requests", "500 Oops"])
def test_what_passes_is_tried_again_later(desk: Desk, start_host: StartHost, failing: str) -> None:
    # Given a host that is not well at first
    host = start_host(answers(answer(failing), answer(body=CONTENT)))
    job_id = desk.accept(host.url)
    fetch = fetcher(desk)

    # When
    attempt(desk, fetch, job_id)

    # Then the job waits for another attempt, which is not due at once
    assert desk.job(job_id).status is JobStatus.QUEUED
    assert desk.errands.claim(FETCH, 60) is None
    assert desk.files(job_id) == ["job.json"]

    # And gets it
    attempt(desk, fetch, job_id)
    assert desk.job(job_id).source_size_bytes == len(CONTENT)
    assert desk.count("vsr_source_fetches_total", outcome="postponed") == 1


def test_a_transfer_that_breaks_off_leaves_nothing_and_begins_again(desk: Desk, start_host: StartHost) -> None:
    def break_off(connection: socket.socket, request: Request) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:500_000])

    host = start_host(answers(break_off, answer(body=CONTENT)))
    job_id = desk.accept(host.url)
    fetch = fetcher(desk)
    attempt(desk, fetch, job_id)
    assert desk.files(job_id) == ["job.json"]
    attempt(desk, fetch, job_id)
    assert desk.storage.folder(job_id).source.read_bytes() == CONTENT


def test_a_host_that_never_gets_well_fails_the_job_with_what_it_said(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer("503 Service Unavailable", body=b"inside information"))
    job_id = desk.accept(host.url)
    for _ in range(3):
        attempt(desk, fetcher(desk), job_id)
    assert failure_of(desk, job_id) == (
        FailureCode.SOURCE_UNREACHABLE,
        "the source's host answered 503 (3 attempts)",
    )


@pytest.mark.parametrize(
    ("respond", "code", "words"),
    [
        (answer("404 Not Found"), FailureCode.SOURCE_UNREACHABLE, "answered 404"),
        (answer("403 Forbidden", body=b"<Error>"), FailureCode.SOURCE_UNREACHABLE, "answered 403"),
        (answer("204 No Content"), FailureCode.SOURCE_UNREACHABLE, "answered 204"),
        (answer("302 Found"), FailureCode.SOURCE_UNREACHABLE, "answered 302"),
        (answer("302 Found", Location="https://10.0.0.1/"), FailureCode.SOURCE_REFUSED, "public address"),
        (answer("302 Found", Location="/again"), FailureCode.SOURCE_REFUSED, "more than 3 times"),
        (answer(body=b"", Content_Type="video/mp4"), FailureCode.EMPTY_FILE, "empty"),
        (answer(body=b"a", Content_Encoding="gzip"), FailureCode.SOURCE_UNREACHABLE, "compressed"),
        (answer(body=b"a" * 2_000_001), FailureCode.LIMIT_EXCEEDED, "2000000 bytes"),
    ],
)
def test_what_does_not_pass_fails_the_job_at_once(
    desk: Desk, start_host: StartHost, respond: Respond, code: FailureCode, words: str
) -> None:
    job_id = desk.accept(start_host(respond).url)
    attempt(desk, fetcher(desk), job_id)
    failed_with, message = failure_of(desk, job_id)
    assert failed_with is code
    assert words in message


def endless(connection: socket.socket, request: Request) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in itertools.repeat(None):
        connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")


def test_an_endless_body_ends_at_the_limit(desk: Desk, start_host: StartHost) -> None:
    job_id = desk.accept(start_host(endless).url)
    attempt(desk, fetcher(desk), job_id)
    assert failure_of(desk, job_id)[0] is FailureCode.LIMIT_EXCEEDED
    assert desk.count("vsr_source_fetched_bytes_total") <= LIMITS.max_bytes


def test_an_address_inside_is_never_called(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer(body=CONTENT))
    job_id = desk.accept(f"https://127.0.0.1:{host.port}/")
    attempt(desk, fetcher(desk, policy=TargetPolicy(ports=frozenset({host.port}))), job_id)
    assert failure_of(desk, job_id) == (
        FailureCode.SOURCE_REFUSED,
        "the source URL is refused: it does not lead to a public address",
    )
    assert host.requests == []


def test_a_disk_that_is_nearly_full_is_waited_for_and_then_told(desk: Desk, start_host: StartHost) -> None:
    job_id = desk.accept(start_host(answer(body=CONTENT)).url)
    full = FetchLimits(max_bytes=2_000_000, min_free_bytes=2**62, idle_seconds=5, total_seconds=20)
    for _ in range(2):
        attempt(desk, fetcher(desk, full), job_id)
        assert desk.job(job_id).status is JobStatus.QUEUED
    attempt(desk, fetcher(desk, full), job_id)
    assert failure_of(desk, job_id)[0] is FailureCode.OUT_OF_DISK


def test_a_host_that_asks_for_patience_gets_it(desk: Desk, start_host: StartHost) -> None:
    job_id = desk.accept(start_host(answer("429 Too Many Requests", Retry_After="1800")).url)
    attempt(desk, fetcher(desk, retry_delays_seconds=(1.0,)), job_id)
    due_us = desk.redis.zscore("vsr:errands:fetch", job_id)
    assert due_us is not None
    seconds, _ = desk.redis.time()
    assert 1700 < due_us / 1_000_000 - seconds <= 1801


def test_what_was_accepted_before_the_operator_changed_his_mind_is_refused(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer(body=CONTENT))
    job_id = desk.accept(host.url)
    attempt(desk, fetcher(desk, is_allowed=False), job_id)
    assert failure_of(desk, job_id)[0] is FailureCode.SOURCE_REFUSED
    assert host.requests == []


# --- a courier that dies ----------------------------------------------------------------------------------------------


def test_what_a_killed_courier_left_half_is_removed(desk: Desk, start_host: StartHost) -> None:
    job_id = desk.accept(start_host(answer(body=CONTENT)).url)
    folder = desk.storage.folder(job_id)
    (folder.path / "source.otherhost.1234.abcd.part").write_bytes(b"half")
    (folder.path / "job.json.otherhost.1234.abcd.part").write_bytes(b"half")
    attempt(desk, fetcher(desk), job_id)
    assert desk.files(job_id) == ["job.json", "source"]
    assert folder.source.read_bytes() == CONTENT


def test_a_source_that_is_there_is_not_fetched_again(desk: Desk, start_host: StartHost) -> None:
    # Given a courier that died right after the source was in its place
    host = start_host(answer(body=b"something else by now"))
    job_id = desk.accept(host.url)
    desk.storage.folder(job_id).source.write_bytes(CONTENT)

    attempt(desk, fetcher(desk), job_id)

    assert desk.job(job_id).source_sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert host.requests == []


def test_a_job_whose_plan_was_not_enqueued_gets_it(desk: Desk, start_host: StartHost) -> None:
    # Given a courier that died after the record said that the source is there
    host = start_host(answer(body=CONTENT))
    job_id = desk.accept(host.url)
    attempt(desk, fetcher(desk), job_id)
    desk.redis.delete(desk.queue.rq.key, f"rq:job:{task_id(TaskKind.PLAN, job_id)}")

    attempt(desk, fetcher(desk), job_id)

    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert len(host.requests) == 1


def test_what_only_redis_was_told_becomes_durable(desk: Desk, start_host: StartHost) -> None:
    # Given a courier that died between Redis and storage
    job_id = desk.accept(start_host(answer(body=CONTENT)).url)
    attempt(desk, fetcher(desk), job_id)
    fetched = desk.job(job_id)
    before = {"source_sha256": "", "source_size_bytes": 0, "revision": fetched.revision - 1}
    desk.storage.write_record(fetched.model_copy(update=before))

    attempt(desk, fetcher(desk), job_id)

    assert desk.job(job_id) == fetched


def test_a_source_that_kills_every_courier_ends_its_job(desk: Desk, start_host: StartHost) -> None:
    job_id = desk.accept(start_host(answer(body=CONTENT)).url)
    for _ in range(10):
        desk.make_due(FETCH, job_id)
        desk.claim(FETCH)
    attempt(desk, fetcher(desk), job_id)
    assert failure_of(desk, job_id)[0] is FailureCode.WORKER_LOST


# --- a job that ends meanwhile ----------------------------------------------------------------------------------------


def test_a_canceled_download_stops_and_leaves_nothing(desk: Desk, start_host: StartHost) -> None:
    # Given a download that never ends
    def trickle(connection: socket.socket, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        threading.Event().wait(10)

    job_id = desk.accept(start_host(trickle).url)

    def check() -> None:
        if list(desk.storage.folder(job_id).path.glob("*.part")):
            desk.registry.cancel(job_id)
        if desk.registry.is_final(job_id):
            raise JobEndedError

    # When it is canceled
    attempt(desk, fetcher(desk), job_id, check)

    # Then
    assert desk.files(job_id) == ["job.json"]
    assert desk.job(job_id).status is JobStatus.CANCELED
    assert desk.errands.count(FETCH) == 0
    assert desk.queue.waiting() == 0


def test_a_job_that_is_deleted_while_its_source_arrives_stays_deleted(
    desk: Desk, start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose folder goes right before the source is put in its place
    job_id = desk.accept(start_host(answer(body=CONTENT)).url)
    desk.make_due(FETCH, job_id)
    errand = desk.claim(FETCH)
    rename = Path.rename

    def deleted_first(path: Path, target: Path) -> Path:
        if target.name != "source":
            return rename(path, target)
        monkeypatch.setattr(Path, "rename", rename)
        desk.registry.cancel(job_id)
        desk.registry.remove(job_id)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", deleted_first)
    fetcher(desk).do(errand, never)

    assert desk.storage.job_ids() == []
    assert list(desk.storage.jobs.iterdir()) == []
    assert desk.redis.keys("vsr:errands*") == []


def test_an_errand_of_a_job_that_has_ended_is_put_down(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer(body=CONTENT))
    for end in (desk.registry.cancel, desk.registry.remove, JobStorage(desk.storage.root).delete_job):
        job_id = desk.accept(host.url)
        end(job_id)
        desk.make_due(FETCH, job_id)
        fetcher(desk).do(desk.claim(FETCH), never)
    assert desk.errands.count(FETCH) == 0
    assert desk.queue.waiting() == 0


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not announced"])
def test_a_key_keeps_no_more_by_having_it_fetched(desk: Desk, start_host: StartHost, announced: bool) -> None:
    # Given a key that may keep one such source, with its upload of one byte
    def send_unannounced(connection: socket.socket, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CONTENT)

    host = start_host(answer(body=CONTENT) if announced else send_unannounced)
    fetch = fetcher(desk, replace(LIMITS, max_bytes_per_key=len(CONTENT) + 1))
    owner = "a" * 12
    desk.storage.uploads.mkdir(exist_ok=True)
    (desk.storage.uploads / f"{owner}-{'b' * 64}.{'c' * 64}").write_bytes(b"x")
    first, second, others = (desk.accept(f"{host.url}/clip.mp4", owner=one) for one in (owner, owner, "d" * 12))

    # When it has two fetched, and another key one
    for job_id in (first, second, others):
        attempt(desk, fetch, job_id)

    # Then the second is refused and not kept
    assert (desk.job(first).source_size_bytes, desk.job(others).source_size_bytes) == (len(CONTENT), len(CONTENT))
    error = desk.job(second).error
    assert error is not None
    assert (error.code, desk.files(second)) == (FailureCode.LIMIT_EXCEEDED, ["job.json"])
