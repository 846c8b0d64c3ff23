"""Storage knows what was accepted; one pass makes the queue know it too."""

import json

import pytest
from redis import Redis

from tests.worker.conftest import write_video
from tests.worker.lifecycle.conftest import Desk, make_worker, start_task, take_task
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobError, JobOptions, JobRecord, JobStatus, ResultInfo
from worker.contract.queue import MAX_ATTEMPTS, TaskKind, task_id
from worker.contract.storage import folder_locked
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits

RESULT = ResultInfo(container=Container.MP4, width=128, height=96, frames=30, size_bytes=1, sha256="0" * 64)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Five segments of six frames, two at a time."""
    source = write_video(tmp_path_factory.mktemp("plan") / "clip.mp4", frames=30)
    made = make_plan(source, JobOptions(), VideoLimits(), segment_frames=6)
    return made.model_copy(update={"segments_in_flight": 2})


def test_accepted_jobs_are_found_again_by_an_emptied_redis(desk: Desk, redis: Redis) -> None:
    # Given two accepted jobs, and one that has ended
    first, second, ended = desk.accept(), desk.accept(), desk.accept()
    desk.registry.cancel(ended)

    # When Redis is emptied, and storage is looked at twice
    redis.flushall()
    desk.reconciler.run()
    desk.reconciler.run()

    # Then both are queued, once, and all three are listed
    assert sorted(desk.queue.rq.job_ids) == sorted(task_id(TaskKind.PLAN, job_id) for job_id in (first, second))
    assert {job.id for job in desk.registry.newest(10)} == {first, second, ended}


def test_a_running_job_goes_on_where_its_segments_end(desk: Desk, redis: Redis, plan: Plan) -> None:
    # Given a job with segments 0, 1 and 2 of 5, two at a time, in an emptied Redis
    job_id = desk.start(plan, finished=(0, 1, 2))
    redis.flushall()

    # When
    desk.reconciler.run()

    # Then each chain goes on, and the progress is what storage holds
    assert desk.queue.rq.job_ids == [task_id(TaskKind.SEGMENT, job_id, index) for index in (4, 3)]
    progress = desk.registry.progress(job_id)
    assert (progress.segments_done, progress.segments_total, progress.frames_done) == (3, 5, 18)


@pytest.mark.parametrize(
    ("at_a_time", "finished", "expected"),
    [(1, (0,), (1,)), (2, (1, 3), (0,)), (3, (0,), (1, 2, 3)), (4, (), (0, 1, 2, 3)), (9, (2,), (0, 1, 3, 4))],
)
def test_as_many_chains_go_on_as_the_plan_says(
    desk: Desk, plan: Plan, at_a_time: int, finished: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    job_id = desk.start(plan.model_copy(update={"segments_in_flight": at_a_time}), finished=finished)
    desk.reconciler.run()
    assert sorted(desk.queue.rq.job_ids) == [task_id(TaskKind.SEGMENT, job_id, index) for index in expected]


def test_a_plan_of_before_there_was_a_choice_goes_on_with_four_chains(desk: Desk, plan: Plan) -> None:
    # Given a job whose plan does not say how many
    job_id = desk.start(plan, finished=(0,))
    written = json.loads(desk.storage.folder(job_id).plan.read_text())
    del written["segments_in_flight"]
    desk.storage.folder(job_id).plan.write_text(json.dumps(written))

    # When
    desk.reconciler.run()

    # Then
    assert sorted(desk.queue.rq.job_ids) == [task_id(TaskKind.SEGMENT, job_id, index) for index in (1, 2, 3, 4)]


def test_a_job_with_all_its_segments_is_assembled(desk: Desk, plan: Plan) -> None:
    job_id = desk.start(plan, finished=(0, 1, 2, 3, 4))
    desk.reconciler.run()
    assert desk.queue.rq.job_ids == [task_id(TaskKind.ASSEMBLE, job_id)]


def test_a_job_whose_tasks_wait_or_run_is_left_alone(desk: Desk, plan: Plan) -> None:
    # Given one chain waiting and one at work
    job_id = desk.start(plan)
    desk.queue.enqueue_first_segments(job_id, 5, 2)
    start_task(make_worker(desk.queue, "w1"), desk.queue)

    # When
    desk.reconciler.run()

    # Then
    assert desk.queue.rq.job_ids == [task_id(TaskKind.SEGMENT, job_id, 1)]


def test_a_task_that_redis_believes_done_but_storage_does_not_is_done_again(desk: Desk, plan: Plan) -> None:
    # Given a task of which Redis holds only the memory
    job_id = desk.start(plan)
    desk.queue.enqueue_first_segments(job_id, 5, 2)
    desk.queue.rq.connection.delete(desk.queue.rq.key)

    # When
    desk.reconciler.run()

    # Then
    assert sorted(desk.queue.rq.job_ids) == [task_id(TaskKind.SEGMENT, job_id, index) for index in (0, 1)]


def test_a_job_is_failed_whose_task_rq_has_given_up(desk: Desk) -> None:
    # Given workers that die even when they only have to say that all attempts are used
    job_id = desk.accept()
    desk.queue.enqueue_plan(job_id)
    for number in range(MAX_ATTEMPTS + 1):
        start_task(make_worker(desk.queue, f"w{number}"), desk.queue)
        desk.recovery.reap(f"w{number}")

    # When
    desk.reconciler.run()

    # Then
    job = desk.registry.get(job_id)
    assert job is not None
    assert job.error is not None
    assert job.error.code is FailureCode.WORKER_LOST
    assert desk.queue.waiting() == 0


def test_storage_wins_where_redis_lost_its_last_second(desk: Desk, redis: Redis, plan: Plan) -> None:
    # Given a job that was canceled, and a Redis that does not remember it
    job_id = desk.start(plan)
    running = desk.registry.get(job_id)
    assert running is not None
    desk.registry.cancel(job_id)
    desk.registry.index(running)

    # When
    desk.reconciler.run()

    # Then
    assert desk.registry.count(JobStatus.CANCELED) == 1
    assert desk.registry.unfinished_ids() == []
    assert desk.queue.waiting() == 0


def test_a_deleted_job_is_forgotten_though_the_deletion_was_cut_short(desk: Desk) -> None:
    job_id = desk.accept()
    desk.storage.delete_job(job_id)
    desk.reconciler.run()
    assert desk.registry.newest(10) == []


def test_a_damaged_record_does_not_keep_the_other_jobs_from_their_turn(desk: Desk, redis: Redis) -> None:
    # Given two jobs in an emptied Redis, the record of the first damaged
    damaged, sound = desk.accept(), desk.accept()
    desk.storage.folder(damaged).record.write_bytes(b"{")
    redis.flushall()

    # When
    desk.reconciler.run()

    # Then
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, sound)]


def test_two_supervisors_never_reconcile_at_the_same_time(desk: Desk, redis: Redis) -> None:
    # Given another one at it
    desk.accept()
    with redis.lock("vsr:lock:reconcile", timeout=5):
        # When
        desk.reconciler.run()

        # Then it was left to that one
        assert desk.queue.waiting() == 0
    desk.reconciler.run()
    assert desk.queue.waiting() == 1


class Killed(BaseException):
    """SIGKILL, for what runs in this process."""


def test_an_end_that_storage_never_heard_of_outlives_redis(
    desk: Desk, redis: Redis, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that died between telling Redis of its success and telling storage
    job_id = desk.start(plan, finished=(0, 1, 2, 3, 4))
    with monkeypatch.context() as patched:
        patched.setattr(desk.storage, "write_record", _die)
        with pytest.raises(Killed):
            desk.registry.succeed(job_id, RESULT)

    # When there is a pass, and then Redis is wiped
    desk.reconciler.run()
    redis.flushall()
    desk.reconciler.run()

    # Then the job is not done again
    assert desk.storage.read_record(job_id) == desk.registry.get(job_id)
    assert desk.registry.count(JobStatus.SUCCEEDED) == 1
    assert desk.queue.waiting() == 0


def test_a_partial_result_is_made_though_the_gateway_died_when_it_was_wished_for(
    desk: Desk, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = desk.start(plan, finished=(0, 1))
    with monkeypatch.context() as patched:
        patched.setattr(desk.storage, "write_record", _die)
        with pytest.raises(Killed):
            desk.registry.cancel(job_id, keep_partial=True)

    desk.reconciler.run()

    assert desk.queue.rq.job_ids == [task_id(TaskKind.ASSEMBLE, job_id)]
    on_disk = desk.storage.read_record(job_id)
    assert on_disk is not None
    assert on_disk.wants_partial_result


def test_a_pass_while_a_job_is_tried_again_leaves_the_retry_its_word(
    desk: Desk, redis: Redis, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a failed job, and a pass just when its retry is in Redis and not yet in storage
    job_id = desk.start(plan, finished=(0, 1))
    desk.registry.fail(job_id, JobError(code=FailureCode.INTERNAL, message="lost"))
    other = Desk(redis, desk.storage.root)
    write_record = desk.storage.write_record

    def write_after_a_pass(record: JobRecord) -> None:
        other.reconciler.run()
        write_record(record)

    monkeypatch.setattr(desk.storage, "write_record", write_after_a_pass)

    # When
    desk.registry.retry(job_id)
    desk.queue.enqueue_plan(job_id)
    other.reconciler.run()

    # Then
    stored = desk.storage.read_record(job_id)
    assert stored is not None
    assert stored.status is JobStatus.QUEUED
    assert desk.registry.get(job_id) == stored
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]


def test_a_retry_that_redis_lost_in_a_power_cut_is_found_when_it_starts_again(desk: Desk, redis: Redis) -> None:
    # Given a job that was failed and is tried again, in a Redis that lost its last second
    job_id = desk.accept()
    failed = desk.registry.fail(job_id, JobError(code=FailureCode.INTERNAL, message="lost"))
    desk.reconciler.run()
    retried = desk.registry.retry(job_id)
    assert failed
    assert retried
    desk.registry.index(failed)
    redis.set("vsr:jobs:checked", "the server process before")

    # When
    desk.reconciler.run()

    # Then
    assert desk.registry.get(job_id) == retried
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]


def test_a_pass_goes_on_though_one_job_cannot_be_written(
    desk: Desk, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two jobs that wait, and one whose end cannot be written: its disk is full, and held by a frozen process
    first, stuck, last = desk.accept(), desk.accept(), desk.accept()
    with monkeypatch.context() as patched:
        patched.setattr(desk.storage, "write_record", _die)
        with pytest.raises(Killed):
            desk.registry.cancel(stuck)

    # When
    with folder_locked(desk.storage.folder(stuck).path, 0):
        desk.reconciler.run()
    write_record = desk.storage.write_record
    monkeypatch.setattr(desk.storage, "write_record", _refuse_for_want_of_space)
    desk.reconciler.run()

    # Then the others have had their turn, and it has it as soon as that is possible
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id) for job_id in (first, last)]
    monkeypatch.setattr(desk.storage, "write_record", write_record)
    desk.reconciler.run()
    assert desk.storage.read_record(stuck) == desk.registry.get(stuck)
    assert desk.registry.unwritten_ids() == []


def test_after_a_wipe_jobs_are_enqueued_before_old_ones_are_listed_and_none_is_written(
    desk: Desk, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given many jobs that have ended, one that waits, and an emptied Redis
    ended = [desk.accept() for _ in range(5)]
    for job_id in ended:
        desk.registry.cancel(job_id)
    waiting = desk.accept()
    redis.flushall()
    monkeypatch.setattr(desk.storage, "write_record", _die)
    listed_before: list[int] = []
    enqueue_again = desk.queue.enqueue_again

    def note_and_enqueue(kind: TaskKind, job_id: str, index: int | None = None) -> None:
        listed_before.append(len(desk.registry.indexed_ids()))
        enqueue_again(kind, job_id, index)

    monkeypatch.setattr(desk.queue, "enqueue_again", note_and_enqueue)

    # When
    desk.reconciler.run()

    # Then
    assert listed_before == [1]
    assert desk.registry.indexed_ids() == {waiting, *ended}


def test_a_pass_that_is_slower_than_its_lock_goes_on(desk: Desk, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given three jobs in an emptied Redis, and a disk so slow that the lock runs out over each
    jobs = [desk.accept() for _ in range(3)]
    redis.flushall()
    read_record = desk.storage.read_record

    def read_slowly(job_id: str) -> JobRecord | None:
        redis.delete("vsr:lock:reconcile")
        return read_record(job_id)

    monkeypatch.setattr(desk.storage, "read_record", read_slowly)

    # When
    desk.reconciler.run()

    # Then
    assert sorted(desk.queue.rq.job_ids) == sorted(task_id(TaskKind.PLAN, job_id) for job_id in jobs)


def test_what_a_dead_worker_left_of_a_task_that_redis_lost_stops_no_pass(desk: Desk, redis: Redis) -> None:
    # Given a Redis that was wiped between a task's handover and its start, and a worker that died then
    job_id, other = desk.accept(), desk.accept()
    desk.queue.enqueue_plan(job_id)
    task = take_task(desk.queue)
    worker = make_worker(desk.queue, "w1")
    redis.flushall()
    worker.prepare_execution(task)
    worker.prepare_job_execution(task, remove_from_intermediate_queue=True)
    desk.recovery.reap("w1")

    # When
    desk.reconciler.run()

    # Then
    assert sorted(desk.queue.rq.job_ids) == sorted(task_id(TaskKind.PLAN, one) for one in (job_id, other))


def _die(record: JobRecord) -> None:
    raise Killed


def _refuse_for_want_of_space(record: JobRecord) -> None:
    raise JobFailureError(FailureCode.OUT_OF_DISK, "the disk is full")
