"""Running the gateway in this process until it is told to stop."""

import functools
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, start_http_server

from app.connections import SPARE_CONNECTIONS, Connection, Connections
from app.exit_codes import CommandError
from app.gateway import RedisAddressError, create_app
from app.keys import KeysError
from app.settings import GatewaySettings
from worker.contract.settings import RedisSettings, StorageSettings
from worker.contract.storage import JobStorage
from worker.contract.tracing import start_tracing, stop_tracing

log = structlog.get_logger(__name__)

# Downloads would hold the exit for ever. Streams of events end by themselves.
_GRACEFUL_SHUTDOWN_SECONDS = 2
# Connections that the kernel holds for us; in one moment all of them may come in.
_BACKLOG = 512
# Those of Redis, of the log, of libraries; twice over.
_OWN_FILES = 256
# How long a thread may keep Python's lock while the event loop waits for it: by default ten times as long.
_SWITCH_SECONDS = 0.0005


class GatewayStartError(CommandError):
    """One line that says why the gateway does not start and what to do."""


def serve_gateway(
    settings: GatewaySettings,
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then return. Raises `GatewayStartError`.

    `on_listening` is called with the address once requests are taken. In a thread other than the main one no signal
    is heeded.
    """
    if not (settings.has_keys or settings.allow_anonymous or settings.is_loopback_only):
        raise GatewayStartError(
            f"refusing to listen on {settings.host} without API keys: set VSR_API_KEYS, or listen on 127.0.0.1"
        )
    try:
        app = create_app(settings, redis_settings, storage_settings)
    except (RedisAddressError, KeysError) as error:
        raise GatewayStartError(str(error)) from error
    prepare_storage(storage_settings)
    start_tracing("vsr-gateway")
    with _metrics_served(settings, app.state.prometheus), _listening(settings.host, settings.port) as listener:
        shared = Connections(_connections_within_files(settings.max_connections), settings.head_timeout_seconds)
        config = uvicorn.Config(
            app,
            timeout_graceful_shutdown=_GRACEFUL_SHUTDOWN_SECONDS,
            # Logs are configured once, at the process's door; requests are logged by `app.middleware`.
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            backlog=_BACKLOG,
            http=functools.partial(Connection, shared=shared),  # type: ignore[arg-type]
        )
        url = _url(listener)
        if not settings.has_keys:
            who = "everyone who reaches this address" if settings.allow_anonymous else "programs on this machine only"
            log.warning("no API keys are configured (VSR_API_KEYS)", url=url, answers=who)
        sys.setswitchinterval(_SWITCH_SECONDS)
        with _returning_on_signals():
            _Server(config, lambda: on_listening(url) if on_listening else None, app.state.end_streams).run(
                sockets=[listener]
            )
    stop_tracing()


def prepare_storage(settings: StorageSettings) -> None:
    """Make the storage folder, or raise `GatewayStartError`."""
    try:
        JobStorage(settings.storage_dir).prepare()
    except OSError as error:
        raise GatewayStartError(
            f"the storage folder {settings.storage_dir} cannot be used ({error.strerror}): set VSR_STORAGE_DIR"
        ) from error


@contextmanager
def _metrics_served(settings: GatewaySettings, registry: CollectorRegistry) -> Iterator[None]:
    """On a port of their own, where that is asked for."""
    if settings.gateway_metrics_port is None:
        yield
        return
    host, port = settings.gateway_metrics_host, settings.gateway_metrics_port
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise GatewayStartError(
            f"cannot serve metrics on {host} port {port} ({error.strerror}): choose another by VSR_GATEWAY_METRICS_PORT"
        ) from error
    log.info("metrics are served on a port of their own", host=host, port=server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _connections_within_files(wanted: int) -> int:
    """How many there may be, each with a file that it fills or reads, once this process may open as many as it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    around = _BACKLOG + SPARE_CONNECTIONS + _OWN_FILES
    needed = 2 * wanted + around
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return wanted
    possible = max(1, (allowed - around) // 2)
    log.warning("fewer connections than VSR_MAX_CONNECTIONS: raise the limit of open files", connections=possible)
    return possible


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._on_stopping = on_stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()
        await super().shutdown(sockets)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Bound here and not by uvicorn, which would end the process with a log line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, asyncio knows that it may send small answers at once; else each would wait for an acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise GatewayStartError(
                f"cannot listen on {host} port {port} ({error.strerror}): choose another with --port or VSR_PORT"
            ) from error
        yield listener


@contextmanager
def _returning_on_signals() -> Iterator[None]:
    """When told to stop, uvicorn does so and then raises the signal again: for us the clean end is the whole answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heeded_already(number: int, frame: FrameType | None) -> None:
        log.info("gateway stopped", signal=signal.Signals(number).name)

    before = {number: signal.signal(number, heeded_already) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
