"""A canceled job whose finished frames are wanted: kept whatever dies, is tried again or deleted in between."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from redis import Redis

from tests.worker.conftest import look_at, write_video
from tests.worker.lifecycle.conftest import Desk, working
from worker import tasks
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobRecord, JobStatus, PartialResult, now
from worker.contract.queue import TaskKind, task_id
from worker.loaded_models import LoadedModels
from worker.settings import WorkerSettings


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> Iterator[tasks.Workbench]:
    """Videos are cut into segments of ten frames."""
    settings = WorkerSettings(preset="tiny-random", cage="off", segment_frames=10)
    with working(desk, LoadedModels(torch.device("cpu"), tmp_path, None), settings) as bench:
        yield bench


@pytest.fixture
def start(desk: Desk, bench: tasks.Workbench) -> Callable[..., str]:
    """Start a job of three segments, of which these are finished, and cancel it wishing to keep them."""

    def start(*finished: int, cancel: bool = True) -> str:
        job_id = desk.accept(preset="tiny-random")
        write_video(desk.storage.root / "clip.mp4", frames=30, audio_tracks=1).rename(
            desk.storage.folder(job_id).source
        )
        tasks.plan(job_id)
        for index in finished:
            tasks.segment(job_id, index)
        if cancel:
            desk.registry.cancel(job_id, keep_partial=True)
        return job_id

    return start


@pytest.fixture
def meanwhile(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen while the next `assemble` is at work; it goes on until it is told to stop."""

    def happen(what: Callable[[], object]) -> None:
        def assemble(*args: object, on_progress: Callable[[], None], **kwargs: object) -> None:
            monkeypatch.undo()
            what()
            for _ in range(1000):
                on_progress()
                threading.Event().wait(0.01)
            raise AssertionError("nobody stopped it")

        monkeypatch.setattr(tasks, "assemble_video", assemble)

    return happen


def record_of(desk: Desk, job_id: str) -> JobRecord:
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record == desk.registry.get(job_id)
    return record


@pytest.mark.parametrize(("finished", "frames"), [((0,), 10), ((0, 1), 20), ((0, 2), 10)])
def test_what_is_finished_from_the_start_without_a_gap_is_kept(
    desk: Desk, start: Callable[..., str], finished: tuple[int, ...], frames: int
) -> None:
    # Given
    job_id = start(*finished)

    # When
    tasks.assemble(job_id)

    # Then it is the result of a job that stays canceled, and the segments stay for another try
    record = record_of(desk, job_id)
    folder = desk.storage.folder(job_id)
    assert (record.status, record.partial_result) == (JobStatus.CANCELED, PartialResult.KEPT)
    assert record.result is not None
    assert record.result.frames == frames
    assert len(look_at(folder.result(Container.MP4)).frames) == frames
    assert f"the first {frames} of 30 frames were finished" in folder.report.read_text()
    assert len(list(folder.segments.glob("*.mp4"))) == len(finished)
    # and nothing is left to do
    desk.queue.rq.empty()
    desk.reconciler.run()
    assert desk.queue.waiting() == 0


def test_without_a_first_segment_there_is_nothing_to_keep(desk: Desk, start: Callable[..., str]) -> None:
    # Given a job with its second segment alone, and one that was not even planned
    unplanned = desk.accept()
    desk.registry.cancel(unplanned, keep_partial=True)
    for job_id in (start(1), unplanned):
        # When
        tasks.assemble(job_id)
        # Then
        record = record_of(desk, job_id)
        assert (record.partial_result, record.result) == (PartialResult.NOTHING_FINISHED, None)


def test_the_wish_outlives_redis_and_the_worker(desk: Desk, redis: Redis, start: Callable[..., str]) -> None:
    # Given a job whose task nobody has any more, and a Redis that knows nothing
    job_id = start(0)
    redis.flushall()

    # When storage is looked at, twice
    desk.reconciler.run()
    desk.reconciler.run()

    # Then it waits for a worker, once
    assert desk.queue.rq.job_ids == [task_id(TaskKind.ASSEMBLE, job_id)]


def test_the_wish_outlives_a_redis_that_lost_its_last_second(desk: Desk, start: Callable[..., str]) -> None:
    # Given a Redis that believes the job to be running still; and one that does not know that it is done
    job_id = start(0, cancel=False)
    running = desk.registry.get(job_id)
    assert running is not None
    canceled = desk.registry.cancel(job_id, keep_partial=True)
    assert canceled is not None
    desk.queue.rq.empty()
    desk.registry.index(running)
    desk.reconciler.run()
    assert desk.queue.rq.job_ids == [task_id(TaskKind.ASSEMBLE, job_id)]

    # When
    tasks.assemble(job_id)
    desk.queue.rq.empty()
    desk.registry.index(canceled)
    desk.reconciler.run()

    # Then
    assert record_of(desk, job_id).partial_result is PartialResult.KEPT
    assert desk.queue.waiting() == 0


