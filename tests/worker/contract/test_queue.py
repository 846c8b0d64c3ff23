"""A job's tasks form chains; enqueuing one twice is harmless."""

import pytest
from redis import Redis
from rq import SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from tests.worker.lifecycle.conftest import start_task, take_task
from worker.contract.job import new_job_id
from worker.contract.queue import TaskKind, TaskQueue, job_id_of, task_id


def test_a_job_never_has_more_than_its_share_of_tasks_in_the_queue(redis: Redis) -> None:
    # Given a job of five segments with two at a time
    queue, job_id = TaskQueue(redis), new_job_id()

    # When it starts, twice (a repetition after a crash), and its first segment ends
    queue.enqueue_first_segments(job_id, 5, 2)
    queue.enqueue_first_segments(job_id, 5, 2)
    queue.enqueue_segment_after(job_id, 0, 5, 2)

    # Then
    assert queue.rq.job_ids == [task_id(TaskKind.SEGMENT, job_id, index) for index in (0, 1, 2)]


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 5, 8])
def test_every_segment_is_in_exactly_one_chain(redis: Redis, at_a_time: int) -> None:
    # Given a job of seven segments
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_first_segments(job_id, 7, at_a_time)

    # When each of them ends, and its task is forgotten as if it had never been
    enqueued = []
    while queue.waiting():
        task = queue.rq.job_ids[0]
        enqueued.append(task)
        queue.rq.remove(task)
        redis.delete(f"rq:job:{task}")
        assert queue.waiting() < at_a_time
        queue.enqueue_segment_after(job_id, int(task.rpartition("-")[2]), 7, at_a_time)

    # Then none came twice
    assert sorted(enqueued) == [task_id(TaskKind.SEGMENT, job_id, index) for index in range(7)]


@pytest.mark.parametrize(("workers", "at_a_time"), [(0, 2), (1, 2), (2, 3), (4, 5)])
def test_a_job_takes_what_keeps_the_workers_busy_and_one_more(redis: Redis, workers: int, at_a_time: int) -> None:
    queue = TaskQueue(redis)
    for number in range(workers):
        SimpleWorker([queue.rq], name=f"w{number}", connection=redis).register_birth()
    assert queue.fair_segments_in_flight() == at_a_time


def test_the_last_link_of_a_chain_has_none_after_it(redis: Redis) -> None:
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_segment_after(job_id, 3, 5, 2)
    assert queue.waiting() == 0


def test_a_lost_task_can_be_enqueued_again_though_redis_remembers_it(redis: Redis) -> None:
    # Given a task of which only the hash is left
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_plan(job_id)
    redis.delete(queue.rq.key)
    queue.enqueue_plan(job_id)
    assert queue.waiting() == 0

    # When
    queue.enqueue_again(TaskKind.PLAN, job_id)

    # Then
    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]


def test_a_task_id_tells_its_job(redis: Redis) -> None:
    job_id = new_job_id()
    assert job_id_of(task_id(TaskKind.SEGMENT, job_id, 7)) == job_id
    assert job_id_of(task_id(TaskKind.ASSEMBLE, job_id)) == job_id


@pytest.fixture
def worker(redis: Redis) -> SimpleWorker:
    queue = TaskQueue(redis)
    worker = SimpleWorker([queue.rq], name="w1", connection=redis, serializer=JSONSerializer)
    worker.register_birth()
    return worker


@pytest.mark.parametrize("is_at", ["queue", "handover", "work"])
def test_a_task_that_somebody_has_is_not_enqueued_again(redis: Redis, worker: SimpleWorker, is_at: str) -> None:
    # Given a task that was enqueued, or taken, or begun, since somebody found it missing
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_plan(job_id)
    if is_at == "handover":
        take_task(queue)
    if is_at == "work":
        start_task(worker, queue)
    before = {key: redis.dump(key) for key in redis.scan_iter()}

    # When
    queue.enqueue_again(TaskKind.PLAN, job_id)

    # Then it is left alone
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


@pytest.mark.parametrize("forget", ["enqueue_again", "forget_ended_tasks", "forget_tasks"])
def test_what_a_worker_wrote_of_a_task_that_redis_lost_stops_nobody(
    redis: Redis, worker: SimpleWorker, forget: str
) -> None:
    # Given a Redis that was wiped between a task's handover and its start, and a worker that died then
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_plan(job_id)
    task = take_task(queue)
    redis.flushall()
    worker.prepare_execution(task)
    worker.prepare_job_execution(task, remove_from_intermediate_queue=True)
    redis.delete(queue.rq.started_job_registry.key)
    assert redis.hget(Job.key_for(task.id), "data") is None

    # When
    if forget == "enqueue_again":
        queue.enqueue_again(TaskKind.PLAN, job_id)
    else:
        getattr(queue, forget)(job_id, 0)
        queue.enqueue_plan(job_id)

    # Then it is a task like any other
    assert queue.rq.job_ids == [task.id]
    assert take_task(queue).kwargs == {"job_id": job_id}


def test_the_tasks_of_a_job_can_be_forgotten_after_its_worker_was_lost(redis: Redis, worker: SimpleWorker) -> None:
    # Given a task whose worker is gone for so long that Redis dropped the execution, but not yet its name
    queue, job_id = TaskQueue(redis), new_job_id()
    queue.enqueue_first_segments(job_id, 3, 2)
    execution = start_task(worker, queue)
    redis.delete(execution.key)

    # When
    queue.forget_tasks(job_id, 3)

    # Then
    assert queue.waiting() == 0
    assert [key for key in redis.scan_iter() if job_id.encode() in key] == []
    assert redis.zcard(queue.rq.started_job_registry.key) == 0


def test_the_tasks_of_a_long_job_are_forgotten_in_many_steps(redis: Redis) -> None:
    queue, job_id, other = TaskQueue(redis), new_job_id(), new_job_id()
    queue.enqueue_first_segments(job_id, 1200, 1200)
    queue.enqueue_plan(other)

    queue.forget_tasks(job_id, 1200)

    assert queue.rq.job_ids == [task_id(TaskKind.PLAN, other)]
    assert redis.keys("rq:job:*") == [b"rq:job:" + task_id(TaskKind.PLAN, other).encode()]


def test_previews_and_all_else_take_turns_however_many_ask(redis: Redis) -> None:
    # Given a job with a segment that waits, and a preview that has just begun
    queue, job_id, other_id, third_id = TaskQueue(redis), new_job_id(), new_job_id(), new_job_id()
    queue.enqueue_first_segments(job_id, 1, 1)
    queue.note_begun(TaskKind.PREVIEW)

    # When another is asked for, then the segment has begun, and then a third one is asked for
    queue.enqueue_preview(other_id, 0.0)
    queue.note_begun(TaskKind.SEGMENT)
    queue.enqueue_preview(third_id, 0.0)

    # Then the second stands behind the segment, and the third before all
    assert queue.rq.job_ids == [
        task_id(TaskKind.PREVIEW, third_id),
        task_id(TaskKind.SEGMENT, job_id, 0),
        task_id(TaskKind.PREVIEW, other_id),
    ]
