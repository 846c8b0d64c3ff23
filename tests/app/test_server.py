"""The gateway as a process: what stops it from starting, how it ends, and what a kill leaves."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from app.server import GatewayStartError, _listening, serve_gateway
from app.settings import GatewaySettings
from tests.app.conftest import wait_until
from worker.contract.settings import RedisSettings, StorageSettings

PROGRAM = """
import sys
from app.server import serve_gateway
from app.settings import GatewaySettings
from worker.contract.logs import configure_logging
from worker.contract.settings import RedisSettings, StorageSettings
configure_logging("json")
serve_gateway(GatewaySettings(port=0), RedisSettings(), StorageSettings(), lambda url: print(url, flush=True))
sys.exit(7)
"""


@contextmanager
def gateway_process(
    redis_url: str, storage_dir: Path, extra: dict[str, str] | None = None, before: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway in a process of its own, and its address. Exits with 7 when `serve_gateway` returns.

    `before`: of its command.
    """
    environment = {"VSR_REDIS_URL": redis_url, "VSR_STORAGE_DIR": str(storage_dir), "VSR_MIN_FREE_BYTES": "0"}
    environment |= extra or {}
    process = subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def settings_for(redis_url: str | None, storage_dir: Path) -> tuple[RedisSettings, StorageSettings]:
    return RedisSettings(redis_url=SecretStr(redis_url) if redis_url else None), StorageSettings(
        storage_dir=storage_dir
    )


def test_a_port_in_use_is_one_clear_line(redis_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(GatewayStartError, match=rf"cannot listen on 127.0.0.1 port {port} .*VSR_PORT") as error:
            serve_gateway(GatewaySettings(port=port), *settings_for(redis_url, tmp_path))
    assert "\n" not in str(error.value)


def test_without_keys_the_world_is_not_served(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(GatewayStartError, match=r"refusing to listen on 0\.0\.0\.0 without API keys: set VSR_API_KEYS"):
        serve_gateway(GatewaySettings(host="0.0.0.0"), *settings_for(redis_url, tmp_path))


def test_without_an_address_of_redis_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(GatewayStartError, match="VSR_REDIS_URL"):
        serve_gateway(GatewaySettings(), *settings_for(None, tmp_path))


def test_a_redis_address_that_is_none_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(GatewayStartError, match="VSR_REDIS_URL") as error:
        serve_gateway(GatewaySettings(), *settings_for("http://:hunter2@db", tmp_path))
    assert "hunter2" not in str(error.value)


def test_a_storage_that_cannot_be_made_is_named(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(GatewayStartError, match="VSR_STORAGE_DIR"):
        serve_gateway(GatewaySettings(), *settings_for(redis_url, tmp_path / "file" / "storage"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_an_upload_under_way(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    # Given a gateway that is receiving an upload
    with gateway_process(redis_url, tmp_path) as (process, url):
        client = begin_upload(url, tmp_path)

        # When it is told to stop
        process.send_signal(number)
        _, log = process.communicate(timeout=30)
        client.close()

    # Then `serve_gateway` returned, and nothing is left of the upload
    assert process.returncode == 7
    assert list((tmp_path / "uploads").iterdir()) == []
    assert "Traceback" not in log


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_after_the_next_start(redis_url: str, tmp_path: Path) -> None:
    # Given an upload under way and a finished job
    with gateway_process(redis_url, tmp_path) as (process, url):
        job = httpx2.post(f"{url}/v1/jobs", files={"file": ("a.mp4", b"abc")}).json()
        client = begin_upload(url, tmp_path)

        # When the gateway is killed and started again
        process.kill()
        process.wait()
        client.close()
    with gateway_process(redis_url, tmp_path) as (_, url):
        # Then the accepted job is there, the half upload is not
        assert httpx2.get(f"{url}/v1/jobs/{job['id']}").json()["status"] == "queued"
        assert list((tmp_path / "uploads").iterdir()) == []


def connection_to(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def begin_upload(url: str, storage_dir: Path) -> socket.socket:
    client = connection_to(url)
    client.sendall(b"PUT /v1/uploads/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nabc")
    wait_until(lambda: list((storage_dir / "uploads").glob("*.part")))
    return client


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Endless: ",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Many: "
        + b"\r\nX-Many: ".join([b"a" * 1000] * 60)
        + b"\r\nX-Endless: ",
        b"PUT /v1/uploads/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Tail: ",
    ],
    ids=["one header", "many headers", "a trailer"],
)
def test_headers_without_end_are_refused_and_the_connection_closed(redis_url: str, tmp_path: Path, head: bytes) -> None:
    with gateway_process(redis_url, tmp_path) as (process, url), connection_to(url) as client:
        memory_before = memory_bytes(process.pid)

        # When a client goes on for as long as it is let
        client.sendall(head)
        sent_bytes = 0
        with suppress(ConnectionError):
            while sent_bytes < 50_000_000:
                sent_bytes += client.send(b"a" * 100_000)

        # Then it was not let for long, and others are answered
        assert sent_bytes < 10_000_000
        assert memory_bytes(process.pid) - memory_before < 20_000_000
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_uploads_on_one_connection_may_be_larger_than_their_headers(redis_url: str, tmp_path: Path) -> None:
    with gateway_process(redis_url, tmp_path) as (_, url), httpx2.Client(base_url=url) as client:
        for number in range(3):
            assert client.put(f"/v1/uploads/{number}", content=b"a" * 1_000_000).status_code == 201
        chunks = (b"a" * 1000 for _ in range(1000))
        assert client.put("/v1/uploads/chunked", content=chunks).json()["size_bytes"] == 1_000_000


def test_metrics_have_a_port_of_their_own_where_that_is_asked_for(redis_url: str, tmp_path: Path) -> None:
    # Given a gateway with keys that serves its metrics elsewhere
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    extra = {"VSR_GATEWAY_METRICS_PORT": str(port), "VSR_API_KEYS": "key"}
    with gateway_process(redis_url, tmp_path, extra) as (_, url):
        # When
        own = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
        with_the_api = httpx2.get(f"{url}/metrics", headers={"X-API-Key": "key"}, trust_env=False)

    # Then
    assert own.status_code == 200
    assert "vsr_jobs_submitted_total 0.0" in own.text
    assert with_the_api.status_code == 404


def test_a_port_for_metrics_that_is_in_use_is_one_clear_line(redis_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = GatewaySettings(port=0, gateway_metrics_port=other.getsockname()[1])
        with pytest.raises(GatewayStartError, match=r"cannot serve metrics on .*VSR_GATEWAY_METRICS_PORT"):
            serve_gateway(settings, *settings_for(redis_url, tmp_path))


def test_a_keys_file_that_is_not_there_stops_the_start(redis_url: str, tmp_path: Path) -> None:
    settings = GatewaySettings(host="0.0.0.0", port=0, api_keys_file=tmp_path / "missing")
    with pytest.raises(GatewayStartError, match=r"the keys file .* cannot be read: No such file"):
        serve_gateway(settings, *settings_for(redis_url, tmp_path))


def test_small_answers_are_sent_at_once() -> None:
    # Without the protocol's name asyncio leaves Nagle's algorithm on, and every second answer is 40 ms late
    with _listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