def test_a_job_canceled_while_it_is_assembled_keeps_all_its_frames(
    desk: Desk, start: Callable[..., str], meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    # Given a job with all its segments, canceled while they are joined
    job_id = start(0, 1, 2, cancel=False)
    meanwhile(lambda: desk.registry.cancel(job_id, keep_partial=True))

    # When the task is given back, and taken again
    assert tasks.assemble(job_id) is not None
    tasks.assemble(job_id)

    # Then
    record = record_of(desk, job_id)
    assert (record.status, record.partial_result) == (JobStatus.CANCELED, PartialResult.KEPT)
    assert record.result is not None
    assert record.result.frames == 30


def test_a_job_tried_again_goes_on_from_what_was_kept_to_the_same_bytes(desk: Desk, start: Callable[..., str]) -> None:
    # Given what an undisturbed job makes, and one of which the beginning was kept
    undisturbed, job_id = start(0, 1, 2, cancel=False), start(0)
    tasks.assemble(undisturbed)
    tasks.assemble(job_id)
    kept = desk.storage.folder(job_id).segment(0, ".mp4").stat().st_ino

    # When it is tried again
    desk.registry.retry(job_id)
    assert (record_of(desk, job_id).result, record_of(desk, job_id).partial_result) == (None, None)
    tasks.plan(job_id)
    assert desk.storage.folder(job_id).segment(0, ".mp4").stat().st_ino == kept
    for index in (1, 2):
        tasks.segment(job_id, index)
    tasks.assemble(job_id)

    # Then
    whole, again = record_of(desk, undisturbed), record_of(desk, job_id)
    assert again.status is JobStatus.SUCCEEDED
    assert whole.result is not None
    assert again.result is not None
    assert again.result.sha256 == whole.result.sha256


@pytest.mark.parametrize("change", ["retried", "deleted", "expired"])
def test_what_nobody_wants_any_more_is_not_put_together(
    desk: Desk, start: Callable[..., str], meanwhile: Callable[[Callable[[], object]], None], change: str
) -> None:
    # Given a job that changes while its beginning is put together
    job_id = start(0)
    happens: dict[str, Callable[[], object]] = {
        "retried": lambda: desk.registry.retry(job_id),
        "deleted": lambda: desk.registry.remove(job_id),
        "expired": lambda: desk.registry.change(job_id, lambda job: job.model_copy(update={"media_removed_at": now()})),
    }
    meanwhile(happens[change])

    # When
    assert tasks.assemble(job_id) is None

    # Then there is no result, no partial file, and no wish
    record = desk.registry.get(job_id)
    assert (record is None) == (change == "deleted")
    assert record is None or record.result is None
    assert not list(desk.storage.folder(job_id).path.glob("result*"))
    assert desk.registry.partial_ids() == []


def test_a_beginning_whose_worker_slept_never_replaces_the_whole(
    desk: Desk, bench: tasks.Workbench, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a beginning that is about to be published by a worker that has just looked whether its task is its own
    job_id = start(0)
    result, report = (desk.storage.folder(job_id).path / name for name in ("result.mp4", "report.json"))

    def tried_again_and_done_meanwhile() -> None:
        monkeypatch.undo()
        desk.registry.retry(job_id)
        result.write_bytes(b"the whole")
        report.write_bytes(b"its report")

    monkeypatch.setattr(bench.watch, "demand_lease", tried_again_and_done_meanwhile)

    # When it wakes after the job was tried again
    tasks.assemble(job_id)

    # Then
    assert (result.read_bytes(), report.read_bytes()) == (b"the whole", b"its report")


def test_what_cannot_be_put_together_is_said_to_have_failed(
    desk: Desk, start: Callable[..., str], meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    # Given a beginning that does not pass its check
    def refuse() -> None:
        raise JobFailureError(FailureCode.VERIFICATION_FAILED, "a packet is missing")

    job_id = start(0)
    meanwhile(refuse)

    # When
    tasks.assemble(job_id)

    # Then
    record = record_of(desk, job_id)
    assert (record.status, record.error) == (JobStatus.CANCELED, None)
    assert (record.partial_result, record.result) == (PartialResult.FAILED, None)
    assert desk.registry.partial_ids() == []
