"""The gateway's metrics, one list. Queue figures are read from Redis at each scrape.

Only LLEN, ZCARD and plain reads: RQ's own counters clean up as they count, and two at once enqueue a lost task twice.
No label ever holds a job id or anything else without bounds.
"""

import platform
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from typing import cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError
from rq.utils import utcparse

from worker.contract.job import JobStatus
from worker.contract.queue import QUEUE_NAME, TaskKind
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

log = structlog.get_logger(__name__)

# Codes of `app.errors` and of the contract that a submission can be refused with; a test holds that none is missing.
REJECTION_REASONS = (
    "checksum_mismatch",
    "empty_file",
    "idempotency_conflict",
    "idempotency_key_reused",
    "internal",
    "invalid_request",
    "malformed_body",
    "out_of_disk",
    "queue_unavailable",
    "source_url_disabled",
    "storage_of_key_full",
    "too_many_jobs",
    "too_many_jobs_of_key",
    "too_many_uploads",
    "too_many_uploads_of_key",
    "unauthorized",
    "unknown_preset",
    "unsupported_checksum",
    "unsupported_media_type",
    "unsupported_tus_version",
    "upload_busy",
    "upload_not_found",
    "upload_offset",
    "upload_overrun",
    "upload_stalled",
    "upload_taken_over",
    "upload_too_large",
    "url_refused",
    "webhook_disabled",
)
# Tasks that a crash put back stand at the head of the queue; the oldest is among the first of them.
_HEAD_TASKS = 16


JANITOR_OUTCOMES = ("done", "skipped", "failed")
# What `app.janitor` counts.
REMOVED_KINDS = ("partial", "upload", "deleted", "unaccepted", "segments", "media", "job")


class GatewayMetrics:
    def __init__(self, redis: Redis, registry: JobRegistry, storage: JobStorage) -> None:
        self.prometheus = CollectorRegistry()
        self.upload_bytes = Counter(
            "vsr_upload_bytes_total", "Bytes of source files received.", registry=self.prometheus
        )
        self.jobs_submitted = Counter("vsr_jobs_submitted_total", "Jobs accepted.", registry=self.prometheus)
        # The workers count the other ends under the same name.
        self.jobs_canceled = Counter(
            "vsr_jobs_finished_total", "Jobs that were canceled here.", ["status", "reason"], registry=self.prometheus
        ).labels(status=JobStatus.CANCELED, reason="")
        self.jobs_rejected = Counter(
            "vsr_jobs_rejected_total", "Submissions and uploads refused.", ["reason"], registry=self.prometheus
        )
        for reason in REJECTION_REASONS:
            self.jobs_rejected.labels(reason)
        self.uploads_under_way = Gauge(
            "vsr_uploads", "Uploads that this gateway receives now.", registry=self.prometheus
        )
        self.event_streams = Gauge(
            "vsr_event_streams", "Clients of this gateway that follow a job now.", registry=self.prometheus
        )
        self.janitor_rounds = Counter(
            "vsr_janitor_rounds_total",
            "Rounds for expired and abandoned files; skipped: another gateway was at it.",
            ["outcome"],
            registry=self.prometheus,
        )
        for outcome in JANITOR_OUTCOMES:
            self.janitor_rounds.labels(outcome)
        self.janitor_removed = Counter(
            "vsr_janitor_removed_total",
            "What the janitor removed; media: source and result of an expired job.",
            ["kind"],
            registry=self.prometheus,
        )
        for kind in REMOVED_KINDS:
            self.janitor_removed.labels(kind)
        Gauge("vsr_build_info", "1, with the versions.", ["version", "python"], registry=self.prometheus).labels(
            version("twostep-vsr"), platform.python_version()
        ).set(1)
        ProcessCollector(registry=self.prometheus)
        self.prometheus.register(QueueCollector(redis, registry, storage))


