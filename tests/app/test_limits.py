"""Limits of a key and of all together: who has reached one is told which, and others go on."""

import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from threading import Semaphore
from urllib.parse import urlsplit

import httpx2
import pytest
from redis import Redis

from app.limits import one_at_a_time, renewed_lock
from tests.app.conftest import RunningGateway, StartGateway, wait_until

KEY, OTHER_KEY = "first-key", "second-key"


def submit(gateway: RunningGateway, key: str = KEY, content: bytes = b"abc", **headers: str) -> httpx2.Response:
    files = {"file": ("clip.mp4", content)}
    return gateway.http.post("/v1/jobs", files=files, headers={"X-API-Key": key} | headers)


def upload(gateway: RunningGateway, key: str = KEY, content: bytes = b"abc", name: str = "clip") -> httpx2.Response:
    return gateway.http.put(f"/v1/uploads/{name}", content=content, headers={"X-API-Key": key})


def assert_refused(answer: httpx2.Response, code: str, limit: int) -> None:
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["limit"]) == (429, code, limit)
    assert int(answer.headers["Retry-After"]) > 0


@contextmanager
def uploads_under_way(gateway: RunningGateway, number: int, key: str = KEY) -> Iterator[list[socket.socket]]:
    """Clients that have sent the head and a byte of two."""
    address = urlsplit(gateway.url)
    head = f"PUT /v1/uploads/%d HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nContent-Length: 2\r\n\r\na"
    before = len(gateway.files())
    with ExitStack() as stack:
        clients = []
        for index in range(number):
            client = stack.enter_context(socket.create_connection((str(address.hostname), address.port or 0), 20))
            client.sendall((head % index).encode())
            clients.append(client)
        wait_until(lambda: len(gateway.files()) == before + number)
        yield clients


def test_a_key_may_have_so_many_jobs_under_way(start_gateway: StartGateway) -> None:
    # Given a key with as many jobs as it may have, one of them running
    gateway = start_gateway(api_keys=f"{KEY},{OTHER_KEY}", max_active_jobs_per_key=2)
    jobs = [submit(gateway, **{"Idempotency-Key": str(index)}).json() for index in range(2)]

    # When it asks for one more, repeats an earlier request, another key comes, and one of its jobs ends
    refused = submit(gateway)
    repeated = submit(gateway, **{"Idempotency-Key": "0"})
    other = submit(gateway, OTHER_KEY)
    gateway.registry.cancel(jobs[0]["id"])
    later = submit(gateway)

    # Then
    assert_refused(refused, "too_many_jobs_of_key", 2)
    assert (repeated.status_code, repeated.json()["id"]) == (202, jobs[0]["id"])
    assert (other.status_code, later.status_code) == (202, 202)
    assert len(gateway.storage.job_ids()) == 4
    assert list(gateway.storage.uploads.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "code"), [("max_active_jobs_per_key", "too_many_jobs_of_key"), ("max_queued_jobs", "too_many_jobs")]
)
def test_trying_a_job_again_passes_no_limit(start_gateway: StartGateway, setting: str, code: str) -> None:
    # Given a canceled job, and as many others as there may be
    gateway = start_gateway(api_keys=KEY, **{setting: 1})
    canceled = submit(gateway).json()
    gateway.registry.cancel(canceled["id"])
    other = submit(gateway).json()

    # When it is tried again, and the other is, which waits already
    again, waiting = (
        gateway.http.post(f"/v1/jobs/{one['id']}/retry", headers={"X-API-Key": KEY}) for one in (canceled, other)
    )

    # Then it stays as it is until there is room
    assert_refused(again, code, 1)
    assert (waiting.status_code, waiting.json()["status"]) == (200, "queued")
    gateway.registry.cancel(other["id"])
    later = gateway.http.post(f"/v1/jobs/{canceled['id']}/retry", headers={"X-API-Key": KEY})
    assert (later.status_code, later.json()["status"]) == (200, "queued")


