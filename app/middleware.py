"""Around every request: safe headers, and one log line."""

import asyncio
import time

import structlog
from asgi_correlation_id import correlation_id
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ShuttingDownError, render
from worker.contract.tracing import current_trace_parent, trace_id_of

log = structlog.get_logger("app.access")

# Defaults; a route that needs another value sets the header itself.
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Asked every few seconds by machines.
QUIET_PATHS = ("/healthz", "/readyz", "/metrics")


class SecurityHeadersMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class AccessLogMiddleware:
    """Binds the request id to every line logged on the way, and logs the request itself when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None  # stays so if the request was cut off before an answer
        started = time.monotonic()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=correlation_id.get(), **trace_id_of(current_trace_parent()))
        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            # The server's patience at its own shutdown is over; passed on, it would be logged as a crash.
            if status is None:
                await render(ShuttingDownError())(scope, receive, send_and_note)
        finally:
            write = log.debug if scope["path"] in QUIET_PATHS else log.info
            job_id = scope.get("path_params", {}).get("job_id")
            write(
                "request",
                **({"job_id": job_id} if job_id else {}),
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(time.monotonic() - started, 4),
            )
