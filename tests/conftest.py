"""What every room's tests share: a real Redis-compatible server, on a unix socket of its own."""

import subprocess
from collections.abc import Iterator

import pytest
from redis import Redis

from app.embedded_redis import EmbeddedRedis, find_server


def pytest_report_header() -> str:
    """Which server the tests run on: another can say no where this one says yes."""
    server = find_server()
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return f"redis: {server} ({version.strip()})"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    client = Redis.from_url(redis_url)
    client.flushall()
    yield client
    client.close()
