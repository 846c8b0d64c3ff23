"""An upload is there whole and durable, or not at all."""

import hashlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.uploads import sweep_old_uploads, upload_for_job
from tests.app.conftest import RunningGateway, StartGateway, wait_until

MEBIBYTE = 1024 * 1024


def test_a_raw_upload_answers_with_its_size_and_checksum(gateway: RunningGateway) -> None:
    # Given a file larger than the write buffer, not a multiple of it
    content = bytes(range(256)) * 10_001

    # When it is sent
    answer = gateway.http.put("/v1/uploads/my-clip", content=content)

    # Then it is kept, under a name that the client did not choose
    assert answer.status_code == 201
    assert answer.json() == {
        "id": "my-clip",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (stored,) = gateway.storage.uploads.iterdir()
    assert stored.read_bytes() == content
    assert "my-clip" not in stored.name


def test_the_same_id_again_replaces_the_upload(gateway: RunningGateway) -> None:
    # Given
    for content in (b"first", b"second", b"third"):
        gateway.http.put("/v1/uploads/clip", content=content)

    # When it becomes a job
    job = gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).json()

    # Then the job has the last one, and nothing else is left
    assert gateway.storage.folder(job["id"]).source.read_bytes() == b"third"
    assert list(gateway.storage.uploads.iterdir()) == []


@pytest.mark.parametrize("upload_id", ["a" * 65, "a.b", "%2e%2e", "a%2Fb", "ü", "a%00"])
def test_an_id_that_could_be_a_path_is_refused(gateway: RunningGateway, upload_id: str) -> None:
    answer = gateway.http.put(f"/v1/uploads/{upload_id}", content=b"abc")

    assert answer.status_code in (404, 405, 422)
    assert gateway.files() == []


def test_an_empty_upload_is_refused(gateway: RunningGateway) -> None:
    answer = gateway.http.put("/v1/uploads/clip", content=b"")

    assert (answer.status_code, answer.json()["code"]) == (422, "empty_file")
    assert gateway.files() == []


