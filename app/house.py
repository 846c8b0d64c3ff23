"""`vsr serve`: the whole service on this machine. Redis unless there is one, the others, and the gateway right here.

                vsr serve ── gateway (here)
                    ├── Redis, on a unix socket in the storage folder
                    ├── vsr worker (the supervisor) ── worker processes
                    └── vsr courier, which alone calls other hosts; started anew whenever it ends

Started from the bottom up and stopped from the top down: no request without Redis, and the workers can give their tasks
back while it is still there.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import structlog
from pydantic import SecretStr

from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from app.exit_codes import CommandError
from app.server import prepare_storage, serve_gateway
from app.settings import GatewaySettings
from worker.contract.processes import ending_with_parent
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings

log = structlog.get_logger(__name__)

# A worker gives its task back within a batch; a batch of the largest preset on a CPU may need to be cut short.
_WORKER_STOP_TIMEOUT_SECONDS = 20.0
# It may be in the middle of a webhook.
_COURIER_STOP_TIMEOUT_SECONDS = 20.0
_COURIER_RESTART_DELAYS_SECONDS = (0.0, 1.0, 5.0, 30.0)
_COURIER_WAS_WELL_SECONDS = 60.0


class WorkersEndedError(CommandError):
    """The workers ended by themselves (they have said why), so the service ended too."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("the workers could not run, so the service was stopped")
        self.exit_code = exit_code


def serve_house(
    gateway: GatewaySettings,
    redis: RedisSettings,
    storage: StorageSettings,
    log_settings: LogSettings,
    worker_arguments: list[str],
    on_listening: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. `worker_arguments` follow `vsr worker`.

    Raises `EmbeddedRedisError`, `GatewayStartError` or `WorkersEndedError`.
    """
    prepare_storage(storage)  # before Redis, whose folder lies in it
    with ExitStack() as house:
        redis_watch: _RedisWatch | None = None
        if redis.redis_url is None:
            server = house.enter_context(EmbeddedRedis(storage.storage_dir / "redis"))
            redis_watch = house.enter_context(_watched(server))
            redis = RedisSettings(redis_url=SecretStr(server.url))
        workers = house.enter_context(_workers(redis, storage, log_settings, worker_arguments))
        house.enter_context(_courier(redis, storage, log_settings))
        serve_gateway(gateway, redis, storage, on_listening)
        if redis_watch and redis_watch.has_ended:
            redis_log = storage.storage_dir / "redis" / "redis.log"
            raise EmbeddedRedisError(f"the embedded Redis ended, so the service was stopped: see {redis_log}")
        if workers.ended_with is not None:
            raise WorkersEndedError(workers.ended_with)


class _RedisWatch:
    """When the embedded server ends by itself, the gateway in this process is told to stop too: nobody restarts it."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server
        self._stopping = threading.Event()
        self.has_ended = False
        threading.Thread(target=self._watch, name="redis-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _watch(self) -> None:
        self._server.wait()
        if not self._stopping.is_set():
            self.has_ended = True
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _watched(server: EmbeddedRedis) -> Iterator[_RedisWatch]:
    watch = _RedisWatch(server)
    try:
        yield watch
    finally:
        watch.stop()


class _Workers:
    """The `vsr worker` process; when it ends by itself, the gateway in this process is told to stop too."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._stopping = threading.Event()
        self.ended_with: int | None = None
        threading.Thread(target=self._watch, name="workers-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(_WORKER_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        exit_code = self._process.wait()
        if not self._stopping.is_set():
            self.ended_with = exit_code
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _workers(
    redis: RedisSettings, storage: StorageSettings, log_settings: LogSettings, arguments: list[str]
) -> Iterator[_Workers]:
    environment = _environment(redis, storage, log_settings, secrets_of_others=("VSR_API_KEY", "VSR_WEBHOOK_SECRET"))
    # A session of its own, so that Ctrl-C reaches this process alone, which then stops the others in order.
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "worker", *arguments],
        env=environment,
        start_new_session=True,
        preexec_fn=ending_with_parent(signal.SIGTERM),
    )
    workers = _Workers(process)
    try:
        yield workers
    finally:
        workers.stop()


class _Courier:
    """The `vsr courier` process. Nothing else depends on it, so its end ends nothing: it is started anew."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="courier-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._starting:
            self._stopping.set()
            process = self._process
        if process:
            process.terminate()
            try:
                process.wait(_COURIER_STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()

    def _keep_running(self) -> None:
        early_ends = 0
        while True:
            started_at = time.monotonic()
            with self._starting:
                if self._stopping.is_set():
                    return
                # By this thread, which lives as long as the process: the kernel takes the thread for the parent.
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "app.cli", "courier"],
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=ending_with_parent(signal.SIGTERM),
                )
            exit_code = process.wait()
            if self._stopping.is_set():
                return
            was_well = time.monotonic() - started_at > _COURIER_WAS_WELL_SECONDS
            early_ends = 0 if was_well else min(early_ends + 1, len(_COURIER_RESTART_DELAYS_SECONDS) - 1)
            log.warning("courier_ended", exit_code=exit_code)
            self._stopping.wait(_COURIER_RESTART_DELAYS_SECONDS[early_ends])


@contextmanager
def _courier(redis: RedisSettings, storage: StorageSettings, log_settings: LogSettings) -> Iterator[None]:
    courier = _Courier(_environment(redis, storage, log_settings, secrets_of_others=("VSR_API_KEY",)))
    try:
        yield
    finally:
        courier.stop()


def _environment(
    redis: RedisSettings, storage: StorageSettings, log_settings: LogSettings, *, secrets_of_others: tuple[str, ...]
) -> dict[str, str]:
    """For a child process. By the environment: a command line can be read by every user of the machine."""
    assert redis.redis_url is not None
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(secrets_of_others)}
    return inherited | {
        "VSR_REDIS_URL": redis.redis_url.get_secret_value(),
        "VSR_STORAGE_DIR": str(storage.storage_dir.resolve()),
        "VSR_LOG_FORMAT": log_settings.log_format,
        "VSR_LOG_LEVEL": log_settings.log_level,
    }
