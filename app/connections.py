"""What one connection may ask of the server before it has shown a key: a head in good time, and nothing without bounds.

    connected ──▶ waiting for a head ──whole──▶ a request under way ──answered──▶ waiting for a head ...
                        └── late, or the oldest when there are too many: closed

Whoever has no key waits or is answered at once, so that strangers, however many, hold no place for long. Those with
a key have limits of their own (`app.limits`).
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import structlog
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import TooManyConnectionsError, render

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

log = structlog.get_logger(__name__)

# Connections without a request that may be open when all others have one: a moment's time for their heads to come.
SPARE_CONNECTIONS = 64
# Of one request line with its headers, or of what follows a chunked body.
_MAX_HEAD_BYTES = 64 * 1024
_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass
class Connections:
    """What all connections of this process share. For one event loop."""

    max_connections: int
    """With a request under way."""
    head_timeout_seconds: float
    waiting: dict["Connection", None] = field(default_factory=dict)
    """Those without one; the one that has waited longest comes first."""
    _warned_at: float = float("-inf")

    def make_room(self, number: int) -> None:
        """There are `number` now: too many, and whoever asks for nothing goes before one that has just come."""
        if number > self.max_connections + SPARE_CONNECTIONS and self.waiting:
            next(iter(self.waiting)).drop()
            self._warn(number)

    def refusal(self, number: int) -> TooManyConnectionsError | None:
        """For a request that has just come, when there are `number` connections."""
        if number - len(self.waiting) <= self.max_connections:
            return None
        self._warn(number)
        return TooManyConnectionsError(self.max_connections)

    def _warn(self, number: int) -> None:
        if time.monotonic() - self._warned_at > _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = time.monotonic()
            log.warning("too many connections (VSR_MAX_CONNECTIONS)", connections=number, waiting=len(self.waiting))


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on what comes around a body and on the time for it; and it stays with HTTP/1.1.

    httptools itself keeps headers of any size, and any number of them. Once it has seen an offer to speak another
    protocol (Java's client makes one with each first request), it takes all that follows for that, a body as well.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        shared: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = shared
        self._head_bytes = 0
        self._without_offer: bytes | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._shared.make_room(len(self.connections))
        self._wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(error)

    # --- what comes ---------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self._parse(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request header fields too large.")

    def _parse(self, data: bytes) -> None:
        """A head with an offer is read once more without it; whatever follows is then its body, or the next request."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                if self._without_offer is None:  # CONNECT, which was answered
                    return
                head, self._without_offer = self._without_offer, None
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)
                data = data[upgrade.args[0] :]

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            version = self.parser.get_http_version().encode()
            lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self._without_offer = b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *lines, b"", b""])
            return
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._without_offer is None:
            self._head_bytes = 0
            super().on_message_complete()

    # --- how long it may take -----------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        if refusal := self._shared.refusal(len(self.connections)):
            app = cast("ASGI3Application", render(refusal))
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and not one that came behind it
            self._wait_for_head()

    def drop(self) -> None:
        self._stop_waiting()
        self.transport.abort()

    def _wait_for_head(self) -> None:
        """For the next one. The rest of a body that was answered already is read and dropped meanwhile."""
        self._stop_waiting()
        self._shared.waiting[self] = None
        self._deadline = self.loop.call_later(self._shared.head_timeout_seconds, self._is_late)

    def _stop_waiting(self) -> None:
        self._shared.waiting.pop(self, None)
        if self._deadline:
            self._deadline.cancel()

    def _is_late(self) -> None:
        before, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        if self._unsent_bytes and self._unsent_bytes != before:  # it still takes its answer
            self._wait_for_head()
        elif self._unsent_bytes:
            self.drop()
        else:
            self._stop_waiting()
            self.transport.close()
