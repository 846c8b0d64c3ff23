"""What the routes ask for by name. The lifespan in `app.gateway` makes the services, one set per process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast
from urllib.parse import urlsplit

import structlog
from anyio import CapacityLimiter
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis
from starlette.requests import ClientDisconnect

from app.errors import UnauthorizedError, translate
from app.keys import SESSION_COOKIE, ApiKeys, key_in_cookie
from app.metrics import GatewayMetrics
from app.settings import GatewaySettings, is_loopback
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

if TYPE_CHECKING:
    from app.limits import Slots


@dataclass(frozen=True)
class UploadThreads:
    """Threads for uploads alone, so that a request for a job never waits for one behind two hundred files.

    Few write, which keeps processors busy; more sync, which waits for the disk; one hash of a whole file takes a while.
    Whoever accepts may have to wait for another to do so; so may whoever retries a job or asks for a preview.
    """

    writing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    syncing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    hashing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    accepting: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(16))


@dataclass(frozen=True)
class Services:
    settings: GatewaySettings
    api_keys: ApiKeys
    redis: Redis
    storage: JobStorage
    min_free_bytes: int
    registry: JobRegistry
    queue: TaskQueue
    metrics: GatewayMetrics
    upload_slots: "Slots"
    listener_slots: "Slots"
    upload_threads: UploadThreads = field(default_factory=UploadThreads)
    session_openings: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(32))


async def services(request: Request) -> Services:  # async: it needs no thread, and no turn among those that do
    return cast(Services, request.state.services)


ServicesDep = Annotated[Services, Depends(services)]

_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key of this service.")
_bearer = HTTPBearer(auto_error=False, description="The same key as a bearer token.")
_cookie = APIKeyCookie(
    name=SESSION_COOKIE, auto_error=False, description="For browsers: `PUT /v1/session` sets it. See `app.sessions`."
)
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


async def require_api_key(
    request: Request,
    services: ServicesDep,
    key: Annotated[str | None, Security(_key_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    cookie: Annotated[str | None, Security(_cookie)],
) -> str | None:
    """The id of the caller's key. None where no keys are configured: then programs on this machine need none.

    A key sent on purpose counts before the one that a browser sends along. Runs before a byte of the body is read.
    """
    if not services.api_keys.are_configured:
        if is_sent_by_another_page(request):
            raise UnauthorizedError("Without API keys this service answers no pages of other sites (see VSR_API_KEYS).")
        if not _is_called_by_its_name(request, services.settings):
            raise UnauthorizedError(
                "Without API keys this service answers only as localhost (see VSR_API_KEYS, VSR_ALLOWED_HOSTS)."
            )
        if services.settings.allow_anonymous or _is_local(request):
            return None
        raise UnauthorizedError("This service has no API keys and answers only on its own machine (see VSR_API_KEYS).")
    candidate = key or (bearer.credentials if bearer else None)
    if candidate is None and cookie is not None:
        if request.method not in _SAFE_METHODS and not _is_sent_by_own_page(request):
            raise UnauthorizedError("With the session's cookie, only this service's own page may change anything.")
        candidate = key_in_cookie(cookie)
    if candidate is None:
        raise UnauthorizedError("Send the key as X-API-Key or as a bearer token.")
    known = services.api_keys.find(candidate)
    if known is None:
        raise UnauthorizedError("The API key is not one of this service's keys.")
    structlog.contextvars.bind_contextvars(owner=known.id, owner_name=known.name)
    return known.id


async def is_let_in(request: Request, services: Services) -> bool:
    """Whether `require_api_key` would let this request pass."""
    try:
        await require_api_key(
            request, services, await _key_header(request), await _bearer(request), await _cookie(request)
        )
    except UnauthorizedError:
        return False
    return True


OwnerDep = Annotated[str | None, Depends(require_api_key)]
"""Whose jobs and uploads a request may see. None: no keys are configured, and all are everybody's."""


async def count_rejections(services: ServicesDep) -> AsyncIterator[None]:
    """Around an upload or a submission: counts what it was refused for."""
    try:
        yield
    except ClientDisconnect:
        raise
    except Exception as error:
        services.metrics.jobs_rejected.labels(translate(error).code).inc()
        raise


def _is_local(request: Request) -> bool:
    # A unix socket's client has no address.
    return request.client is None or is_loopback(request.client.host)


def _is_called_by_its_name(request: Request, settings: GatewaySettings) -> bool:
    """A site that has its own name lead to this machine makes its pages ours in a browser's eyes: DNS rebinding."""
    name = request.url.hostname or ""
    allowed = settings.allowed_hosts if settings.allow_anonymous else []
    return is_loopback(name) or "*" in allowed or name.lower() in (host.lower() for host in allowed)


def is_sent_by_another_page(request: Request) -> bool:
    """By a page of another site in the user's browser: it could not read the answer, but it could fill the queue."""
    return "origin" in request.headers and not _is_sent_by_own_page(request)


def _is_sent_by_own_page(request: Request) -> bool:
    """What the browser says of the page, which no page can forge; older browsers name its origin alone."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    return origin is not None and urlsplit(origin).netloc == request.url.netloc
