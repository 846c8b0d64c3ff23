"""What a dead worker held comes back to the queue: exactly once, at the front, and at once."""

import time

import pytest
from redis import Redis, UnixDomainSocketConnection
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Worker
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.worker.lifecycle.conftest import make_worker, start_task, take_task
from worker.contract.job import new_job_id
from worker.contract.queue import MAX_ATTEMPTS, TaskKind, TaskQueue, task_id
from worker.redis_clients import brief_redis
from worker.task_recovery import TaskRecovery

LEASE_SECONDS = 15.0


class Clock:
    """The monotonic clock of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self._now)

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def watch(self, recovery: TaskRecovery, seconds: float) -> None:
        """As the supervisor does: look at the leases every second."""
        for _ in range(round(seconds)):
            recovery.reap_expired_leases()
            self.advance(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def queue(redis: Redis) -> TaskQueue:
    return TaskQueue(redis)


@pytest.fixture
def recovery(redis: Redis, queue: TaskQueue) -> TaskRecovery:
    return TaskRecovery(redis, queue, LEASE_SECONDS)


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
    queue: TaskQueue, recovery: TaskRecovery, clock: "Clock"
) -> None:
    # Given a worker whose host is gone: nobody renews its lease
    job_id = new_job_id()
    queue.enqueue_plan(job_id)
    start_task(make_worker(queue, "w1"), queue)
    assert not recovery.has_lost_its_task("w1")

    # When it has been watched for as long as it lasts
    clock.watch(recovery, LEASE_SECONDS - 1)
    assert recovery.reap_expired_leases() == []
    clock.advance(2)
    assert recovery.reap_expired_leases() == [task_id(TaskKind.PLAN, job_id)]

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


@pytest.mark.parametrize("jump_seconds", [-3600, 20, 3600])
def test_a_worker_whose_clock_is_set_keeps_its_task(
    queue: TaskQueue, recovery: TaskRecovery, clock: Clock, redis: Redis, jump_seconds: float
) -> None:
    # Given a worker that renews its lease, and whose clock differs from ours, or is set in between
    queue.enqueue_plan(new_job_id())
    execution = start_task(make_worker(queue, "w1"), queue)
    for beat in range(12):
        end = time.time() + LEASE_SECONDS + 5 * beat + (jump_seconds if beat >= 4 else 0)
        redis.zadd(queue.rq.started_job_registry.key, {execution.composite_key: end})

        # When it is watched for a minute, then nothing is taken from it
        clock.watch(recovery, 5)
        assert recovery.reap_expired_leases() == []
    assert queue.waiting() == 0


def test_who_did_not_look_for_a_while_takes_nothing_from_anybody(
    queue: TaskQueue, recovery: TaskRecovery, clock: Clock
) -> None:
    # Given a supervisor that was frozen, or without Redis, for longer than the lease
    queue.enqueue_plan(new_job_id())
    start_task(make_worker(queue, "w1"), queue)
    clock.watch(recovery, 5)
    clock.advance(600)

    # When it looks again, the worker has the time to renew its lease
    clock.watch(recovery, LEASE_SECONDS / 2)
    assert recovery.reap_expired_leases() == []

    # And if it does not, that runs out like any other
    clock.watch(recovery, LEASE_SECONDS / 2)
    assert queue.waiting() == 1


def test_a_lease_that_is_renewed_after_the_look_is_not_taken(
    queue: TaskQueue, recovery: TaskRecovery, clock: Clock, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lease that looks expired, and is renewed in the moment before its task is taken
    queue.enqueue_plan(new_job_id())
    execution = start_task(make_worker(queue, "w1"), queue)
    clock.watch(recovery, LEASE_SECONDS + 1)
    look = recovery._look_at_leases

    def look_and_renew() -> None:
        look()
        redis.zincrby(queue.rq.started_job_registry.key, 5, execution.composite_key)

    # When
    monkeypatch.setattr(recovery, "_look_at_leases", look_and_renew)

    # Then it stays with its worker
    assert recovery.reap_expired_leases() == []
    assert queue.waiting() == 0
    assert not recovery.has_lost_its_task("w1")


def test_a_task_given_back_twice_for_want_of_an_answer_is_queued_once(
    queue: TaskQueue, redis_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two tasks whose worker is lost, and a Redis whose every answer comes too late once
    job_id = new_job_id()
    queue.enqueue_first_segments(job_id, 2, 2)
    worker = make_worker(queue, "w1")
    start_task(worker, queue)
    start_task(worker, queue)
    recovery = TaskRecovery(brief_redis(redis_url), queue, LEASE_SECONDS)
    clock.watch(recovery, LEASE_SECONDS + 1)
    read_response = UnixDomainSocketConnection.read_response
    lost: list[int] = []

    def late(self: UnixDomainSocketConnection, *arguments: object, **options: object) -> object:
        answer: object = read_response(self, *arguments, **options)
        if isinstance(answer, int) and not lost:  # of a script
            lost.append(answer)
            raise RedisTimeoutError("Timeout reading from socket")
        return answer

    # When
    with monkeypatch.context() as patched:
        patched.setattr(UnixDomainSocketConnection, "read_response", late)
        recovery.reap_expired_leases()
    recovery.reap("w1")

    # Then
    assert lost
    assert sorted(queue.rq.job_ids) == [task_id(TaskKind.SEGMENT, job_id, index) for index in (0, 1)]
    assert [retries_left(queue, task) for task in queue.rq.job_ids] == [MAX_ATTEMPTS - 1] * 2


def test_a_task_of_which_redis_lost_all_but_what_its_worker_wrote_since_goes_with_that_worker(
    queue: TaskQueue, recovery: TaskRecovery, redis: Redis
) -> None:
    # Given a Redis that was wiped between the handover and the start
    queue.enqueue_plan(new_job_id())
    worker = make_worker(queue, "w1")
    task = take_task(queue)
    redis.flushall()
    worker.prepare_execution(task)
    worker.prepare_job_execution(task, remove_from_intermediate_queue=True)

    # When that worker dies
    recovery.reap("w1")

    # Then nothing is left that would keep the task from being enqueued anew
    assert recovery.live_tasks() == set()
    assert not redis.exists(Job.key_for(task.id))


def test_the_names_of_lost_hosts_workers_are_forgotten(queue: TaskQueue, recovery: TaskRecovery, redis: Redis) -> None:
    # Given a living worker, and three whose hosts are gone: their keys have expired
    make_worker(queue, "alive")
    for number in range(3):
        redis.delete(make_worker(queue, f"lost{number}").key)

    # When
    recovery.forget_expired()

    # Then they count no more
    assert queue.fair_segments_in_flight() == 2
    assert [worker.name for worker in Worker.all(queue=queue.rq)] == ["alive"]