def test_an_upload_over_the_limit_is_refused_before_its_body_is_read(start_gateway: StartGateway) -> None:
    # Given a client that announces too much and sends nothing yet
    gateway = start_gateway(max_upload_bytes=1000)
    with _connection(gateway) as client:
        # When
        client.sendall(b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n")
        status, problem = _answer(client)

    # Then it is told at once
    assert (status, problem["code"]) == (413, "upload_too_large")
    assert gateway.files() == []


def test_an_upload_of_unknown_length_is_cut_at_the_limit(start_gateway: StartGateway) -> None:
    # Given a chunked body, which announces no length
    gateway = start_gateway(max_upload_bytes=3 * MEBIBYTE)

    def content() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x" * MEBIBYTE

    # When
    answer = gateway.http.put("/v1/uploads/clip", content=content())

    # Then
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert answer.json()["limit_bytes"] == 3 * MEBIBYTE
    assert gateway.files() == []


def test_an_upload_of_exactly_the_limit_is_taken(start_gateway: StartGateway) -> None:
    gateway = start_gateway(max_upload_bytes=1000)

    assert gateway.http.put("/v1/uploads/clip", content=b"x" * 1000).status_code == 201


def test_a_client_that_leaves_midway_leaves_nothing(gateway: RunningGateway) -> None:
    # Given an upload under way
    client = _connection(gateway)
    client.sendall(
        b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 3 * MEBIBYTE
    )
    wait_until(lambda: any(name.endswith(".part") for name in gateway.files()))

    # When the client is gone
    client.close()

    # Then so is what it sent, and the service goes on
    wait_until(lambda: gateway.files() == [])
    assert gateway.http.put("/v1/uploads/clip", content=b"abc").status_code == 201


@pytest.mark.parametrize("call", ["writev", "unlink"])
def test_others_are_answered_while_the_disk_is_slow_with_an_upload_that_was_cut_off(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # Given a disk that takes its time, and an upload under way
    is_reached, may_go_on = threading.Event(), threading.Event()
    module = os if call == "writev" else Path
    at_once = getattr(module, call)

    def slowly(*arguments: object, **named: object) -> object:
        is_reached.set()
        may_go_on.wait(20)
        return at_once(*arguments, **named)

    monkeypatch.setattr(module, call, slowly)
    client = _connection(gateway)
    client.sendall(
        b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 3 * MEBIBYTE
    )
    wait_until(lambda: gateway.files())

    # When the client is gone
    client.close()
    wait_until(is_reached.is_set)

    # Then nobody waits for the disk but what is left of the upload, and that goes in the end
    assert [gateway.http.get("/healthz").status_code for _ in range(30)] == [200] * 30
    assert len(gateway.files()) == 1
    may_go_on.set()
    wait_until(lambda: gateway.files() == [])


def test_an_upload_that_falls_silent_is_given_up(start_gateway: StartGateway) -> None:
    # Given a client that sends a little and then nothing
    gateway = start_gateway(upload_idle_timeout_seconds=0.2)
    with _connection(gateway) as client:
        client.sendall(b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")

        # When the patience is over
        status, problem = _answer(client)

    # Then
    assert (status, problem["code"]) == (408, "upload_stalled")
    assert gateway.files() == []


def test_an_upload_that_comes_in_drops_is_given_up(start_gateway: StartGateway) -> None:
    # Given a client that is never silent for long
    gateway = start_gateway(upload_min_bytes_per_second=1000, upload_rate_window_seconds=0.4)
    with _connection(gateway) as client:
        client.sendall(b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")

        # When it holds its place with a byte now and then
        deadline = time.monotonic() + 20
        while not select.select([client], [], [], 0.02)[0]:
            assert time.monotonic() < deadline
            client.sendall(b"a")
        status, problem = _answer(client)

    # Then
    assert (status, problem["code"]) == (408, "upload_stalled")
    assert "1000 bytes a second" in str(problem["detail"])
    assert gateway.files() == []


def test_a_steady_upload_may_take_many_times_the_window(start_gateway: StartGateway) -> None:
    gateway = start_gateway(upload_min_bytes_per_second=1000, upload_rate_window_seconds=0.1)
    with _connection(gateway) as client:
        client.sendall(b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(30):
            assert not select.select([client], [], [], 0.02)[0]
            client.sendall(b"a" * 10_000)
        assert _answer(client)[0] == 201


def test_without_a_valid_key_not_a_byte_is_written(start_gateway: StartGateway) -> None:
    # Given a service with a key, and a stranger who announces a large upload
    gateway = start_gateway(api_keys="right-key")
    with _connection(gateway) as client:
        # When
        client.sendall(
            b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nX-API-Key: wrong\r\nContent-Length: 9999\r\n\r\n"
        )
        status, problem = _answer(client)

    # Then it is refused before the body
    assert (status, problem["code"]) == (401, "unauthorized")
    assert gateway.files() == []


def test_a_full_disk_is_named(start_gateway: StartGateway) -> None:
    # Given a storage that must keep more free than there is
    gateway = start_gateway(min_free_bytes=2**62)

    # When
    answer = gateway.http.put("/v1/uploads/clip", content=b"abc")

    # Then
    assert (answer.status_code, answer.json()["code"]) == (507, "out_of_disk")
    assert gateway.files() == []


def test_what_a_killed_gateway_half_received_is_swept_and_a_living_upload_is_not(
    gateway: RunningGateway, start_gateway: StartGateway
) -> None:
    # Given an upload that is still coming in, and the rest of one whose gateway was killed
    client = _connection(gateway)
    client.sendall(b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab")
    wait_until(lambda: len(gateway.files()) == 1)
    (gateway.storage.uploads / f"{'0' * 32}.part").write_bytes(b"half")

    # When another gateway starts on the same storage
    start_gateway()

    # Then only the dead one is gone, and the living one completes
    assert len(gateway.files()) == 1
    client.sendall(b"c")
    assert _answer(client)[0] == 201
    client.close()


def test_a_finished_upload_that_nobody_made_a_job_of_expires(gateway: RunningGateway) -> None:
    # Given
    gateway.http.put("/v1/uploads/clip", content=b"abc")

    # When it is swept with patience, and then with none
    sweep_old_uploads(gateway.storage, lambda path: False)
    kept = gateway.files()
    sweep_old_uploads(gateway.storage, lambda path: True)

    # Then
    assert len(kept) == 1
    assert gateway.files() == []


def test_an_upload_that_is_sent_again_while_the_old_one_is_swept_stays(gateway: RunningGateway) -> None:
    # Given an old upload, which is replaced by the same file just after it was found to be old
    gateway.http.put("/v1/uploads/clip", content=b"abc")
    path = next(gateway.storage.uploads.iterdir())
    os.utime(path, (0, 0))

    def is_old(found: Path) -> bool:
        was_old = found.stat().st_mtime == 0
        if was_old:
            assert gateway.http.put("/v1/uploads/clip", content=b"abc").status_code == 201
        return was_old

    # When
    removed = sweep_old_uploads(gateway.storage, is_old)

    # Then
    assert removed == 0
    assert gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).status_code == 202


def test_an_upload_that_is_becoming_a_job_is_nobody_elses(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr("app.uploads._HELD_PATIENCE_SECONDS", 0.1)
    gateway.http.put("/v1/uploads/clip", content=b"abc")

    # When others want it meanwhile: to make a job of it, to replace it by the same file, to give it up, or to sweep it
    with upload_for_job(gateway.storage, None, "clip") as held:
        answers = [
            gateway.http.post("/v1/jobs", json={"upload_id": "clip"}),
            gateway.http.put("/v1/uploads/clip", content=b"abc"),
            gateway.http.delete("/v1/uploads/clip", headers={"Tus-Resumable": "1.0.0"}),
        ]
        removed = sweep_old_uploads(gateway.storage, lambda path: path == held.path)

        # Then they are told to come back
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(423, "upload_busy")] * 3
        assert all(answer.headers["Retry-After"] == "1" for answer in answers)
        assert (removed, held.path.read_bytes()) == (0, b"abc")

        # But another file is the upload from now on
        assert gateway.http.put("/v1/uploads/clip", content=b"other").status_code == 201
        assert held.path.exists()

    job = gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).json()
    assert gateway.storage.folder(job["id"]).source.read_bytes() == b"other"


def test_of_two_requests_for_one_upload_one_gets_a_job(gateway: RunningGateway) -> None:
    gateway.http.put("/v1/uploads/clip", content=b"abc")
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).status_code, range(8))
        )
    assert sorted(answers) == [202] + [404] * 7
    assert len(gateway.storage.job_ids()) == 1


def test_uploads_that_come_in_together_do_not_mix(gateway: RunningGateway) -> None:
    # Given two uploads, interleaved
    first, second = _connection(gateway), _connection(gateway)
    head = b"PUT /v1/uploads/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n"
    first.sendall(head % b"first" + b"aaa")
    second.sendall(head % b"second" + b"bbb")
    wait_until(lambda: len(gateway.files()) == 2)
    first.sendall(b"aaa")
    second.sendall(b"bbb")

    # When
    answers = [_answer(client)[1]["sha256"] for client in (first, second)]
    first.close()
    second.close()

    # Then
    assert answers == [hashlib.sha256(content).hexdigest() for content in (b"aaaaaa", b"bbbbbb")]


def test_a_large_upload_passes_through_a_client_that_waits_for_continue(gateway: RunningGateway) -> None:
    # Given curl's way of sending large bodies
    with _connection(gateway) as client:
        client.sendall(
            b"PUT /v1/uploads/clip HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 100 ")

        # When the service has asked for the body
        client.sendall(b"abc")

        # Then
        assert _answer(client)[0] == 201


def test_the_answer_to_an_upload_carries_a_request_id(gateway: RunningGateway) -> None:
    answer = gateway.http.put("/v1/uploads/clip", content=b"abc")

    assert len(answer.headers["X-Request-ID"]) == 32


def _connection(gateway: RunningGateway) -> socket.socket:
    """For what no well-behaved HTTP client does."""
    address = urlsplit(gateway.url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def _answer(client: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and body of the next response on this connection."""
    response = HTTPResponse(client)
    response.begin()
    return response.status, json.loads(response.read())
