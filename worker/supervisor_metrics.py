"""What the supervisor serves: the sum of its processes' figures, what it sees itself, and the GPUs."""

import platform
import struct
import threading
from collections import Counter as Counter_
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from worker.contract.failure import FailureCode
from worker.contract.job import JobStatus
from worker.gpus import gpu_figures

log = structlog.get_logger(__name__)

DEATH_REASONS = ("signal", "out_of_memory", "canceled", "lease_lost", "stalled", "redis_lost", "bug")


class SupervisorMetrics:
    """Serves `/metrics` until `close`. `folder` is where the worker processes write theirs."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        registry = CollectorRegistry()
        self._failed_here: Counter_[str] = Counter_()
        self._lock = threading.Lock()
        self._workers = _WorkersCollector(folder, self._failed_here)
        registry.register(self._workers)
        registry.register(_GpuCollector())
        self.deaths = Counter(
            "vsr_worker_deaths_total", "Worker processes that ended unasked.", ["reason"], registry=registry
        )
        for reason in DEATH_REASONS:
            self.deaths.labels(reason)
        self.requeued = Counter("vsr_tasks_requeued_total", "Tasks taken back from the dead.", registry=registry)
        self.recovery_seconds = Histogram(
            "vsr_recovery_seconds",
            "From seeing a worker process dead to its task being back in the queue.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 30, 60, 300),
            registry=registry,
        )
        self.processes = Gauge("vsr_worker_processes", "Worker processes alive on this host.", registry=registry)
        Gauge("vsr_build_info", "1, with the versions.", ["version", "python"], registry=registry).labels(
            version("twostep-vsr"), platform.python_version()
        ).set(1)
        ProcessCollector(registry=registry)
        self._server: WSGIServer
        self._thread: threading.Thread
        self._server, self._thread = start_http_server(port, host, registry)

    @property
    def port(self) -> int:
        return self._server.server_port

    def note_failed_job(self, code: FailureCode) -> None:
        """A job that the supervisor itself had to end counts among those that the processes ended."""
        with self._lock:  # the supervisor's loop and its reconciler
            self._failed_here[code] += 1

    def note_death(self, pid: int, reason: str) -> None:
        self.deaths.labels(reason).inc()
        self.forget(pid)

    def forget(self, pid: int) -> None:
        """Gauges of the living no longer hold for this process; what it has counted stays counted."""
        self._workers.take_over(pid)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _WorkersCollector(Collector):
    """The sum of what the processes wrote, and of the jobs that were ended for them.

    What a process had counted when it died is added up here, and its files are removed: else every scrape would read
    the files of all that ever died, a quarter of a second for a hundred of them.
    """

    def __init__(self, folder: Path, failed_here: Mapping[str, int]) -> None:
        self._folder = folder
        self._processes = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]
        self._failed_here = failed_here
        self._of_the_dead: list[Metric] = []
        # Or a scrape could find a process counted in both places, or in none.
        self._moving = threading.Lock()

    def take_over(self, pid: int) -> None:
        """Of a process that has ended."""
        with self._moving:
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
            files = [file for kind in ("counter", "histogram") for file in self._folder.glob(f"{kind}_{pid}.db")]
            try:
                left = MultiProcessCollector.merge([str(file) for file in files])  # type: ignore[no-untyped-call]
            except (RuntimeError, ValueError, struct.error) as error:  # cut off in the middle of a number
                log.warning("metrics_of_dead_process_lost", pid=pid, reason=str(error))
            else:
                self._of_the_dead = _summed([*self._of_the_dead, *left])
            for file in files:
                file.unlink()

    def collect(self) -> Iterator[Metric]:
        with self._moving:
            families = _summed([*self._processes.collect(), *self._of_the_dead])  # type: ignore[no-untyped-call]
        for family in families:
            if family.name == "vsr_jobs_finished":
                family.samples = [
                    sample._replace(value=sample.value + self._failed_here.get(sample.labels["reason"], 0))
                    if sample.labels["status"] == JobStatus.FAILED
                    else sample
                    for sample in family.samples
                ]
            yield family


def _summed(families: Iterable[Metric]) -> list[Metric]:
    """One of each name, in which samples of the same labels are added up. The given ones are left as they are."""
    of_name: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
    for family in families:
        of_name.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        known = values.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            known[key] = sample._replace(value=sample.value + known[key].value) if key in known else sample
    for name, family in of_name.items():
        family.samples = list(values[name].values())
    return list(of_name.values())


class _GpuCollector(Collector):
    """Asked at every scrape. Without an NVIDIA driver both families are there, empty."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        memory = GaugeMetricFamily("vsr_gpu_memory_bytes", "Memory of the GPU, used and total.", labels=["gpu", "kind"])
        busy = GaugeMetricFamily("vsr_gpu_utilization_ratio", "Share of time that the GPU was busy.", labels=["gpu"])
        for gpu in gpu_figures():
            memory.add_metric([str(gpu.index), "used"], gpu.memory_used_bytes)
            memory.add_metric([str(gpu.index), "total"], gpu.memory_total_bytes)
            busy.add_metric([str(gpu.index)], gpu.utilization_ratio)
        yield memory
        yield busy
