"""What a connection may do before it has shown a key, in a gateway that is a process of its own."""

import hashlib
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.app.conftest import wait_until
from tests.app.test_server import connection_to, gateway_process

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "


def put(body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"PUT /v1/uploads/a HTTP/1.1\r\nHost: localhost\r\n" + length + b"".join(headers) + b"\r\n"


def everything_from(client: socket.socket) -> bytes:
    """Until the other side closes."""
    received = b""
    with suppress(ConnectionError):
        while chunk := client.recv(65536):
            received += chunk
    return received


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(65536, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["kept open", "closing"])
@pytest.mark.parametrize("pieces", ["at once", "the body later", "byte by byte"])
def test_an_offer_of_http_2_is_declined_and_the_request_is_answered(
    redis_url: str, tmp_path: Path, pieces: str, closing: bytes
) -> None:
    # Given a client that offers to speak HTTP/2, as Java's does with its first request
    body = b"these are the bytes"
    head = put(body, closing, OFFER)
    with gateway_process(redis_url, tmp_path) as (_, url), connection_to(url) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # When it uploads, and asks for something else behind that
        if pieces == "at once":
            client.sendall(head + body)
        elif pieces == "the body later":
            client.sendall(head)
            wait_until(lambda: list((tmp_path / "uploads").glob("*.part")))
            client.sendall(body)
        else:
            for number in range(len(head + body)):
                client.sendall((head + body)[number : number + 1])
        if not closing:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = everything_from(client)

    # Then the file is whole, and so is what comes behind
    assert answers.startswith(b"HTTP/1.1 201 ")
    assert hashlib.sha256(body).hexdigest().encode() in answers
    assert answers.count(b"HTTP/1.1 200 ") == (0 if closing else 1)


def test_an_offer_in_a_chunked_upload_is_declined_as_well(redis_url: str, tmp_path: Path) -> None:
    chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
    with gateway_process(redis_url, tmp_path) as (_, url), connection_to(url) as client:
        client.sendall(b"PUT /v1/uploads/a HTTP/1.1\r\nHost: localhost\r\n" + chunked + OFFER + b"\r\n")
        client.sendall(b"3\r\nabc\r\n0\r\n\r\n")
        answer = everything_from(client)
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b'"size_bytes":3' in answer


def test_a_request_to_be_a_proxy_is_refused(redis_url: str, tmp_path: Path) -> None:
    with gateway_process(redis_url, tmp_path) as (process, url):
        with connection_to(url) as client:
            client.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\nanything")
            client.shutdown(socket.SHUT_WR)
            assert everything_from(client).startswith(b"HTTP/1.1 4")
        assert httpx2.get(f"{url}/healthz").status_code == 200
        process.terminate()
        assert "Traceback" not in process.communicate()[1]


@pytest.mark.parametrize("begin", [b"", HALF_A_HEAD], ids=["silent", "half a head"])
def test_a_connection_that_sends_no_whole_head_is_closed(redis_url: str, tmp_path: Path, begin: bytes) -> None:
    settings = {"VSR_HEAD_TIMEOUT_SECONDS": "0.5"}
    with gateway_process(redis_url, tmp_path, settings) as (_, url), connection_to(url) as client:
        client.sendall(begin)
        wait_until(lambda: is_closed(client))


def test_a_head_that_comes_in_drops_is_late_all_the_same(redis_url: str, tmp_path: Path) -> None:
    settings = {"VSR_HEAD_TIMEOUT_SECONDS": "0.5"}
    with gateway_process(redis_url, tmp_path, settings) as (_, url), connection_to(url) as client:
        client.sendall(HALF_A_HEAD)
        deadline = time.monotonic() + 20
        with suppress(ConnectionError):
            while not is_closed(client):
                assert time.monotonic() < deadline
                client.send(b"a")
                time.sleep(0.02)


def test_a_body_that_was_refused_is_not_read_for_ever(redis_url: str, tmp_path: Path) -> None:
    # Given an upload without a key, which has its answer
    settings = {"VSR_HEAD_TIMEOUT_SECONDS": "0.5", "VSR_API_KEYS": "the-key"}
    with gateway_process(redis_url, tmp_path, settings) as (_, url), connection_to(url) as client:
        client.sendall(put(b"a" * 1_000_000))
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")

        # When it goes on in drops, then not for long
        deadline = time.monotonic() + 20
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.send(b"a")
                time.sleep(0.02)
        assert time.monotonic() < deadline


def test_an_upload_may_take_longer_than_its_head(redis_url: str, tmp_path: Path) -> None:
    settings = {"VSR_HEAD_TIMEOUT_SECONDS": "0.3"}
    with gateway_process(redis_url, tmp_path, settings) as (_, url), connection_to(url) as client:
        client.sendall(put(b"abcdef") + b"abc")
        with connection_to(url) as other:  # which came later, and is closed before
            wait_until(lambda: is_closed(other))
        client.sendall(b"def")
        assert client.recv(65536).startswith(b"HTTP/1.1 201 ")


def test_strangers_who_ask_for_nothing_keep_nobody_out(redis_url: str, tmp_path: Path) -> None:
    # Given an upload under way, and many more connections with half a head than there may be connections
    settings = {"VSR_MAX_CONNECTIONS": "10", "VSR_MAX_UPLOADS": "5"}
    with gateway_process(redis_url, tmp_path, settings) as (process, url), ExitStack() as stack:
        upload = stack.enter_context(connection_to(url))
        upload.sendall(put(b"abcdef") + b"abc")
        wait_until(lambda: list((tmp_path / "uploads").glob("*.part")))
        strangers = [stack.enter_context(connection_to(url)) for _ in range(300)]
        for stranger in strangers:
            with suppress(ConnectionError):
                stranger.sendall(HALF_A_HEAD)

        # When somebody asks, and the upload goes on
        answer = httpx2.get(f"{url}/healthz")
        upload.sendall(b"def")

        # Then both are answered; most of the strangers are gone, long before they are late; the operator was told, once
        assert answer.status_code == 200
        assert upload.recv(65536).startswith(b"HTTP/1.1 201 ")
        wait_until(lambda: sum(map(is_closed, strangers)) > 200)
        process.terminate()
        assert process.communicate()[1].count("VSR_MAX_CONNECTIONS") == 1


def test_more_requests_than_may_be_under_way_are_told_to_come_again(redis_url: str, tmp_path: Path) -> None:
    # Given as many requests as there may be
    settings = {"VSR_MAX_CONNECTIONS": "2", "VSR_MAX_UPLOADS": "0"}
    with gateway_process(redis_url, tmp_path, settings) as (_, url), ExitStack() as stack:
        uploads = [stack.enter_context(connection_to(url)) for _ in range(2)]
        for upload in uploads:
            upload.sendall(put(b"abc"))
        wait_until(lambda: len(list((tmp_path / "uploads").glob("*.part"))) == 2)

        # When one more comes
        answer = httpx2.get(f"{url}/healthz")

        # Then
        assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (503, "too_many_connections", 2)
        assert (int(answer.headers["Retry-After"]) > 0, answer.headers["Connection"]) == (True, "close")
        # And when there is room again
        uploads[0].close()
        wait_until(lambda: httpx2.get(f"{url}/healthz").status_code == 200)


def test_more_connections_than_files_may_be_open_by_default_are_served(redis_url: str, tmp_path: Path) -> None:
    """The soft limit is raised at the start, as far as it may be."""
    limit = ["prlimit", "--nofile=256:8192"]
    with gateway_process(redis_url, tmp_path, before=limit) as (_, url), ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connection_to(url)).sendall(HALF_A_HEAD)
        assert httpx2.get(f"{url}/healthz").status_code == 200
        assert httpx2.put(f"{url}/v1/uploads/a", content=b"abc").status_code == 201
