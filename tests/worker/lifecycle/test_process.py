"""What a worker process does between its tasks."""

from pathlib import Path

import torch

from tests.worker.conftest import write_video
from tests.worker.lifecycle.conftest import Desk, StandingLease, take_task
from worker import tasks
from worker.cage import Cages
from worker.contract.job import JobStatus
from worker.loaded_models import LoadedModels
from worker.process import VideoWorker
from worker.settings import VideoLimits, WorkerSettings
from worker.task_watch import TaskWatch


def test_the_next_job_finds_a_cage_ready(desk: Desk, tmp_path: Path) -> None:
    # Given a worker, and a job to plan
    settings, limits = WorkerSettings(preset="tiny-random"), VideoLimits()
    watch = TaskWatch(StandingLease(), desk.registry, lambda: None, lease_seconds=15, stall_seconds=15)
    worker = VideoWorker("a-worker", desk.queue, lease_seconds=15)
    worker.register_birth()
    worker.watch, worker.cages = watch, Cages(settings, limits, watch.check)
    models = LoadedModels(torch.device("cpu"), tmp_path, None)
    job_id = desk.accept()
    write_video(tmp_path / "clip.mp4", frames=3).rename(desk.storage.folder(job_id).source)
    desk.queue.enqueue_plan(job_id)

    # When it has done so, in a cage of the job's own
    tasks.workbench.set(
        tasks.Workbench(desk.registry, desk.queue, desk.storage, models, watch, settings, limits, worker.cages)
    )
    worker.execute_job(take_task(desk.queue), desk.queue.rq)
    job = desk.registry.get(job_id)
    assert job is not None
    assert job.status is JobStatus.RUNNING

    # Then another waits already
    spare = worker.cages.spare_pid
    worker.cages.shut()
    assert spare is not None
