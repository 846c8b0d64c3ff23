"""The gateway, assembled: what it opens, what it serves, what surrounds every request. Nothing happens at import."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

import structlog
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from app import (
    documentation,
    estimates,
    events,
    health,
    jobs,
    live,
    models,
    results,
    sessions,
    submissions,
    tus,
    uploads,
    webhooks,
)
from app.dependencies import Services
from app.documentation import DocumentedApi
from app.errors import (
    TooManyKeyListenersError,
    TooManyKeyUploadsError,
    TooManyListenersError,
    TooManyUploadsError,
    add_error_handlers,
)
from app.events import JobEvents
from app.health import redis_warnings
from app.janitor import Janitor
from app.keys import ApiKeys
from app.limits import Slots
from app.metrics import GatewayMetrics
from app.middleware import QUIET_PATHS, AccessLogMiddleware, SecurityHeadersMiddleware
from app.page import add_page
from app.resumable import Turns
from app.settings import GatewaySettings
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.settings import RedisSettings, StorageSettings
from worker.contract.storage import JobStorage

log = structlog.get_logger(__name__)

# redis-py's defaults keep a request waiting for 59 seconds when Redis is frozen; a client is better told soon.
_REDIS_TIMEOUT_SECONDS = 2.0
_REDIS_RETRIES = 1
_REDIS_RETRY_PAUSE_SECONDS = 0.05


class RedisAddressError(Exception):
    """No Redis was named, or by what is no address."""


class State(TypedDict):
    services: Services
    upload_turns: Turns
    job_events: JobEvents


def create_app(settings: GatewaySettings, redis_settings: RedisSettings, storage_settings: StorageSettings) -> FastAPI:
    """Raises `RedisAddressError` without a usable `redis_url`, `KeysError` without a usable keys file.

    Redis itself may come and go: see /readyz.
    """
    redis = open_redis(redis_settings)
    storage = JobStorage(storage_settings.storage_dir)
    registry = JobRegistry(redis, storage)
    services = Services(
        settings=settings,
        api_keys=ApiKeys(settings.api_keys, settings.api_keys_file),
        redis=redis,
        storage=storage,
        min_free_bytes=storage_settings.min_free_bytes,
        registry=registry,
        queue=TaskQueue(redis),
        metrics=GatewayMetrics(redis, registry, storage),
        upload_slots=Slots(
            settings.max_uploads, settings.max_uploads_per_key, TooManyUploadsError, TooManyKeyUploadsError
        ),
        # The other half stays for those who want something done.
        listener_slots=Slots(
            max(1, settings.max_connections // 2),
            settings.max_listeners_per_key,
            TooManyListenersError,
            TooManyKeyListenersError,
        ),
    )

    services.metrics.uploads_under_way.set_function(lambda: services.upload_slots.taken)
    janitor = Janitor(settings, redis, storage, registry, services.queue, services.metrics)
    job_events = JobEvents(services)
    services.metrics.event_streams.set_function(job_events.listeners)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        await run_in_threadpool(_prepare, services, janitor)
        with janitor.at_work():
            async with job_events.at_work():
                yield State(services=services, upload_turns=Turns(), job_events=job_events)
        redis.close()

    app = DocumentedApi(
        title="twostep-vsr",
        version=version("twostep-vsr"),
        description="Video super-resolution as a service: a video in, the same video at twice the size out.",
        openapi_tags=documentation.TAGS,
        lifespan=lifespan,
        # FastAPI's pages load scripts from another host; `app.documentation` does not.
        docs_url=None,
        redoc_url=None,
        # Spans where `worker.contract.tracing` was started; figures and logs we have.
        telemetry={
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope.get("path") in QUIET_PATHS,
        },
        # The outermost comes first.
        middleware=[
            Middleware(CorrelationIdMiddleware),
            Middleware(AccessLogMiddleware),
            Middleware(SecurityHeadersMiddleware),
            Middleware(tus.TusMiddleware),
        ],
    )
    for module in (sessions, uploads, tus, submissions, jobs, events, live, results, webhooks):
        app.include_router(module.router)
    for module in (estimates, models, health, documentation):
        app.include_router(module.router)
    app.include_router(tus.options_router)
    add_page(app)
    if settings.gateway_metrics_port is None:
        app.include_router(health.metrics_router)
    app.state.prometheus = services.metrics.prometheus
    app.state.end_streams = job_events.close
    add_error_handlers(app)
    # An answer that takes its time because the client does, or because a job does, says nothing of the gateway's speed.
    Instrumentator(registry=services.metrics.prometheus, should_exclude_streaming_duration=True).instrument(app)
    return app


def open_redis(settings: RedisSettings) -> Redis:
    """A client for requests: it fails within seconds. Connects when first used."""
    if settings.redis_url is None:
        raise RedisAddressError("no Redis: set VSR_REDIS_URL, or run `vsr serve`, which brings its own")
    try:
        return Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
            retry=Retry(ConstantBackoff(_REDIS_RETRY_PAUSE_SECONDS), _REDIS_RETRIES),
        )
    except ValueError as error:
        raise RedisAddressError(
            "VSR_REDIS_URL is no address of a Redis: it reads like redis://host:6379/0 or unix:///folder/redis.sock"
        ) from error


def _prepare(services: Services, janitor: Janitor) -> None:
    services.storage.prepare()
    janitor.sweep_dead()
    try:
        for warning in redis_warnings(services.redis):
            log.warning(warning)
    except RedisError:
        log.warning("redis does not answer yet: jobs are refused until it does")