def test_many_requests_at_once_do_not_pass_a_limit_together(start_gateway: StartGateway) -> None:
    # Given uploads of one key that are all there
    gateway = start_gateway(api_keys=KEY, max_active_jobs_per_key=3)
    for index in range(12):
        upload(gateway, name=str(index))

    # When all become jobs at the same moment
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(
                lambda index: (
                    gateway.http.post(
                        "/v1/jobs", json={"upload_id": str(index)}, headers={"X-API-Key": KEY}
                    ).status_code
                ),
                range(12),
            )
        )

    # Then three did, and the uploads of the others are as they were
    assert sorted(answers) == [202] * 3 + [429] * 9
    assert len(gateway.storage.job_ids()) == 3
    assert len(list(gateway.storage.jobs.iterdir())) == 3
    assert len(list(gateway.storage.uploads.iterdir())) == 9


def test_a_key_may_send_so_many_uploads_at_a_time(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(api_keys=f"{KEY},{OTHER_KEY}", max_uploads_per_key=2)

    # When one more comes, of both kinds, and one of another key
    with uploads_under_way(gateway, 2) as clients:
        refused = [upload(gateway, name="more"), submit(gateway)]
        other = upload(gateway, OTHER_KEY)
        # and one of them ends
        clients[0].sendall(b"b")
        assert clients[0].recv(100).startswith(b"HTTP/1.1 201")
        wait_until(lambda: upload(gateway, name="later").status_code == 201)

    # Then
    for answer in refused:
        assert_refused(answer, "too_many_uploads_of_key", 2)
    assert other.status_code == 201


def test_clients_that_leave_give_their_places_back(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(api_keys=KEY, max_uploads_per_key=2)
    metrics = partial(gateway.http.get, "/metrics", headers={"X-API-Key": KEY})

    # When clients come and go without finishing
    for _ in range(3):
        with uploads_under_way(gateway, 2):
            pass
        # The place comes back after the file is gone.
        wait_until(lambda: "vsr_uploads 0.0" in metrics().text)
        assert gateway.files() == []

    # Then
    wait_until(lambda: upload(gateway).status_code == 201)


def test_the_gateway_receives_so_many_uploads_at_a_time(start_gateway: StartGateway) -> None:
    # Given no keys: then only this limit is there
    gateway = start_gateway(max_uploads=2)

    # When
    with uploads_under_way(gateway, 2):
        refused = gateway.http.put("/v1/uploads/clip", content=b"abc")
        looked = gateway.http.get("/v1/jobs")

    # Then
    assert_refused(refused, "too_many_uploads", 2)
    assert looked.status_code == 200
    metrics = gateway.http.get("/metrics").text
    assert 'vsr_jobs_rejected_total{reason="too_many_uploads"} 1.0' in metrics


def test_a_key_may_keep_so_many_bytes_of_sources_and_uploads(start_gateway: StartGateway) -> None:
    # Given a key with a job and an upload
    gateway = start_gateway(api_keys=f"{KEY},{OTHER_KEY}", max_source_bytes_per_key=3000)
    job = submit(gateway, content=b"x" * 1000).json()
    upload(gateway, content=b"x" * 1000)

    # When more comes than fits, of both kinds; the upload becomes a job; another key comes
    refused = [upload(gateway, content=b"x" * 1001, name="more"), submit(gateway, content=b"x" * 1001)]
    fits = gateway.http.post("/v1/jobs", json={"upload_id": "clip"}, headers={"X-API-Key": KEY})
    other = submit(gateway, OTHER_KEY, b"x" * 2000)

    # Then
    for answer in refused:
        assert_refused(answer, "storage_of_key_full", 3000)
    assert (fits.status_code, other.status_code) == (202, 202)

    # And a job whose source has expired, or that is deleted, makes room; also when Redis has been emptied
    gateway.registry.change(job["id"], lambda one: one.model_copy(update={"media_removed_at": datetime.now(UTC)}))
    gateway.redis.flushall()
    for job_id in gateway.storage.job_ids():
        gateway.registry.change(job_id, lambda current: current)
    assert gateway.registry.source_bytes(_owner_of(gateway, job["id"])) == 1000
    gateway.http.delete(f"/v1/jobs/{fits.json()['id']}", headers={"X-API-Key": KEY})
    assert submit(gateway, content=b"x" * 1900).status_code == 202


def test_a_body_of_unknown_length_does_not_pass_the_limit_of_bytes(start_gateway: StartGateway) -> None:
    # Given a chunked form, which announces no length
    gateway = start_gateway(api_keys=KEY, max_source_bytes_per_key=1000)

    def form() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield b"x" * 1001
        yield b"\r\n--xyz--\r\n"

    # When
    headers = {"X-API-Key": KEY, "Content-Type": "multipart/form-data; boundary=xyz"}
    answer = gateway.http.post("/v1/jobs", content=form(), headers=headers)

    # Then
    assert_refused(answer, "storage_of_key_full", 1000)
    assert gateway.files() == []
    assert list(gateway.storage.jobs.iterdir()) == []


def test_a_raw_body_of_unknown_length_does_not_pass_the_limit_of_bytes(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY, max_source_bytes_per_key=1000)
    answer = gateway.http.put("/v1/uploads/a", content=iter([b"x" * 1001]), headers={"X-API-Key": KEY})
    assert_refused(answer, "storage_of_key_full", 1000)
    assert gateway.files() == []


def begin(gateway: RunningGateway, length_bytes: int) -> httpx2.Response:
    headers = {"X-API-Key": KEY, "Tus-Resumable": "1.0.0", "Upload-Length": str(length_bytes)}
    return gateway.http.post("/v1/uploads", headers=headers)


def test_what_begun_uploads_announced_counts_before_it_comes(start_gateway: StartGateway) -> None:
    # Given a key that has begun a resumable upload, and sent a little of it
    gateway = start_gateway(api_keys=KEY, max_source_bytes_per_key=1000)
    path = f"/v1/{begin(gateway, 900).headers['Location']}"
    headers = {"X-API-Key": KEY, "Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}

    def send(offset: int, content: bytes) -> int:
        return gateway.http.patch(path, headers=headers | {"Upload-Offset": str(offset)}, content=content).status_code

    assert send(0, b"x" * 10) == 204

    # When it asks for more than is left beside all of it
    refused = [begin(gateway, 101), upload(gateway, content=b"x" * 101), submit(gateway, content=b"x" * 101)]

    # Then
    for answer in refused:
        assert_refused(answer, "storage_of_key_full", 1000)
    # And the rest comes in, is a job, and counts once
    assert send(10, b"x" * 890) == 204
    job = gateway.http.post("/v1/jobs", json={"upload_id": path.rpartition("/")[2]}, headers={"X-API-Key": KEY})
    assert (job.status_code, begin(gateway, 101).status_code, begin(gateway, 100).status_code) == (202, 429, 201)


def test_uploads_begun_at_the_same_moment_do_not_pass_the_limit_of_bytes_together(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY, max_source_bytes_per_key=1000)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: begin(gateway, 300).status_code, range(12)))
    assert sorted(answers) == [201] * 3 + [429] * 9


def test_a_key_may_have_so_many_uploads_begun(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=KEY, max_begun_uploads_per_key=2)
    places = [begin(gateway, 10).headers["Location"] for _ in range(2)]
    assert_refused(begin(gateway, 10), "too_many_uploads_of_key", 2)
    gateway.http.delete(f"/v1/{places[0]}", headers={"X-API-Key": KEY, "Tus-Resumable": "1.0.0"})
    assert begin(gateway, 10).status_code == 201


@pytest.mark.parametrize(
    "setting",
    [
        "max_active_jobs_per_key",
        "max_uploads",
        "max_uploads_per_key",
        "max_source_bytes_per_key",
        "max_begun_uploads_per_key",
    ],
)
def test_zero_is_no_limit(start_gateway: StartGateway, setting: str) -> None:
    gateway = start_gateway(api_keys=KEY, **{setting: 0})

    assert [submit(gateway).status_code for _ in range(3)] == [202] * 3
    assert upload(gateway).status_code == 201


def test_without_keys_the_limits_of_a_key_are_nobodys(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_active_jobs_per_key=1, max_source_bytes_per_key=1)

    assert [gateway.http.post("/v1/jobs", files={"file": ("a", b"abc")}).status_code for _ in range(2)] == [202] * 2


def test_a_gateway_that_died_while_it_accepted_keeps_its_key_waiting_for_a_moment_only(
    start_gateway: StartGateway,
) -> None:
    # Given the lock of a gateway that died, near its end
    gateway = start_gateway(api_keys=KEY)
    job = submit(gateway).json()
    gateway.redis.lock(f"vsr:lock:owner:{_owner_of(gateway, job['id'])}", timeout=0.3).acquire()

    # Then
    assert submit(gateway).status_code == 202


def test_who_waits_for_a_lock_keeps_no_other_request_waiting(start_gateway: StartGateway) -> None:
    # Given more submissions than there are threads, all waiting for a gateway that died
    gateway = start_gateway()
    job = gateway.http.post("/v1/jobs", files={"file": ("a", b"abc")}).json()
    lock = gateway.redis.lock(f"vsr:idempotency:{hashlib.sha256(b'once').hexdigest()}:lock", timeout=60)
    lock.acquire()
    with ThreadPoolExecutor(60) as pool:

        def submit_once(_: int) -> int:
            headers, files = {"Idempotency-Key": "once"}, {"file": ("a", b"abc")}
            return httpx2.post(f"{gateway.url}/v1/jobs", files=files, headers=headers, timeout=60).status_code

        waiting = [pool.submit(submit_once, number) for number in range(60)]
        wait_until(lambda: len(gateway.files()) >= 60)  # all have sent their files

        # When somebody looks at a job, then he is answered before they are
        assert gateway.http.get(f"/v1/jobs/{job['id']}").status_code == 200
        assert not any(one.done() for one in waiting)
        lock.release()
        assert {one.result() for one in waiting} == {202}
    assert len(gateway.storage.job_ids()) == 2


def test_a_lock_outlasts_what_takes_longer_and_ends_with_who_holds_it(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.limits._LOCK_SECONDS", 0.3)
    with renewed_lock(redis, "lock"):
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert redis.exists("lock")
    assert not redis.exists("lock")


def _owner_of(gateway: RunningGateway, job_id: str) -> str:
    record = gateway.storage.read_record(job_id)
    assert record is not None
    assert record.owner is not None
    return record.owner


@pytest.mark.parametrize("wish", ["preview", "retry"])
def test_who_waits_for_others_of_his_key_keeps_no_other_request_waiting(
    wish: str, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more wishes than there are threads, all waiting for a gateway of the same key that died
    gateway = start_gateway(api_keys=KEY)
    headers = {"X-API-Key": KEY}
    owner = hashlib.sha256(KEY.encode()).hexdigest()[:12]
    job = gateway.add_job(owner=owner)
    if wish == "retry":
        gateway.registry.cancel(job.id)
    have_come = Semaphore(0)

    @contextmanager
    def counted(redis: Redis, of_whom: str | None) -> Iterator[None]:
        have_come.release()
        with one_at_a_time(redis, of_whom):
            yield

    monkeypatch.setattr(f"app.{'live' if wish == 'preview' else 'jobs'}.one_at_a_time", counted)
    lock = gateway.redis.lock(f"vsr:lock:owner:{owner}", timeout=60)
    lock.acquire()
    with ThreadPoolExecutor(60) as pool:

        def ask(_: int) -> int:
            address = f"{gateway.url}/v1/jobs/{job.id}/{wish}"
            return httpx2.post(address, headers=headers, timeout=60).status_code

        waiting = [pool.submit(ask, number) for number in range(60)]
        assert all(have_come.acquire(timeout=20) for _ in range(16))

        # When somebody looks at the job, then he is answered before they are
        for _ in range(20):
            assert gateway.http.get(f"/v1/jobs/{job.id}", headers=headers).status_code == 200
        assert not any(one.done() for one in waiting)
        lock.release()
        assert {one.result() for one in waiting} == ({202, 409} if wish == "preview" else {200})
