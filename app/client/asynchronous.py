"""The client for programs with an event loop (asyncio or trio)."""

from pathlib import Path
from types import TracebackType
from typing import Self

from app.client.api import Api
from app.client.lines import AsyncLine
from app.client.service import Service, headers_for


class AsyncClient(Api):
    """Use as an asynchronous context manager. Every method may raise a `ClientError`."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        *,
        patience_seconds: float = 20.0,
        uploads_dir: Path | None = None,
    ) -> None:
        """As of `Client`."""
        super().__init__(
            Service(AsyncLine(base_url, headers_for(api_key), timeout_seconds), patience_seconds), uploads_dir
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