class QueueCollector(Collector):
    def __init__(self, redis: Redis, registry: JobRegistry, storage: JobStorage) -> None:
        self._redis = redis
        self._registry = registry
        self._storage = storage

    def describe(self) -> list[GaugeMetricFamily]:
        """Empty: registering must not ask Redis, which may be away."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        free_bytes = GaugeMetricFamily("vsr_storage_free_bytes", "Free space of the storage folder's disk.")
        free_bytes.add_metric([], self._storage.free_bytes())
        yield free_bytes

        redis_up = GaugeMetricFamily("vsr_redis_up", "1 if Redis answered this scrape.")
        try:
            queue_metrics = [*self._collect_queue(), *self._collect_redis()]
        except RedisError as error:
            log.warning("redis did not answer the scrape", error=str(error))
            redis_up.add_metric([], 0)
            yield redis_up
            return
        redis_up.add_metric([], 1)
        yield redis_up
        yield from queue_metrics

    def _collect_queue(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("vsr_jobs", "Jobs by status.", labels=["status"])
        for status in JobStatus:
            jobs.add_metric([status], self._registry.count(status))
        yield jobs

        waiting = [name.decode() for name in cast(list[bytes], self._redis.lrange(f"rq:queue:{QUEUE_NAME}", 0, -1))]
        tasks = GaugeMetricFamily("vsr_queue_tasks", "Tasks waiting in the queue.", labels=["kind"])
        for kind in TaskKind:
            tasks.add_metric([kind], sum(f"-{kind}" in name for name in waiting))
        yield tasks

        oldest_age = GaugeMetricFamily("vsr_queue_oldest_age_seconds", "Age of the oldest waiting task; 0 without one.")
        oldest_age.add_metric([], self._oldest_age_seconds(waiting[:_HEAD_TASKS]))
        yield oldest_age

        workers = GaugeMetricFamily("vsr_workers", "Live worker processes.", labels=["state"])
        states = worker_states(self._redis)
        for state in ("idle", "busy"):
            workers.add_metric([state], sum((other == "busy") == (state == "busy") for other in states))
        yield workers

        silence = GaugeMetricFamily(
            "vsr_worker_silence_seconds",
            "Time since the last heartbeat of the worker process that was heard of least recently; 0 without one. "
            "Busy ones beat every third of the lease, idle ones every 20 s; after 95 s a silent one is forgotten.",
        )
        silence.add_metric([], _longest_silence_seconds(self._redis))
        yield silence

    def _collect_redis(self) -> Iterator[GaugeMetricFamily]:
        found = cast(dict[str, object], self._redis.info())
        memory = GaugeMetricFamily(
            "vsr_redis_memory_bytes",
            "Memory of Redis; limit: beyond it new tasks are refused, 0: none.",
            labels=["kind"],
        )
        for kind, name in (("used", "used_memory"), ("limit", "maxmemory")):
            memory.add_metric([kind], _number(found, name))
        yield memory
        clients = GaugeMetricFamily("vsr_redis_clients", "Connections to Redis.")
        clients.add_metric([], _number(found, "connected_clients"))
        yield clients
        keeps = GaugeMetricFamily(
            "vsr_redis_append_only_ok",
            "1 if Redis wrote its append-only file when it last tried; 0: it cannot, or does not want to (appendonly).",
        )
        keeps.add_metric([], float(found.get("aof_enabled") == 1 and found.get("aof_last_write_status") == "ok"))
        yield keeps

    def _oldest_age_seconds(self, task_ids: list[str]) -> float:
        with self._redis.pipeline(transaction=False) as pipe:
            for task in task_ids:
                pipe.hget(f"rq:job:{task}", "enqueued_at")
            times = [datetime.fromisoformat(content.decode()) for content in pipe.execute() if content]
        return max((time.time() - moment.timestamp() for moment in times), default=0.0)


def worker_states(redis: Redis) -> list[str]:
    """RQ's word for what each live worker process does: idle, busy, started or suspended.

    A worker's key expires soon after its last heartbeat, so those that died without a word are not among them.
    """
    return _of_live_workers(redis, "state")


def _longest_silence_seconds(redis: Redis) -> float:
    beats = [utcparse(beat) for beat in _of_live_workers(redis, "last_heartbeat")]
    return max((time.time() - beat.timestamp() for beat in beats), default=0.0)


def _of_live_workers(redis: Redis, field: str) -> list[str]:
    keys = sorted(cast(set[bytes], redis.smembers(f"rq:workers:{QUEUE_NAME}")))
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(key, field)
        return [value.decode() for value in pipe.execute() if value]


def _number(found: dict[str, object], name: str) -> float:
    """0 where a Redis of another make does not say."""
    value = found.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
