"""What a dead worker held comes back to the queue: exactly once, at the front, and at once."""

import time

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.worker.lifecycle.conftest import make_worker, start_task, take_task
from worker.contract.job import new_job_id
from worker.contract.queue import MAX_ATTEMPTS, TaskKind, TaskQueue, task_id
from worker.task_recovery import TaskRecovery


@pytest.fixture
def queue(redis: Redis) -> TaskQueue:
    return TaskQueue(redis)


@pytest.fixture
def recovery(redis: Redis, queue: TaskQueue) -> TaskRecovery:
    return TaskRecovery(redis, queue)


def retries_left(queue: TaskQueue, task: str) -> int | None:
    return Job.fetch(task, queue.rq.connection, serializer=JSONSerializer).retries_left


def test_a_dead_workers_task_returns_to_the_front_and_has_one_attempt_less(
    queue: TaskQueue, recovery: TaskRecovery
) -> None:
    # Given a worker at a task, and others waiting
    job_id = new_job_id()
    queue.enqueue_first_segments(job_id, 3, 3)
    worker = make_worker(queue, "w1")
    start_task(worker, queue)
    assert queue.waiting() == 2

    # When it is known to be dead, twice
    reaped = [recovery.reap("w1"), recovery.reap("w1")]

    # Then
    first = task_id(TaskKind.SEGMENT, job_id, 0)
    assert reaped == [{first: True}, {}]
    assert queue.rq.job_ids == [task_id(TaskKind.SEGMENT, job_id, index) for index in (0, 1, 2)]
    assert retries_left(queue, first) == MAX_ATTEMPTS - 1
    assert not recovery.is_registered("w1")


def test_a_worker_that_we_killed_for_stopping_slowly_costs_its_task_no_attempt(
    queue: TaskQueue, recovery: TaskRecovery
) -> None:
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    start_task(make_worker(queue, "w1"), queue)

    recovery.reap("w1", count_attempt=False)

    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert retries_left(queue, task_id(TaskKind.PLAN, job_id)) == MAX_ATTEMPTS


def test_the_tasks_of_living_workers_are_left_alone(queue: TaskQueue, recovery: TaskRecovery) -> None:
    # Given two workers at work
    job_id = new_job_id()
    queue.enqueue_first_segments(job_id, 2, 2)
    start_task(make_worker(queue, "w1"), queue)
    start_task(make_worker(queue, "w2"), queue)

    # When one dies
    recovery.reap("w1")

    # Then the other keeps its task
    assert queue.rq.job_ids == [task_id(TaskKind.SEGMENT, job_id, 0)]
    assert recovery.live_tasks() == {task_id(TaskKind.SEGMENT, job_id, index) for index in (0, 1)}
    assert not recovery.has_lost_its_task("w2")


def test_a_task_whose_worker_died_between_queue_and_start_comes_back(
    queue: TaskQueue, recovery: TaskRecovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a task that was taken and never started
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    take_task(queue)
    assert recovery.live_tasks() == {task_id(TaskKind.PLAN, job_id)}

    # When it is seen there for the first time: it may be under way
    recovery.return_stuck_handovers()
    assert queue.waiting() == 0

    # When it is still there much later
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    recovery.return_stuck_handovers()

    # Then it was nobody's
    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert retries_left(queue, task_id(TaskKind.PLAN, job_id)) == MAX_ATTEMPTS


def test_a_task_whose_worker_died_on_the_way_to_its_start_comes_back_at_once(
    queue: TaskQueue, recovery: TaskRecovery
) -> None:
    # Given a worker that has said which task it takes, and died before starting it
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    worker = make_worker(queue, "w1")
    worker.prepare_execution(take_task(queue))

    # When
    recovery.reap("w1")

    # Then
    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert recovery.live_tasks() == {task_id(TaskKind.PLAN, job_id)}


def test_a_lease_that_ran_out_gives_the_task_to_others_and_its_old_owner_is_told(
    queue: TaskQueue, recovery: TaskRecovery, redis: Redis
) -> None:
    # Given a worker whose host is gone: its lease has run out
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    execution = start_task(make_worker(queue, "w1"), queue)
    assert not recovery.has_lost_its_task("w1")
    redis.zadd(queue.rq.started_job_registry.key, {execution.composite_key: time.time() - 1})

    # When
    recovery.reap_expired_leases()

    # Then
    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert recovery.has_lost_its_task("w1")

    # And when it is buried, its task is not enqueued once more
    assert recovery.reap("w1") == {task_id(TaskKind.PLAN, job_id): False}
    assert queue.waiting() == 1


def test_rq_says_that_a_task_without_attempts_left_has_failed(queue: TaskQueue, recovery: TaskRecovery) -> None:
    # Given a task whose workers die every time, also at the pick-up that should have failed its job
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    for number in range(MAX_ATTEMPTS + 1):
        start_task(make_worker(queue, f"w{number}"), queue)
        recovery.reap(f"w{number}")

    # Then it is nowhere any more, and known to have failed
    assert recovery.live_tasks() == set()
    assert recovery.has_failed(task_id(TaskKind.PLAN, job_id))
