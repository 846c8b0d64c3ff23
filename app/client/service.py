"""Requests to the service: tried again while that may help, and answers that are checked to be its own."""

import random
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from app.client.errors import (
    ClientError,
    ForeignResponseError,
    ProblemResponseError,
    ProxyResponseError,
    ServiceUnreachableError,
    TryLaterResponseError,
    raise_problem,
)
from app.client.lines import FilePart, Line

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 8.0

PASSING_ERRORS = (ServiceUnreachableError, ProxyResponseError, TryLaterResponseError)
"""What may be otherwise at the next try."""

_Model = TypeVar("_Model", bound=BaseModel)


def headers_for(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    key = {"X-API-Key": api_key} if api_key else {}
    return key | {"User-Agent": f"twostep-vsr/{version('twostep-vsr')}"}


class Patience:
    """How long something is tried again: `seconds` from its first failure, or from the last time it got on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._ends_at = 0.0

    def renew(self) -> None:
        """It got on: what failed before does not count any more."""
        self._failures = 0

    def pause_after(self, error: ClientError) -> float:
        """The seconds to wait before the next try: what the service asks for, else longer each time, and by chance.

        Raises `error` where patience would end before that.
        """
        now = time.monotonic()
        if self._failures == 0:
            self._ends_at = now + self._seconds
        asked = error.retry_after_seconds if isinstance(error, ProblemResponseError) else None
        # By chance, so that all clients of a service that was away do not come back at the same moment.
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._failures)
        pause = asked if asked is not None else longest * random.uniform(0.5, 1)  # noqa: S311  # no secret
        self._failures += 1
        if now + pause > self._ends_at:
            raise error
        return pause


class Service:
    """Every request here may be sent twice without harm: by its method, its Idempotency-Key, or what it asks for."""

    def __init__(self, line: Line, patience_seconds: float) -> None:
        self.line = line
        self._patience_seconds = patience_seconds
        self._has_answered = False

    def patience(self, seconds: float | None = None) -> Patience:
        return Patience(self._patience_seconds if seconds is None else seconds)

    async def ask(self, model: type[_Model], method: str, path: str, **request: Any) -> _Model:  # noqa: ANN401
        """The answer as `model`. `request` as of `Line.exchange`."""
        response = await self.request(method, path, **request)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise ForeignResponseError(f"{response.url} did not answer as this service does") from error

    async def request(self, method: str, path: str, **request: Any) -> httpx2.Response:  # noqa: ANN401
        """The answer of a success. `request` as of `Line.exchange`."""
        patience = self.patience()
        while True:
            try:
                return await self.try_once(method, path, **request)
            except PASSING_ERRORS as error:
                await self.wait_after(error, patience)

    async def try_once(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        body: FilePart | None = None,
    ) -> httpx2.Response:
        response = await self.line.exchange(method, path, headers=headers, params=params, json=json, body=body)
        self.check(response)
        return response

    def check(self, response: httpx2.Response) -> None:
        """Raise the problem that an answer tells of."""
        raise_problem(response)
        self._has_answered = True

    async def wait_after(self, error: ClientError, patience: Patience, *, at_least_seconds: float = 0.0) -> None:
        """Wait until it is time to try again. Raises `error` where that would be in vain.

        An address where nothing has ever answered is more likely wrong than for a moment without its service.
        """
        is_away = isinstance(error, ProxyResponseError) or (
            isinstance(error, ServiceUnreachableError) and error.never_connected
        )
        if is_away and not self._has_answered:
            raise error
        await self.line.pause(max(at_least_seconds, patience.pause_after(error)))
