"""Alive and ready, open without a key: they tell what is missing, nothing about a job. And the metrics, which are not.

How busy the service is, and what its users do wrong, is the operator's business: /metrics is behind a key, or on a port
of its own (`gateway_metrics_port`), which only Prometheus reaches.
"""

import os
from typing import cast

from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from app.dependencies import Services, ServicesDep, require_api_key
from app.errors import UnauthorizedError, responses
from app.metrics import worker_states
from app.schemas import Health, Readiness
from worker.contract.cage_gaps import is_there_a_cage_gap

router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"], dependencies=[Depends(require_api_key)])


@router.get("/healthz", summary="Is the process alive?")
async def get_health() -> Health:
    return Health(status="alive")


@router.get(
    "/readyz",
    summary="Can jobs be accepted?",
    responses={503: {"model": Readiness, "description": "Not ready; `missing` says why."}},
)
def get_readiness(services: ServicesDep, response: Response) -> Readiness:
    """Without workers the service is ready all the same: jobs are kept until one comes; `workers` tells."""
    missing = _missing_storage(services)
    warnings = []
    workers = None
    try:
        workers = len(worker_states(services.redis))
        warnings = redis_warnings(services.redis)
        if not workers:
            warnings.append("no live worker: jobs are accepted and wait")
        if is_there_a_cage_gap(services.redis):
            warnings.append("a worker reads videos with less protection than there could be: its log says which (cage)")
    except RedisError:
        missing.append("redis does not answer")
    if missing:
        response.status_code = 503
    return Readiness(status="not_ready" if missing else "ready", missing=missing, warnings=warnings, workers=workers)


@metrics_router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=responses(UnauthorizedError),
)
def get_metrics(services: ServicesDep) -> Response:
    return Response(generate_latest(services.metrics.prometheus), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def redis_warnings(redis: Redis) -> list[str]:
    """What in Redis's configuration puts accepted jobs at risk."""
    try:
        found = cast(dict[str, str], redis.config_get("maxmemory-policy", "appendonly"))
    except ResponseError:  # managed services do not let it be read
        return [
            "redis does not show its configuration: make sure that it has appendonly yes, maxmemory-policy noeviction"
        ]
    warnings = []
    if found.get("maxmemory-policy") != "noeviction":
        warnings.append("redis may forget jobs when its memory is full: set maxmemory-policy noeviction")
    if found.get("appendonly") != "yes":
        warnings.append("redis forgets its queue in a crash: set appendonly yes")
    return warnings


def _missing_storage(services: Services) -> list[str]:
    storage = services.storage
    if not all(os.access(folder, os.W_OK) for folder in (storage.jobs, storage.uploads)):
        return ["storage is not writable"]
    if storage.free_bytes() < services.min_free_bytes:
        return [f"storage has less than {services.min_free_bytes} bytes free"]
    return []
