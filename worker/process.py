"""One worker process: loads its model once, then takes tasks from the queue until it is told to stop.

Started by the supervisor as `python -m worker.process`, with its settings in the environment, this is no worker yet but
the template of all (worker.process_template): with everything imported, it forks a worker whenever it is told a name,
which ends with one of `worker.exit_codes.ExitCode`.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

import structlog
from redis.client import Pipeline
from rq import Queue, SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from worker import metrics
from worker.cage import Cages, protections_in_force
from worker.confinement import YES
from worker.contract.cage_gaps import announce_cage_gap
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.logs import configure_logging
from worker.contract.processes import ending_with_parent
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings
from worker.contract.storage import JobStorage
from worker.contract.tracing import start_tracing, stop_tracing
from worker.exit_codes import EXIT_CODE_OF_FAILURE, ExitCode
from worker.loaded_models import LoadedModels, usable_device
from worker.redis_clients import patient_redis
from worker.settings import VideoLimits, WorkerSettings
from worker.task_watch import TaskWatch
from worker.tasks import Workbench, workbench

log = structlog.get_logger(__name__)

# RQ's idle wait is 15 s shorter: how often an idle worker says that it is alive.
_WORKER_TTL_SECONDS = 35
# A few beats of the lease may be missed before the gateway forgets what this process has loaded.
_BEATS_BEFORE_FORGOTTEN = 4
# Who holds a job for longer is frozen, and loses its own lease first.
_LOCK_WAIT_SECONDS = 30.0
_STOPS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """The template's life; a worker process, being a fork of it, returns from here too."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # A stop is for the workers. Whoever stops a whole group of processes must not end them through their template.
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    protections = protections_in_force(WorkerSettings(), VideoLimits())
    die_with_template = ending_with_parent(signal.SIGKILL)
    bell = _ring_when_a_child_ends()
    gc.freeze()  # what is here now is shared by all, and a collection would copy it
    orders = b""
    _say(channel, "ready")
    while True:
        select.select([channel, bell], [], [])
        with suppress(BlockingIOError):
            bell.recv(4096)
            for pid, returncode in _ended_children():
                _say(channel, "ended", pid, returncode)
        if not select.select([channel], [], [], 0)[0]:
            continue
        heard = channel.recv(65536)
        if not heard:  # the supervisor has gone
            return ExitCode.OK
        *lines, orders = (orders + heard).split(b"\n")
        for line in lines:
            name, environment = json.loads(line)
            if (pid := os.fork()) == 0:
                die_with_template()
                _become_an_own_process(channel, bell)
                return work(name, environment, protections)
            _say(channel, "forked", pid)


def _say(channel: socket.socket, word: str, *numbers: int) -> None:
    channel.sendall(json.dumps([word, *numbers]).encode() + b"\n")


