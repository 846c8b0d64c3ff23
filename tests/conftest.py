"""What every room's tests share: a real Redis-compatible server, on a unix socket of its own."""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

from app.embedded_redis import EmbeddedRedis, find_server

_MOST_PROCESSES = 8
"""Each imports torch, and takes half a gigabyte for it."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core; none of its own, where `breakpoint()` works, for tests that are named one by one.

    None either for the containers, whose tests share one house.
    """
    if config.option.markexpr == "containers" or all("::" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)


def pytest_configure(config: pytest.Config) -> None:
    """Before torch is imported: processes that share the cores would wait for each other's threads most of the time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    """Which server the tests run on: another can say no where this one says yes."""
    server = find_server()
    version = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return f"redis: {server} ({version.strip()})"


@contextmanager
def skipped_without_witnesses() -> Iterator[None]:
    """The product needs no ffmpeg; some tests ask Debian's what it thinks of a result, where it is there."""
    try:
        yield
    except FileNotFoundError as error:
        if error.filename in ("ffmpeg", "ffprobe"):
            pytest.skip("needs Debian's ffmpeg, as .ci/run has it")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with skipped_without_witnesses():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with skipped_without_witnesses():
        return (yield)


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
