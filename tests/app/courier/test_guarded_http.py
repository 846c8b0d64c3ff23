"""No address that a stranger names leads into our own network, and no server can hold us up for long."""

import ipaddress
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

import httpcore2
import pytest

from app.guarded_http import (
    Answer,
    Fault,
    GuardedHttp,
    TargetError,
    TargetPolicy,
    TimeLimits,
    check_url,
    is_public,
    shown_url,
)
from tests.app.courier.conftest import Request, StartHost, answer, answers

STRICT = TargetPolicy()
LOOPBACK_TOO = TargetPolicy(allow_loopback=True)
LIMITS = TimeLimits(connect_seconds=5, idle_seconds=5, total_seconds=20)


def get(http: GuardedHttp, url: str, limits: TimeLimits = LIMITS, **options: object) -> tuple[int, bytes]:
    with http.open("GET", url, limits, **options) as received:  # type: ignore[arg-type]
        return received.status, b"".join(received.chunks())


def fault_of(http: GuardedHttp, url: str, limits: TimeLimits = LIMITS, **options: object) -> Fault:
    with pytest.raises(TargetError) as caught:
        get(http, url, limits, **options)
    return caught.value.fault


def leading_to(*addresses: str) -> Callable[[str, int], Sequence[str]]:
    return lambda host, port: addresses


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were called, which nothing answers from."""
    called: list[str] = []

    def connect(self: object, host: str, port: int, **options: object) -> httpcore2.NetworkStream:
        called.append(host)
        raise httpcore2.ConnectError

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    return called


@pytest.mark.parametrize("port", [0, 65536, 70000])
def test_a_port_that_there_is_not_is_refused_also_where_loopback_is_allowed(port: int) -> None:
    with pytest.raises(TargetError, match=f"there is no port {port}") as caught:
        check_url(f"http://127.0.0.1:{port}/", LOOPBACK_TOO)
    assert caught.value.fault is Fault.REFUSED


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://0/",
        "https://0.0.0.0/",
        "https://10.1.2.3/",
        "https://172.31.255.255/",
        "https://192.168.0.1/",
        "https://100.64.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2852039166/latest/meta-data/",
        "https://192.0.0.1/",
        "https://192.0.0.192/opc/v2/instance/",
        "https://168.63.129.16/machine/",
        "https://198.18.0.1/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://[::1]/",
        "https://[::]/",
        "https://[::127.0.0.1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::a00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:7f00:1::]/",
        "https://[fd00:ec2::254]/",
        "https://[fe80::1]/",
        "https://[fec0::1]/",
        "https://[ff02::1]/",
        "https://[2001:db8::1]/",
        "https://[3fff::1]/",
    ],
)
def test_an_address_that_is_not_public_is_refused_however_it_is_written(url: str, connections: list[str]) -> None:
    assert fault_of(GuardedHttp(STRICT), url) is Fault.REFUSED
    assert connections == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "168.63.129.17"]
)
def test_an_address_of_the_open_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com/clip.mp4",
        "//example.com/",
        "https:///clip.mp4",
        "https://user:password@example.com/",
        "https://example.com@127.0.0.1/",
        "https://@example.com/",
        "https://:@example.com/",
        "https://127.0.0.1\\@example.com/",
        "https://ex ample.com/",
        "https://example.com\n/",
        "https://exa%6dple.com%00/",
        "https://example.com:22/",
        "https://example.com:0/",
        "https://example.com:8080/",
        "https://[fe80::1%25eth0]/",
        f"https://{'a' * 64}.com/",
        f"https://example.com/{'a' * 2100}",
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url: str, connections: list[str]) -> None:
    assert fault_of(GuardedHttp(STRICT, resolve=leading_to("8.8.8.8")), url) is Fault.REFUSED
    assert connections == []


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254"])
def test_a_name_that_leads_inside_is_refused(address: str, connections: list[str]) -> None:
    assert fault_of(GuardedHttp(STRICT, resolve=leading_to(address)), "https://example.com/") is Fault.REFUSED
    assert connections == []


def test_a_name_with_one_public_and_one_private_address_is_refused(connections: list[str]) -> None:
    http = GuardedHttp(STRICT, resolve=leading_to("8.8.8.8", "10.0.0.1"))
    assert fault_of(http, "https://example.com/") is Fault.REFUSED
    assert connections == []


def test_localhost_is_refused_as_the_system_resolves_it(connections: list[str]) -> None:
    for name in ("localhost", "LOCALHOST"):
        assert fault_of(GuardedHttp(STRICT), f"https://{name}/") is Fault.REFUSED
    assert connections == []


def test_all_checked_addresses_are_tried_and_no_name_is_ever_given_to_the_system(connections: list[str]) -> None:
    http = GuardedHttp(STRICT, resolve=leading_to("8.8.8.8", "2606:4700::1111"))
    assert fault_of(http, "https://example.com/") is Fault.UNREACHABLE
    assert connections == ["8.8.8.8", "2606:4700::1111"]


def test_a_name_that_changes_after_the_check_changes_nothing(start_host: StartHost) -> None:
    # Given a name that leads to a harmless host first, and to another when asked again
    host = start_host(answer(body=b"hello"))
    asked = iter(["127.0.0.1", "169.254.169.254"])
    http = GuardedHttp(LOOPBACK_TOO, resolve=lambda name, port: [next(asked)])

    # When
    status, body = get(http, f"http://rebinding.test:{host.port}/clip?token=1")

    # Then it was asked once, and the host saw the name and not the address
    assert (status, body) == (200, b"hello")
    assert next(asked) == "169.254.169.254"
    [request] = host.requests
    assert request.line == "GET /clip?token=1 HTTP/1.1"
    assert request.headers["host"] == f"rebinding.test:{host.port}"
    assert "cookie" not in request.headers


def test_the_certificate_must_be_the_names_own(start_host: StartHost, trusting: ssl.SSLContext) -> None:
    # Given a server with a certificate of receiver.test
    host = start_host(answer(body=b"secret"), tls=True)
    http = GuardedHttp(LOOPBACK_TOO, resolve=leading_to("127.0.0.1"), ssl_context=trusting)

    # Then it is believed by that name only, and only by those who know its authority
    assert get(http, f"https://receiver.test:{host.port}/") == (200, b"secret")
    assert fault_of(http, f"https://other.test:{host.port}/") is Fault.TLS
    stranger = GuardedHttp(LOOPBACK_TOO, resolve=leading_to("127.0.0.1"))
    assert fault_of(stranger, f"https://receiver.test:{host.port}/") is Fault.TLS
    assert len(host.requests) == 1


def test_where_loopback_is_allowed_http_stays_forbidden_for_all_others(connections: list[str]) -> None:
    http = GuardedHttp(LOOPBACK_TOO, resolve=leading_to("8.8.8.8"))
    assert fault_of(http, "http://example.com/") is Fault.REFUSED
    assert fault_of(http, "https://example.com:8080/") is Fault.REFUSED
    private = GuardedHttp(LOOPBACK_TOO, resolve=leading_to("10.0.0.1"))
    assert fault_of(private, "https://example.com/") is Fault.REFUSED
    assert connections == []


def test_a_redirect_is_an_answer_unless_it_may_be_followed(start_host: StartHost) -> None:
    host = start_host(answers(answer("302 Found", Location="/there"), answer(body=b"there")))
    http = GuardedHttp(LOOPBACK_TOO)
    assert get(http, f"{host.url}/here?token=1")[0] == 302
    assert get(http, f"{host.url}/here?token=1") == (200, b"there")

    again = start_host(answers(answer("302 Found", Location="/there"), answer(body=b"there")))
    assert get(http, f"{again.url}/here", redirects=1) == (200, b"there")
    assert again.requests[1].line == "GET /there HTTP/1.1"
    assert "referer" not in again.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/",
        "https://inside.test/",
        "//[fd00:ec2::254]/",
        "file:///etc/passwd",
        "https://user@127.0.0.1/",
        "http://[::1",
    ],
)
def test_a_redirect_inside_is_refused_at_the_hop(start_host: StartHost, location: str) -> None:
    host = start_host(answer("302 Found", Location=location))
    names = {"127.0.0.1": "127.0.0.1", "inside.test": "10.0.0.1"}
    http = GuardedHttp(LOOPBACK_TOO, resolve=lambda name, port: [names.get(name, name)])
    assert fault_of(http, host.url, redirects=3) is Fault.REFUSED
    assert len(host.requests) == 1


def test_a_redirect_to_localhost_is_refused_where_loopback_is_not_allowed(
    start_host: StartHost, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a host on the open internet (played on this machine) that redirects to localhost
    inside = start_host(answer(body=b"inside"))
    outside = start_host(answer("302 Found", Location=f"https://localhost:{inside.port}/"), tls=True)
    connect = httpcore2.SyncBackend.connect_tcp

    def connect_outside(self: object, host: str, port: int, **options: object) -> httpcore2.NetworkStream:
        assert host == "8.8.8.8"
        return connect(self, "127.0.0.1", port, timeout=5)  # type: ignore[arg-type]

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect_outside)
    policy = TargetPolicy(ports=frozenset({outside.port, inside.port}))
    addresses = {"receiver.test": "8.8.8.8", "localhost": "127.0.0.1"}
    http = GuardedHttp(policy, resolve=lambda name, port: [addresses[name]], ssl_context=trusting)

    # Then
    assert fault_of(http, f"https://receiver.test:{outside.port}/", redirects=3) is Fault.REFUSED
    assert len(outside.requests) == 1
    assert inside.requests == []


def test_redirects_in_a_circle_end(start_host: StartHost) -> None:
    host = start_host(answer("307 Temporary Redirect", Location="/again"))
    assert fault_of(GuardedHttp(LOOPBACK_TOO), host.url, redirects=3) is Fault.REFUSED
    assert len(host.requests) == 4


def test_no_proxy_of_the_environment_is_asked(start_host: StartHost, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, host = start_host(answer(body=b"proxy")), start_host(answer(body=b"host"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert get(GuardedHttp(LOOPBACK_TOO), host.url) == (200, b"host")
    assert proxy.requests == []


def trickle(head: bytes, piece: bytes) -> Callable[[socket.socket, Request], None]:
    """One piece every 50 ms until the other side has had enough."""

    def respond(connection: socket.socket, request: Request) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(0.05)

    return respond


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Slow: a\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["status line", "header value", "headers", "body", "chunks", "informational"],
)
def test_a_server_that_sends_a_little_for_ever_is_left_in_time(
    start_host: StartHost, head: bytes, piece: bytes
) -> None:
    host = start_host(trickle(head, piece))
    limits = TimeLimits(connect_seconds=5, idle_seconds=5, total_seconds=0.5)
    # A status line of one letter again and again is no HTTP, which may be seen before the time is over.
    assert fault_of(GuardedHttp(LOOPBACK_TOO), host.url, limits) in (Fault.TIMEOUT, Fault.PROTOCOL)


def test_a_server_that_falls_silent_is_left(start_host: StartHost) -> None:
    host = start_host(lambda connection, request: threading.Event().wait(10) and None)
    limits = TimeLimits(connect_seconds=5, idle_seconds=0.3, total_seconds=20)
    assert fault_of(GuardedHttp(LOOPBACK_TOO), host.url, limits) is Fault.TIMEOUT


def test_a_name_that_is_never_found_is_left_in_time() -> None:
    waiting = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        waiting.wait(10)
        return []

    limits = TimeLimits(connect_seconds=0.3, idle_seconds=5, total_seconds=20)
    try:
        assert fault_of(GuardedHttp(STRICT, resolve=resolve), "https://example.com/", limits) is Fault.TIMEOUT
    finally:
        waiting.set()


def test_a_name_that_does_not_exist_is_a_fault_that_may_pass() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror

    assert fault_of(GuardedHttp(STRICT, resolve=resolve), "https://example.com/") is Fault.UNRESOLVED


def test_endless_headers_are_not_collected(start_host: StartHost) -> None:
    def respond(connection: socket.socket, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for number in itertools.count():
            connection.sendall(f"X-{number}: {'a' * 1000}\r\n".encode())

    assert fault_of(GuardedHttp(LOOPBACK_TOO), start_host(respond).url) is Fault.PROTOCOL


def test_an_endless_body_arrives_piece_by_piece_and_can_be_left(start_host: StartHost) -> None:
    def respond(connection: socket.socket, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")

    host = start_host(respond)
    received = 0
    with GuardedHttp(LOOPBACK_TOO).open("GET", host.url, LIMITS) as endless:
        assert isinstance(endless, Answer)
        for chunk in endless.chunks():
            assert len(chunk) <= 2 * 65536
            received += len(chunk)
            if received > 1_000_000:
                break


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_a_body_that_ends_early_is_no_whole_body(start_host: StartHost, content: bytes) -> None:
    host = start_host(lambda connection, request: connection.sendall(content))
    assert fault_of(GuardedHttp(LOOPBACK_TOO), host.url) is Fault.PROTOCOL


def test_what_is_no_http_is_told(start_host: StartHost) -> None:
    host = start_host(lambda connection, request: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"))
    assert fault_of(GuardedHttp(LOOPBACK_TOO), host.url) is Fault.PROTOCOL


def test_a_call_is_ended_from_outside_while_it_waits(start_host: StartHost) -> None:
    host = start_host(lambda connection, request: threading.Event().wait(10) and None)
    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise InterruptedError

    threading.Timer(0.2, ended.set).start()
    with pytest.raises(InterruptedError):
        get(GuardedHttp(LOOPBACK_TOO), host.url, check=check)


def test_a_url_is_shown_without_what_may_be_a_key() -> None:
    assert shown_url("https://example.com/a/clip.mp4?X-Signature=secret#t=1") == "https://example.com/a/clip.mp4"