def _ring_when_a_child_ends() -> socket.socket:
    """Return what can be read when that happens."""
    bell, ringer = socket.socketpair()
    bell.setblocking(False)
    ringer.setblocking(False)
    signal.set_wakeup_fd(ringer.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return bell


def _ended_children() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended[0], os.waitstatus_to_exitcode(ended[1])


def _become_an_own_process(*of_template: socket.socket) -> None:
    """Leave behind what a fork inherits and a started process has not."""
    os.setsid()
    os.close(signal.set_wakeup_fd(-1))
    for one in of_template:
        one.close()
    for number in (*_STOPS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def work(name: str, environment: dict[str, str], protections: dict[str, str]) -> int:
    """A worker process's life. `environment`: what its place has beside that of all."""
    os.environ.update(environment)
    settings, redis_settings, storage_settings = WorkerSettings(), RedisSettings(), StorageSettings()
    log_settings = LogSettings()
    configure_logging(log_settings.log_format, log_settings.log_level)
    start_tracing("vsr-worker")
    metrics.start_at_zero()
    tell_protections(protections)
    if settings.cage == "required" and not is_whole(protections):
        log.error("worker_cannot_start", code=FailureCode.CAGE_UNAVAILABLE, reason="VSR_CAGE is required")
        return ExitCode.OPTION

    if redis_settings.redis_url is None:
        raise ValueError("a worker process is started by its supervisor, with VSR_REDIS_URL")
    redis = patient_redis(redis_settings.redis_url.get_secret_value())
    storage = JobStorage(storage_settings.storage_dir, lock_wait_seconds=_LOCK_WAIT_SECONDS)
    registry = JobRegistry(redis, storage)
    queue = TaskQueue(redis)
    try:
        device = usable_device(settings.device)
        models = LoadedModels(device, settings.weights_dir, settings.tile_px, settings.batch_frames, settings.precision)
        models.get(settings.preset)
    except JobFailureError as failure:
        log.error("worker_cannot_start", code=failure.code, reason=failure.message)
        return EXIT_CODE_OF_FAILURE.get(failure.code, ExitCode.BUG)

    worker = VideoWorker(name, queue, settings.lease_seconds)
    announcement_ttl_seconds = round(settings.lease_seconds / 3 * _BEATS_BEFORE_FORGOTTEN)

    def announce() -> None:
        worker.stay_known()
        models.announce(redis, announcement_ttl_seconds)
        if not is_whole(protections):
            announce_cage_gap(redis, announcement_ttl_seconds)

    watch = TaskWatch(
        worker,
        registry,
        announce=announce,
        lease_seconds=settings.lease_seconds,
        stall_seconds=settings.stall_seconds,
    )
    worker.watch = watch
    watch.start()
    worker.cages = cages = Cages(settings, VideoLimits(), watch.check)
    cages.prepare()
    workbench.set(Workbench(registry, queue, storage, models, watch, settings, VideoLimits(), cages))
    worker.work(with_scheduler=False)
    cages.shut()
    stop_tracing()
    return ExitCode.OK if worker.asked_to_stop else ExitCode.REDIS_LOST


def tell_protections(in_force: dict[str, str]) -> None:
    """Say what stands between this machine and strangers' videos: nobody shall have to guess."""
    for protection, found in in_force.items():
        metrics.CAGE_PROTECTION.labels(protection).set(found == YES)
    if is_whole(in_force):
        log.info("cage", **in_force)
    else:
        log.warning("cage", **in_force)


def is_whole(in_force: dict[str, str]) -> bool:
    return all(found == YES for found in in_force.values())


class VideoWorker(SimpleWorker):
    """RQ's worker that runs tasks in its own process, with what it lacks: a short lease, and a stop that takes seconds.

    RQ's own holds a task for its whole timeout plus a minute, finishes it before stopping, and never notices a cancel.
    """

    watch: TaskWatch
    cages: Cages

    def __init__(self, name: str, queue: TaskQueue, lease_seconds: float) -> None:
        super().__init__(
            [queue.rq],
            name=name,
            connection=queue.rq.connection,
            serializer=JSONSerializer,
            worker_ttl=_WORKER_TTL_SECONDS,
            log_job_description=False,
        )
        self.log_result_lifespan = False
        self.log.setLevel(logging.WARNING)  # our tasks say themselves what they do, with the job's context
        self.asked_to_stop = False
        self._lease_seconds = lease_seconds
        self._wip_key = queue.rq.started_job_registry.key

    def execute_job(self, job: Job, queue: Queue) -> None:
        """And then have a cage ready for the next, so that it finds one here and need not wait for it."""
        super().execute_job(job, queue)
        if not self.asked_to_stop:
            self.cages.prepare()

    # --- the lease (worker.task_watch.Lease) --------------------------------------------------------------------

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return round(self._lease_seconds)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Only a task's lease is short. What names its worker must outlive it, or nobody could tell who lost it."""
        super().heartbeat(None, pipeline)

    def stay_known(self) -> None:
        """Tell an emptied Redis again who we are: nobody would see this worker for the rest of its life."""
        if self.birth_date is None or self.connection.hexists(self.key, "birth"):
            return
        with self.connection.pipeline() as pipe:
            pipe.hset(self.key, mapping=self.serialize() | {"state": self.get_state()})
            worker_registration.register(self, pipe)
            pipe.expire(self.key, self.worker_ttl + 60)
            pipe.execute()

    def renew(self) -> None:
        for execution in self._current_executions():
            self.maintain_heartbeats(execution.job, execution)

    def is_held(self) -> bool:
        """Whether RQ still lists our execution: whoever takes a task over removes it first."""
        return all(
            self.connection.zscore(self._wip_key, execution.composite_key) is not None
            for execution in self._current_executions()
        )

    def _current_executions(self) -> list[Execution]:
        return list(self.executions.values())

    # --- stopping -----------------------------------------------------------------------------------------------

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On SIGTERM and SIGINT. The task under way is given back at its next check; no Redis here, we may be in it."""
        self.asked_to_stop = True
        self._stop_requested = True
        self.watch.drain()
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    # --- what we do not want ------------------------------------------------------------------------------------

    def subscribe(self) -> None:
        """No commands by pub/sub: jobs are canceled by their record, processes are stopped by signals."""

    def run_maintenance_tasks(self) -> None:
        """The supervisor does it under a lock of its own: RQ's stays for 15 minutes if its holder dies."""

    def handle_exception(self, job: Job, *exc_info: object) -> None:
        """`worker.tasks` has logged it with the job's context."""


if __name__ == "__main__":
    sys.exit(main())
