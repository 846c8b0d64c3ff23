"""Other people's servers, as they are and as they should not be: on real sockets, with and without TLS."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis

from app.courier.metrics import CourierMetrics
from worker.contract.errands import Errand, ErrandKind, Errands
from worker.contract.job import JobOptions, JobRecord, new_job_id, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

CERTIFICATES = Path(__file__).parent / "certificates"


@dataclass(frozen=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[socket.socket, Request], None]


@dataclass
class OtherHost:
    """A server that answers one request per connection with whatever `respond` sends."""

    url: str
    port: int
    requests: list[Request] = field(default_factory=list)


StartHost = Callable[..., OtherHost]


def answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> Respond:
    """An honest answer. Header names are written with underscores."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    content = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return lambda connection, request: connection.sendall(content)


def answers(*responds: Respond) -> Respond:
    """One after the other; the last for all that follow."""
    waiting = list(responds)

    def respond(connection: socket.socket, request: Request) -> None:
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(connection, request)

    return respond


@pytest.fixture
def start_host() -> Iterator[StartHost]:
    """Start a server: `respond`, and `tls=True` for a certificate of receiver.test."""
    with ExitStack() as stack:

        def start(respond: Respond, *, tls: bool = False) -> OtherHost:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            host = OtherHost(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
            if context:
                context.load_cert_chain(CERTIFICATES / "receiver.pem", CERTIFICATES / "receiver.key")

            def serve(connection: socket.socket) -> None:
                # The other side may leave at any time: that is what most of these tests are about.
                with suppress(OSError), connection:
                    speaking = context.wrap_socket(connection, server_side=True) if context else connection
                    with speaking:
                        request = _read_request(speaking)
                        host.requests.append(request)
                        respond(speaking, request)

            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:  # closed at the end of the test
                        return
                    threading.Thread(target=serve, args=[connection], daemon=True).start()

            accepting = threading.Thread(target=accept, daemon=True)
            accepting.start()
            stack.callback(accepting.join, 5)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return host

        yield start


@pytest.fixture(scope="session")
def trusting() -> ssl.SSLContext:
    """Trusts the authority that signed the certificate of receiver.test."""
    return ssl.create_default_context(cafile=str(CERTIFICATES / "ca.pem"))


def _read_request(connection: socket.socket) -> Request:
    content = b""
    while b"\r\n\r\n" not in content:
        content += _some(connection)
    head, _, body = content.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(re.split(r":\s*", text, maxsplit=1) for text in lines)
    headers = {name.lower(): value for name, value in headers.items()}
    while len(body) < int(headers.get("content-length", "0")):
        body += _some(connection)
    return Request(line, headers, body)


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    if not received:
        raise ConnectionError
    return received


class Desk:
    """Storage and Redis as a courier finds them, and jobs that need one."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.storage = JobStorage(folder)
        self.storage.prepare()
        self.registry = JobRegistry(redis, self.storage)
        self.queue = TaskQueue(redis)
        self.errands = Errands(redis)
        self.metrics = CourierMetrics(self.errands)

    def accept(self, source_url: str | None = None, webhook_url: str | None = None, owner: str | None = None) -> str:
        """As the gateway does."""
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=JobOptions(),
            source_name="clip.mp4",
            source_size_bytes=0 if source_url else 3,
            source_sha256="" if source_url else "0" * 64,
            source_url=source_url,
            webhook_url=webhook_url,
            owner=owner,
        )
        self.storage.make_folder(record.id)
        self.registry.add(record)
        return record.id

    def job(self, job_id: str) -> JobRecord:
        """As it is on disk, which must be what Redis says."""
        record = self.storage.read_record(job_id)
        assert record is not None
        assert record == self.registry.get(job_id)
        return record

    def claim(self, kind: ErrandKind) -> Errand:
        errand = self.errands.claim(kind, 60)
        assert errand is not None
        return errand

    def make_due(self, kind: ErrandKind, job_id: str) -> None:
        """Let the time pass until the next attempt."""
        self.errands.put(kind, job_id)

    def count(self, series: str, **labels: str) -> float:
        return self.metrics.prometheus.get_sample_value(series, labels) or 0.0

    def files(self, job_id: str) -> list[str]:
        return sorted(path.name for path in self.storage.folder(job_id).path.iterdir())


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    return Desk(redis, tmp_path / "storage")
