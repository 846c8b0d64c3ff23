"""What our processes really serve to Prometheus, which the dashboard and the alerts must agree with."""

import re
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from redis import Redis
from starlette.testclient import TestClient

import worker.metrics
from app.courier.metrics import CourierMetrics
from app.gateway import create_app
from app.settings import GatewaySettings
from worker.contract.errands import Errands
from worker.contract.settings import RedisSettings, StorageSettings
from worker.supervisor_metrics import SupervisorMetrics


@pytest.fixture(scope="session")
def served_pages(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of gateway, supervisor, courier, and of a worker process, which the supervisor serves with its own."""
    gateway = create_app(
        GatewaySettings(),
        RedisSettings(redis_url=SecretStr(redis_url)),
        StorageSettings(storage_dir=tmp_path_factory.mktemp("storage")),
    )
    with TestClient(gateway, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1234)) as client:
        client.get("/healthz")
        pages = [client.get("/metrics").text]

    supervisor = SupervisorMetrics(tmp_path_factory.mktemp("metrics"), "127.0.0.1", 0)
    try:
        pages.append(httpx2.get(f"http://127.0.0.1:{supervisor.port}/metrics", trust_env=False).text)
    finally:
        supervisor.close()

    with Redis.from_url(redis_url) as redis:
        pages.append(generate_latest(CourierMetrics(Errands(redis)).prometheus).decode())

    process = CollectorRegistry()
    for metric in vars(worker.metrics).values():
        if isinstance(metric, MetricWrapperBase):
            process.register(metric)
    pages.append(generate_latest(process).decode())
    return pages


@pytest.fixture(scope="session")
def served_series(served_pages: list[str]) -> set[str]:
    """Names of all series, e.g. `vsr_job_wait_seconds_bucket`, and those that are Prometheus's own."""
    families = [family for page in served_pages for family in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)]
    return {"up", "ALERTS"} | {
        name + suffix
        for name, kind in families
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[2]


def series_in(expression: str) -> set[str]:
    """The series that a PromQL expression reads: its words less functions, labels, label values and durations."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\[[^\]]*\]|\{[^}]*\}", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b", bare))
    return words - {"and", "or", "unless", "by", "sum", "max", "min", "avg", "count"}
