"""Starts the worker processes of this machine and looks after them: one per GPU, or as many as asked for on a CPU.

It never imports torch, so that it stays small and cannot crash with the GPU. What it does, again and again:

- a process died: put another in its place at once (worker.process_template), and give its task back to the queue;
- a process lost its task to another worker, or hangs so hard that even its own watch cannot run: kill it;
- every second: take back the tasks of hosts that fell silent for longer than the lease;
- every ten seconds, in a thread of its own, so that no death waits for it: reconcile the queue with storage;
- asked to stop: ask the processes, which give their tasks back, and kill those that take too long.

Whatever goes wrong with one job, or with Redis, is logged and tried again: it never ends the supervisor, and with it
all worker processes of the host.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from uuid import uuid4

import structlog
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import DeserializationError, InvalidJobOperation, NoSuchJobError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobError
from worker.contract.logs import configure_logging
from worker.contract.queue import TaskKind, TaskQueue, job_id_of
from worker.contract.redis_faults import is_unavailable
from worker.contract.registry import JobRegistry
from worker.contract.settings import LogSettings, RedisSettings, StorageSettings
from worker.contract.storage import JobStorage, StorageBusyError
from worker.cpu_environment import CPU_ENVIRONMENT
from worker.exit_codes import CANNOT_START, ExitCode
from worker.gpus import gpu_uuids
from worker.job_files import read_plan, remove_partial_files
from worker.oom_kills import OomWatch
from worker.process_template import ProcessTemplate, TemplateLostError, WorkerProcess
from worker.reconcile import Reconciler
from worker.redis_clients import brief_redis
from worker.rendering import read_rendering, start_over, step_down, stepped_down_since
from worker.settings import VideoLimits, WorkerSettings, as_environment
from worker.supervisor_metrics import SupervisorMetrics
from worker.task_recovery import TaskRecovery

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05
# A process that dies before it ever took a task waits before it is started again; one that did work does not.
_DELAYS_SECONDS = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)
_LOOK_SECONDS = 1.0
_LAST_TRIES_SECONDS = 2.0
_LOCK_WAIT_SECONDS = 1.0
# What may go wrong with one job beside Redis: its files, the disk, what another version or hand has left in RQ's keys.
_TROUBLE = (
    OSError,
    JobFailureError,
    StorageBusyError,
    NoSuchJobError,
    InvalidJobOperation,
    DeserializationError,
    ValidationError,
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_worker(
    settings: WorkerSettings,
    redis_settings: RedisSettings,
    storage_settings: StorageSettings,
    limits: VideoLimits,
    log_settings: LogSettings,
    workers: int = 0,
) -> int:
    """Run until SIGTERM or SIGINT; return an `ExitCode`. To be called from the main thread, with logging configured.

    `workers`: how many processes; 0 for one per GPU, or a single one on the CPU. CPU processes share the cores equally.
    """
    if redis_settings.redis_url is None:
        log.error("worker_cannot_start", reason="no Redis: set VSR_REDIS_URL")
        return ExitCode.REDIS_UNREACHABLE
    try:
        redis = brief_redis(redis_settings.redis_url.get_secret_value())
    except ValueError:
        # Without the error's own words, which may repeat a password.
        reason = "VSR_REDIS_URL is no address of a Redis: redis://host:6379/0 or unix:///folder/redis.sock"
        log.error("worker_cannot_start", reason=reason)
        return ExitCode.REDIS_UNREACHABLE
    try:
        redis.ping()
    except RedisError as error:
        log.error("worker_cannot_start", reason=f"Redis is unreachable: {error}")
        return ExitCode.REDIS_UNREACHABLE

    # Without patience: whoever froze while it holds a job must not hold up the supervisor, which comes back anyway.
    storage = JobStorage(storage_settings.storage_dir.resolve(), lock_wait_seconds=_LOCK_WAIT_SECONDS)
    try:
        storage.prepare()
    except OSError as error:
        log.error(
            "worker_cannot_start",
            reason=f"the storage folder {storage.root} cannot be used ({error.strerror}): set VSR_STORAGE_DIR",
        )
        return ExitCode.STORAGE
    with tempfile.TemporaryDirectory(prefix="vsr-metrics-") as metrics_folder:
        try:
            metrics = SupervisorMetrics(Path(metrics_folder), settings.metrics_host, settings.metrics_port)
        except OSError as error:
            log.error(
                "worker_cannot_start",
                reason=f"port {settings.metrics_port} cannot be used ({error.strerror}): set VSR_METRICS_PORT",
            )
            return ExitCode.PORT_IN_USE
        environment = as_environment(
            settings,
            redis_settings,
            storage_settings.model_copy(update={"storage_dir": storage.root}),
            limits,
            log_settings,
            PROMETHEUS_MULTIPROC_DIR=metrics_folder,
        )
        # What the user has set for the allocator and OpenMP stays, as in `vsr upscale`.
        slots = [Slot(extra) for extra in _shares(settings, workers)]
        supervisor = Supervisor(redis, storage, metrics, slots, settings, CPU_ENVIRONMENT | environment)
        try:
            return supervisor.run()
        finally:
            metrics.close()


def _shares(settings: WorkerSettings, workers: int) -> list[dict[str, str]]:
    """What each process gets of the machine: its GPU, and its part of the CPU's cores."""
    gpus = [] if settings.device == "cpu" else _gpus(settings)
    count = workers or max(1, len(gpus))
    # The same fixed number for all: left alone, each process would start one thread per core and wait for the others'.
    threads = str(settings.cpu_threads or max(1, _cores() // count))
    shares = [dict.fromkeys(_THREADS, threads) for _ in range(count)]
    if len(gpus) > 1:
        for number, share in enumerate(shares):
            share["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return shares


def _cores() -> int:
    """Those that this process may use: fewer than the machine's in a container with a CPU set."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _gpus(settings: WorkerSettings) -> list[str]:
    if settings.cuda_visible_devices is None:
        return gpu_uuids()
    return [name for name in settings.cuda_visible_devices.split(",") if name]


@dataclass
class Slot:
    """A place for one worker process; processes come and go in it."""

    environment: dict[str, str]
    """What its processes get beside the environment of all: their GPU, their part of the cores."""
    process: WorkerProcess | None = None
    name: str = ""
    start_at: float = 0.0
    early_deaths: int = 0


@dataclass
class Dead:
    """A process that ended, and whose task may still have to be given back (while Redis is away that has to wait)."""

    name: str
    pid: int
    died_at: float
    count_attempt: bool
    out_of_memory: bool = False
    """Ended by the kernel because memory was short."""
    wall_time: float = field(default_factory=time.time)
    """When it was found dead, in seconds since 1970."""
    has_stepped_down: bool = False
    """Its job is rendered in a smaller way for it: once is enough, however often its task has to be asked for."""
    try_at: float = 0.0
    failed_tries: int = 0


class Supervisor:
    def __init__(
        self,
        redis: Redis,
        storage: JobStorage,
        metrics: SupervisorMetrics,
        slots: list[Slot],
        settings: WorkerSettings,
        environment: dict[str, str],
    ) -> None:
        self._metrics = metrics
        self._slots = slots
        self._environment = environment
        self._template: ProcessTemplate | None = None
        self._template_start_at = 0.0
        self._template_early_deaths = 0
        self._settings = settings
        self._storage = storage
        queue = TaskQueue(redis)
        self._recovery = TaskRecovery(redis, queue, settings.lease_seconds)
        self._registry, self._queue = JobRegistry(redis, storage), queue
        self._reconciler = Reconciler(self._registry, queue, storage, self._recovery, metrics.note_failed_job)
        self._oom_watch = OomWatch()
        self._dead: list[Dead] = []
        self._stop_asked = False
        self._stopping = threading.Event()
        self._look_at = 0.0
        self._redis_is_away = False

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGINT, self._ask_to_stop)
        log.info("supervisor_started", processes=len(self._slots), metrics_port=self._metrics.port)
        reconciling = threading.Thread(target=self._reconcile_now_and_then, name="reconciler", daemon=True)
        reconciling.start()
        code = ExitCode.OK
        while not self._stop_asked and code is ExitCode.OK:
            code = self._look_after_processes()
            self._recover_the_dead()
            self._look_after_tasks()
            time.sleep(_POLL_SECONDS)
        self._stopping.set()
        self._drain()
        reconciling.join(_LAST_TRIES_SECONDS)
        log.info("supervisor_stopped", exit_code=code.name.lower())
        return code

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_asked = True

    # --- processes ----------------------------------------------------------------------------------------------

    def _look_after_processes(self) -> ExitCode:
        """Bury what died, start what should run. Not OK: a process said that it cannot start, and why, in the log."""
        self._oom_watch.look()
        for slot in self._slots:
            if slot.process and (returncode := slot.process.poll()) is not None:
                if returncode in CANNOT_START:
                    slot.process = None
                    return ExitCode(returncode)
                self._bury(slot, slot.process.pid, returncode)
        self._look_after_template()
        for slot in self._slots:
            if slot.process is None and time.monotonic() >= slot.start_at:
                self._start(slot)
        self._metrics.processes.set(sum(slot.process is not None for slot in self._slots))
        return ExitCode.OK

    def _look_after_template(self) -> None:
        if self._template and (returncode := self._template.poll()) is not None:
            log.warning("worker_template_died", pid=self._template.pid, reason=_reason_of(returncode))
            self._template_early_deaths = 0 if self._template.is_ready else self._template_early_deaths + 1
            self._template_start_at = time.monotonic() + _delay_seconds(self._template_early_deaths)
            self._lose_template()
        if self._template is None and time.monotonic() >= self._template_start_at:
            # All slots have the same number of threads; a process's GPU is named when it is forked.
            threads = {name: value for name, value in self._slots[0].environment.items() if name in _THREADS}
            self._template = ProcessTemplate(self._environment | threads)

    def _start(self, slot: Slot) -> None:
        if not (self._template and self._template.is_ready):
            return
        # A name of its own for every process: what is told about one can never be taken for another.
        name = f"{socket.gethostname()}.{uuid4().hex[:12]}"
        try:
            slot.process = self._template.fork(name, slot.environment)
        except TemplateLostError:
            log.warning("worker_template_lost", pid=self._template.pid)
            self._lose_template()
            return
        slot.name = name
        log.info("worker_process_started", worker=name, pid=slot.process.pid)

    def _lose_template(self) -> None:
        """Its processes end with it, and are buried at the next look."""
        if self._template:
            self._template.close()
            self._metrics.forget(self._template.pid)
            self._template = None

    def _bury(self, slot: Slot, pid: int, returncode: int) -> None:
        is_out_of_memory = returncode == -signal.SIGKILL and self._oom_watch.explains_a_death()
        reason = "out_of_memory" if is_out_of_memory else _reason_of(returncode)
        log.warning("worker_process_died", worker=slot.name, pid=pid, reason=reason)
        self._metrics.note_death(pid, reason)
        slot.early_deaths = 0 if self._took_up_work(slot.name) else slot.early_deaths + 1
        slot.start_at = time.monotonic() + _delay_seconds(slot.early_deaths)
        slot.process = None
        self._dead.append(Dead(slot.name, pid, time.monotonic(), count_attempt=True, out_of_memory=is_out_of_memory))

    def _took_up_work(self, worker_name: str) -> bool:
        try:
            return self._recovery.is_registered(worker_name)
        except RedisError as error:
            self._note_trouble_with_redis(error)
            return False

    # --- tasks --------------------------------------------------------------------------------------------------

    def _recover_the_dead(self) -> None:
        """Give back what they held. While Redis is away they stay on the list."""
        for dead in list(self._dead):
            if time.monotonic() < dead.try_at:
                continue
            try:
                self._recover(dead)
            except RedisError as error:
                self._note_trouble_with_redis(error)
                if is_unavailable(error):
                    return
                self._try_later(dead, error)
            except _TROUBLE as error:
                self._try_later(dead, error)
            else:
                self._dead.remove(dead)

    def _recover(self, dead: Dead) -> None:
        stepped_down = dead.out_of_memory and self._step_down(dead)
        # The next attempt is at something smaller, so the last does not count.
        tasks = self._recovery.reap(dead.name, count_attempt=dead.count_attempt and not stepped_down)
        for task, requeued in tasks.items():
            if requeued:
                log.info("task_requeued", job_id=job_id_of(task), task=task, worker=dead.name)
                self._metrics.requeued.inc()
                self._metrics.recovery_seconds.observe(time.monotonic() - dead.died_at)
            remove_partial_files(self._storage, task, dead.pid)

    def _try_later(self, dead: Dead, error: Exception) -> None:
        """Its lease would give the task back too: nothing is lost meanwhile."""
        dead.failed_tries += 1
        dead.try_at = time.monotonic() + _delay_seconds(dead.failed_tries)
        log.error("recovery_failed", worker=dead.name, reason=_in_words(error))

    def _step_down(self, dead: Dead) -> bool:
        """Have the job be rendered in smaller batches or tiles whose segment needed too much memory; whether it is.

        One step for all whom one shortage has ended: what was begun before a step was rendered the old way.
        """
        stepped_down = dead.has_stepped_down
        for task in self._recovery.tasks_of(dead.name):
            job_id = job_id_of(task)
            folder = self._storage.folder(job_id)
            plan, rendering = read_plan(folder), read_rendering(folder)
            if not task.startswith(f"{job_id}-{TaskKind.SEGMENT}-") or plan is None or rendering is None:
                continue
            if self._registry.is_final(job_id):  # what it has finished may be wanted
                continue
            began_at = self._recovery.began_at(task) or dead.wall_time
            if not dead.has_stepped_down and not stepped_down_since(folder, min(began_at, dead.wall_time)):
                try:
                    smaller = step_down(folder, plan, rendering, _LOCK_WAIT_SECONDS)
                except JobFailureError as failure:
                    if failure.code is not FailureCode.OUT_OF_MEMORY:
                        raise
                    if self._registry.fail(job_id, JobError(code=failure.code, message=failure.message)):
                        log.warning("job_failed", job_id=job_id, code=failure.code, reason=failure.message)
                        self._metrics.note_failed_job(failure.code)
                    continue
                dead.has_stepped_down = True
                log.warning(
                    "memory_short", job_id=job_id, task=task, rendered=str(rendering), now_rendered=str(smaller)
                )
            start_over(self._registry, self._queue, plan, folder, job_id)
            stepped_down = True
        return stepped_down

    def _look_after_tasks(self) -> None:
        """Ask every second whether a living process lost its task, or a silent host's lease ran out."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        try:
            for slot in self._slots:
                if slot.process and self._recovery.has_lost_its_task(slot.name):
                    log.warning("worker_process_killed", worker=slot.name, reason="it lost its task and does not know")
                    slot.process.kill()
            self._note_redis_answered()
            self._recovery.reap_expired_leases()
        except RedisError as error:
            self._note_trouble_with_redis(error)
        except _TROUBLE as error:
            log.error("look_failed", reason=_in_words(error))

    def _reconcile_now_and_then(self) -> None:
        """A thread's life."""
        pause_seconds = 0.0
        while not self._stopping.wait(pause_seconds):
            pause_seconds = self._settings.reconcile_seconds
            try:
                self._reconciler.run()
            except RedisError as error:
                self._note_trouble_with_redis(error)
            except _TROUBLE as error:
                log.error("reconciling_failed", reason=_in_words(error))

    def _note_trouble_with_redis(self, error: RedisError) -> None:
        """Away or full, it is waited for; an answer that nobody expected is a bug, or another hand's key."""
        if not is_unavailable(error):
            log.error("redis_refused", reason=_in_words(error))
            return
        if not self._redis_is_away:
            log.warning("redis_unreachable", reason=str(error))
        self._redis_is_away = True

    def _note_redis_answered(self) -> None:
        if self._redis_is_away:
            log.info("redis_answers_again")
        self._redis_is_away = False

    # --- the end ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Ask all, then wait together, then kill the rest: their tasks lose no attempt by it."""
        running = [slot for slot in self._slots if slot.process]
        for slot in running:
            if slot.process:
                slot.process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds
        for slot in running:
            if slot.process:
                try:
                    slot.process.wait(max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    log.warning("worker_process_killed", worker=slot.name, reason="it took too long to stop")
                    slot.process.kill()
                    with suppress(TimeoutError):  # then it ends with the template
                        slot.process.wait(_LAST_TRIES_SECONDS)
                self._metrics.forget(slot.process.pid)
                self._dead.append(Dead(slot.name, slot.process.pid, time.monotonic(), count_attempt=False))
                slot.process = None
        self._lose_template()
        last_try_at = time.monotonic() + _LAST_TRIES_SECONDS
        self._recover_the_dead()
        while self._dead and not self._redis_is_away and time.monotonic() < last_try_at:
            time.sleep(_POLL_SECONDS)
            self._recover_the_dead()


def _delay_seconds(failures: int) -> float:
    return _DELAYS_SECONDS[min(failures, len(_DELAYS_SECONDS) - 1)]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _reason_of(returncode: int) -> str:
    """One of `supervisor_metrics.DEATH_REASONS`."""
    if returncode < 0:
        return "signal"
    try:
        return ExitCode(returncode).name.lower()
    except ValueError:
        return "bug"


def main() -> int:
    """With all settings from the environment; `vsr worker` is the same with options."""
    log_settings = LogSettings()
    configure_logging(log_settings.log_format, log_settings.log_level)
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    return run_worker(WorkerSettings(), RedisSettings(), StorageSettings(), VideoLimits(), log_settings, workers)


if __name__ == "__main__":
    sys.exit(main())
