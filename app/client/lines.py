"""The line to a service: once one that blocks, once one for an event loop. All else of the client is written once.

What the client does is a coroutine over a `Line`. A `BlockingLine` does its work inside the awaits and never suspends
them, so `run` drives such a coroutine to its end by itself, without any event loop; an `AsyncLine` suspends as usual.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import httpx2

from app.client.errors import ServiceUnreachableError, SourceChangedError

_CHUNK_BYTES = 256 * 1024
_CONNECT_SECONDS = 5.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FilePart:
    """The bytes of a file from `start_bytes` up to `end_bytes`, as the body of a request."""

    path: Path
    start_bytes: int
    end_bytes: int
    on_sent: Callable[[int], None]
    """Told how many bytes of the file are sent, those before `start_bytes` included."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Length": str(self.end_bytes - self.start_bytes)}

    def chunks(self) -> Iterator[bytes]:
        left_bytes = self.end_bytes - self.start_bytes
        with self.path.open("rb") as file:
            file.seek(self.start_bytes)
            while left_bytes:
                chunk = file.read(min(_CHUNK_BYTES, left_bytes))
                if not chunk:
                    raise SourceChangedError(f"{self.path} became shorter while it was uploaded")
                left_bytes -= len(chunk)
                yield chunk


class Stream(Protocol):
    """An answer whose body is read as it comes. One of more than 400 has been read already."""

    @property
    def response(self) -> httpx2.Response: ...

    def chunks(self) -> AsyncGenerator[bytes]: ...

    def events(self) -> AsyncGenerator[httpx2.ServerSentEvent]: ...


class Line(Protocol):
    """Every method that talks raises `ServiceUnreachableError` where the line fails."""

    url: str

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        body: FilePart | None = None,
    ) -> httpx2.Response:
        """Send one request and read the whole answer, whatever its status."""

    def stream(
        self, path: str, headers: Mapping[str, str], silence_seconds: float | None = None
    ) -> AbstractAsyncContextManager[Stream]:
        """GET. `silence_seconds`: how long nothing may come; None: as for every request."""

    async def pause(self, seconds: float) -> None: ...

    async def work(self, function: Callable[[], _Result]) -> _Result:
        """Do what blocks: files, checksums."""

    async def close(self) -> None: ...


class BlockingLine:
    def __init__(self, url: str, headers: Mapping[str, str], timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        with _failures_named(self.url):
            self._http = httpx2.Client(base_url=url, headers=headers, timeout=_timeout(timeout_seconds))

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        body: FilePart | None = None,
    ) -> httpx2.Response:
        headers = {**(headers or {}), **(body.headers if body else {})}
        content = self._content(body) if body else None
        with _failures_named(self.url):
            return self._http.request(method, path, headers=headers, params=params, json=json, content=content)

    @staticmethod
    def _content(body: FilePart) -> Iterator[bytes]:
        sent_bytes = body.start_bytes
        for chunk in body.chunks():
            yield chunk
            sent_bytes += len(chunk)
            body.on_sent(sent_bytes)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], silence_seconds: float | None = None
    ) -> AsyncIterator[Stream]:
        timeout = _timeout(silence_seconds) if silence_seconds else self._http.timeout
        with (
            _failures_named(self.url),
            self._http.stream("GET", path, headers=headers, timeout=timeout) as response,
        ):
            if response.is_error:
                response.read()
            yield _BlockingStream(response)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def work(self, function: Callable[[], _Result]) -> _Result:
        return function()

    async def close(self) -> None:
        self._http.close()


@dataclass(frozen=True)
class _BlockingStream:
    response: httpx2.Response

    async def chunks(self) -> AsyncGenerator[bytes]:
        for chunk in self.response.iter_raw(_CHUNK_BYTES):
            yield chunk

    async def events(self) -> AsyncGenerator[httpx2.ServerSentEvent]:
        for event in httpx2.EventSource(self.response):
            yield event


class AsyncLine:
    def __init__(self, url: str, headers: Mapping[str, str], timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        with _failures_named(self.url):
            self._http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=_timeout(timeout_seconds))

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        body: FilePart | None = None,
    ) -> httpx2.Response:
        headers = {**(headers or {}), **(body.headers if body else {})}
        content = self._content(body) if body else None
        with _failures_named(self.url):
            return await self._http.request(method, path, headers=headers, params=params, json=json, content=content)

    async def _content(self, body: FilePart) -> AsyncIterator[bytes]:
        sent_bytes, chunks = body.start_bytes, body.chunks()
        while chunk := await self.work(partial(next, chunks, b"")):
            yield chunk
            sent_bytes += len(chunk)
            body.on_sent(sent_bytes)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], silence_seconds: float | None = None
    ) -> AsyncIterator[Stream]:
        timeout = _timeout(silence_seconds) if silence_seconds else self._http.timeout
        with _failures_named(self.url):
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    await response.aread()
                yield _AsyncStream(response)

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def work(self, function: Callable[[], _Result]) -> _Result:
        return await anyio.to_thread.run_sync(function)

    async def close(self) -> None:
        await self._http.aclose()


@dataclass(frozen=True)
class _AsyncStream:
    response: httpx2.Response

    async def chunks(self) -> AsyncGenerator[bytes]:
        async for chunk in self.response.aiter_raw(_CHUNK_BYTES):
            yield chunk

    async def events(self) -> AsyncGenerator[httpx2.ServerSentEvent]:
        async for event in httpx2.EventSource(self.response):
            yield event


def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine over a `BlockingLine`."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _Result = end.value
        return result
    finally:
        coroutine.close()
    raise RuntimeError("a coroutine over a blocking line has waited for an event loop")


def iterate(items: AsyncGenerator[_Result]) -> Iterator[_Result]:
    """The items of an asynchronous generator over a `BlockingLine`, which is closed whenever this is."""
    try:
        while True:
            try:
                yield run(_next(items))
            except StopAsyncIteration:
                return
    finally:
        run(items.aclose())


async def _next(items: AsyncGenerator[_Result]) -> _Result:
    return await anext(items)


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=_CONNECT_SECONDS)


@contextmanager
def _failures_named(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise ServiceUnreachableError(
            url,
            str(error) or type(error).__name__,
            never_connected=isinstance(
                error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol | httpx2.InvalidURL
            ),
            was_silent=isinstance(error, httpx2.ReadTimeout),
        ) from error
