"""What the courier counts, and its own /metrics."""

import platform
import threading
from collections.abc import Iterator
from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from worker.contract.errands import ErrandKind, Errands
from worker.contract.failure import FailureCode
from worker.contract.job import JobStatus

log = structlog.get_logger(__name__)

FETCH_OUTCOMES = ("fetched", "existing", "postponed", "failed", "stopped")
DELIVERY_OUTCOMES = ("delivered", "failed", "gone", "given_up")
# What a job can fail of before a worker has seen it.
FETCH_FAILURES = (
    FailureCode.SOURCE_REFUSED,
    FailureCode.SOURCE_UNREACHABLE,
    FailureCode.LIMIT_EXCEEDED,
    FailureCode.EMPTY_FILE,
    FailureCode.OUT_OF_DISK,
    FailureCode.WORKER_LOST,
)


class CourierMetrics:
    def __init__(self, errands: Errands) -> None:
        self.prometheus = CollectorRegistry()
        self.fetches = Counter(
            "vsr_source_fetches_total",
            "Attempts to fetch a source: fetched, existing (by an earlier attempt), postponed (to be tried again), "
            "failed (and the job with it), stopped (the job ended).",
            ["outcome"],
            registry=self.prometheus,
        )
        self.fetched_bytes = Counter(
            "vsr_source_fetched_bytes_total", "Bytes of sources received.", registry=self.prometheus
        )
        self.deliveries = Counter(
            "vsr_webhook_deliveries_total",
            "Attempts to deliver an event: delivered, failed (to be tried again), gone (the receiver's 410), given_up.",
            ["outcome"],
            registry=self.prometheus,
        )
        # The workers and the gateway count the other ends under the same name.
        self.jobs_finished = Counter(
            "vsr_jobs_finished_total",
            "Jobs that failed here: their source could not be had.",
            ["status", "reason"],
            registry=self.prometheus,
        )
        for outcome in FETCH_OUTCOMES:
            self.fetches.labels(outcome)
        for outcome in DELIVERY_OUTCOMES:
            self.deliveries.labels(outcome)
        for reason in FETCH_FAILURES:
            self.jobs_finished.labels(JobStatus.FAILED, reason)
        Gauge("vsr_build_info", "1, with the versions.", ["version", "python"], registry=self.prometheus).labels(
            version("twostep-vsr"), platform.python_version()
        ).set(1)
        ProcessCollector(registry=self.prometheus)
        self.prometheus.register(_PendingCollector(errands))


class MetricsServer:
    def __init__(self, metrics: CourierMetrics, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, host, metrics.prometheus)

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _PendingCollector(Collector):
    """Asked at every scrape."""

    def __init__(self, errands: Errands) -> None:
        self._errands = errands

    def describe(self) -> list[GaugeMetricFamily]:
        """Empty: registering must not ask Redis, which may be away."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        webhooks = GaugeMetricFamily("vsr_webhook_pending", "Jobs whose end is still to be told.")
        fetches = GaugeMetricFamily("vsr_source_fetches_pending", "Jobs whose source is still to be fetched.")
        try:
            webhooks.add_metric([], self._errands.count(ErrandKind.WEBHOOK))
            fetches.add_metric([], self._errands.count(ErrandKind.FETCH))
        except RedisError as error:
            log.warning("redis did not answer the scrape", error=str(error))
        yield webhooks
        yield fetches
