"""Jobs in any state, and workers that can be stopped in their tracks anywhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from redis import Redis
from rq import SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from worker import tasks
from worker.cage import Cages
from worker.contract.job import DEFAULT_PRESET, JobOptions, JobRecord, new_job_id, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage, write_atomically
from worker.loaded_models import LoadedModels
from worker.plan import Plan
from worker.reconcile import Reconciler
from worker.settings import VideoLimits, WorkerSettings
from worker.task_recovery import TaskRecovery
from worker.task_watch import TaskWatch
from worker.upscaler import PixelRepeater, Upscaler


def make_worker(queue: TaskQueue, name: str) -> SimpleWorker:
    """A worker that can be stopped in its tracks anywhere: nothing of it runs unless a test says so."""
    worker = SimpleWorker([queue.rq], name=name, connection=queue.rq.connection, serializer=JSONSerializer)
    worker.register_birth()
    return worker


def take_task(queue: TaskQueue) -> Job:
    """As far as the handover: the task is in no queue any more, and with no worker yet."""
    taken = queue.rq.dequeue_any([queue.rq], None, connection=queue.rq.connection, serializer=JSONSerializer)
    assert taken is not None
    return taken[0]


def start_task(worker: SimpleWorker, queue: TaskQueue) -> Execution:
    """As far as the first line of the task's function."""
    task = take_task(queue)
    execution = worker.prepare_execution(task)
    worker.prepare_job_execution(task, remove_from_intermediate_queue=True)
    return execution


class StandingLease:
    """A claim that nobody disputes."""

    def renew(self) -> None:
        pass

    def is_held(self) -> bool:
        return True


class Desk:
    """Everything a reconciler needs, and a way to bring jobs into any state."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.storage = JobStorage(folder, lock_wait_seconds=0.2)
        self.storage.prepare()
        self.registry = JobRegistry(redis, self.storage)
        self.queue = TaskQueue(redis)
        self.recovery = TaskRecovery(redis, self.queue, lease_seconds=15)
        self.reconciler = Reconciler(self.registry, self.queue, self.storage, self.recovery)

    def accept(self, preset: str = DEFAULT_PRESET) -> str:
        record = JobRecord(
            id=new_job_id(),
            created_at=now(),
            options=JobOptions(preset=preset),
            source_name="clip.mp4",
            source_size_bytes=3,
            source_sha256="0" * 64,
        )
        self.registry.add(record)
        return record.id

    def start(self, plan: Plan, finished: tuple[int, ...] = ()) -> str:
        """A running job of this plan with these segments published."""
        job_id = self.accept()
        folder = self.storage.folder(job_id)
        write_atomically(folder.plan, plan.model_dump_json().encode())
        folder.make_segments()
        for index in finished:
            write_atomically(folder.segment(index, ".mp4"), b"a segment")
        self.registry.start(job_id, plan.source_info())
        return job_id


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    return Desk(redis, tmp_path / "storage")


class RepeatingModels(LoadedModels):
    """Gives the pixel repeater for every preset."""

    def __init__(self, folder: Path) -> None:
        super().__init__(torch.device("cpu"), folder, None, batch_frames=2)

    def get(self, preset: str, rendering: object = None, *, reuse: bool = False) -> Upscaler:
        return PixelRepeater()


@contextmanager
def working(
    desk: Desk,
    models: LoadedModels,
    settings: WorkerSettings,
    *,
    lease_seconds: float = 15.0,
    stall_seconds: float = 60.0,
) -> Iterator[tasks.Workbench]:
    """A worker process's workbench in this one, watched as there; its cages end with it."""
    watch = TaskWatch(
        StandingLease(), desk.registry, lambda: None, lease_seconds=lease_seconds, stall_seconds=stall_seconds
    )
    limits = VideoLimits()
    cages = Cages(settings, limits, watch.check)
    laid = tasks.Workbench(desk.registry, desk.queue, desk.storage, models, watch, settings, limits, cages)
    token = tasks.workbench.set(laid)
    watch.start()
    try:
        yield laid
    finally:
        tasks.workbench.reset(token)
        watch.stop()
        cages.shut()
