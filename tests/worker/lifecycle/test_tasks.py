"""The steps of a job under the eyes of the watch: slow work is no stalled work, and a cancel ends it."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from redis import Redis

from tests.worker.conftest import write_video
from tests.worker.lifecycle.conftest import Desk, make_worker, working
from worker import tasks
from worker.contract.job import JobOptions, JobStatus
from worker.contract.queue import TaskKind, task_id
from worker.contract.speeds import bytes_per_pixel, seconds_per_pixel
from worker.contract.storage import write_atomically
from worker.job_files import read_plan
from worker.loaded_models import LoadedModels
from worker.plan import PIPELINE_VERSION, make_plan
from worker.settings import VideoLimits, WorkerSettings
from worker.video import survey
from worker.video.source import frame_crc32

FRAMES = 30
STALL_SECONDS = 0.8


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes that the watch would have ended this process with."""
    codes: list[int] = []

    def note(code: int) -> None:
        codes.append(code)
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", note)
    return codes


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> Iterator[tasks.Workbench]:
    # Uncaged: these tests slow down and stop what else would happen in another process.
    settings = WorkerSettings(preset="tiny-random", cage="off")
    models = LoadedModels(torch.device("cpu"), tmp_path, None)
    with working(desk, models, settings, lease_seconds=0.3, stall_seconds=STALL_SECONDS) as bench:
        yield bench


def accept_video(desk: Desk) -> str:
    job_id = desk.accept()
    video = write_video(desk.storage.root / "clip.mp4", frames=FRAMES)
    video.rename(desk.storage.folder(job_id).source)
    return job_id


def slow_down_the_survey(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every frame takes an eighth of what counts as stalled; returns the checksums of those that were read."""
    read: list[int] = []

    def slowly(frame: object) -> int:
        time.sleep(STALL_SECONDS / 8)
        read.append(frame_crc32(frame))  # type: ignore[arg-type]
        return read[-1]

    monkeypatch.setattr(survey, "frame_crc32", slowly)
    return read


def test_a_survey_longer_than_the_stall_limit_lives_on(
    desk: Desk, bench: tasks.Workbench, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a source whose frames take several times the stall limit together
    job_id = accept_video(desk)
    read = slow_down_the_survey(monkeypatch)

    # When it is planned
    tasks.plan(job_id)

    # Then nobody took the task for stalled
    assert exits == []
    assert len(read) == FRAMES
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.RUNNING


def test_a_cancel_ends_a_survey_under_way(
    desk: Desk, bench: tasks.Workbench, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a slow survey
    job_id = accept_video(desk)
    read = slow_down_the_survey(monkeypatch)

    # When the job is canceled meanwhile
    canceling = threading.Thread(target=lambda: desk.registry.cancel(job_id))
    canceling.start()
    tasks.plan(job_id)
    canceling.join()

    # Then the task ended by itself, early, and made no plan
    assert exits == []
    assert len(read) < FRAMES
    assert not desk.storage.folder(job_id).plan.exists()


def test_a_process_that_stops_gives_a_survey_under_way_back(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = accept_video(desk)

    def told_to_stop(frame: object) -> int:
        bench.watch.drain()
        return 0

    monkeypatch.setattr(survey, "frame_crc32", told_to_stop)
    assert tasks.plan(job_id) is not None
    assert not desk.storage.folder(job_id).plan.exists()


def test_a_plan_says_how_many_segments_at_a_time_keep_the_workers_busy(desk: Desk, bench: tasks.Workbench) -> None:
    # Given three workers
    for name in ("w1", "w2", "w3"):
        make_worker(desk.queue, name)
    job_id = accept_video(desk)

    # When
    tasks.plan(job_id)

    # Then it is one more, whoever comes or goes later
    made = read_plan(desk.storage.folder(job_id))
    assert made is not None
    assert made.segments_in_flight == 4


def test_the_work_of_another_version_is_planned_and_done_anew(desk: Desk, bench: tasks.Workbench) -> None:
    # Given a running job with a plan and a segment of an earlier version of this program
    job_id = accept_video(desk)
    folder = desk.storage.folder(job_id)
    earlier = make_plan(folder.source, JobOptions(), VideoLimits()).model_copy(
        update={"pipeline_version": PIPELINE_VERSION - 1}
    )
    desk.registry.start(job_id, earlier.source_info())
    write_atomically(folder.plan, earlier.model_dump_json().encode())
    folder.make_segments()
    write_atomically(folder.segment(0, ".mp4"), b"a segment of an earlier version")

    # When its tasks run; then they leave it to the reconciler, which has it planned anew
    assert tasks.assemble(job_id) is None
    desk.reconciler.run()
    assert desk.recovery.live_tasks() == {task_id(TaskKind.PLAN, job_id)}
    tasks.plan(job_id)

    # Then there is a plan of this version, and nothing is left of the other
    planned = read_plan(folder)
    assert planned is not None
    assert planned.pipeline_version == PIPELINE_VERSION
    assert not folder.segment(0, ".mp4").exists()
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.RUNNING


def test_what_a_segment_cost_is_told_to_those_who_ask_for_estimates(
    desk: Desk, bench: tasks.Workbench, redis: Redis
) -> None:
    # Given a job of one segment
    job_id = accept_video(desk)
    record = desk.registry.change(
        job_id, lambda job: job.model_copy(update={"options": JobOptions(preset="tiny-random")})
    )
    assert record is not None
    tasks.plan(job_id)

    # When it is rendered, and a second time, where it is there already
    for _ in range(2):
        tasks.segment(job_id, 0)

    # Then its frames count once, by the source's pixels, with the time and the bytes that they took
    made = read_plan(desk.storage.folder(job_id))
    assert made is not None
    pixels = FRAMES * made.picture.width * made.picture.height / 4
    size_bytes = made.segment_file(desk.storage.folder(job_id), 0).stat().st_size
    assert redis.hget("vsr:speed:tiny-random", "pixels") == str(int(pixels)).encode()
    assert seconds_per_pixel(redis, record.options) is not None
    assert bytes_per_pixel(redis, record.options, made.encoding.codec) == pytest.approx(size_bytes / pixels)
