"""A job whose source is still to be fetched is the courier's: a pass makes sure that the courier knows, and no more."""

from redis import Redis

from tests.worker.lifecycle.conftest import Desk
from worker.contract.errands import ErrandKind, Errands
from worker.contract.job import JobOptions, JobRecord, new_job_id, now
from worker.contract.queue import TaskKind, task_id


def accept(desk: Desk) -> str:
    record = JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=JobOptions(),
        source_name="clip.mp4",
        source_size_bytes=0,
        source_sha256="",
        source_url="https://example.com/clip.mp4",
    )
    desk.registry.add(record)
    return record.id


def test_a_lost_fetch_is_put_up_again_and_no_worker_gets_the_job(desk: Desk, redis: Redis) -> None:
    # Given a job whose source is to be fetched, in a Redis that lost that alone, then everything
    job_id = accept(desk)
    for lose in (lambda: redis.delete("vsr:errands:fetch"), redis.flushall):
        lose()

        # When
        desk.reconciler.run()

        # Then
        errand = Errands(redis).claim(ErrandKind.FETCH, 60)
        assert errand is not None
        assert errand.job_id == job_id
        assert desk.queue.waiting() == 0


def test_a_fetch_that_is_under_way_is_left_alone(desk: Desk, redis: Redis) -> None:
    accept(desk)
    errands = Errands(redis)
    errand = errands.claim(ErrandKind.FETCH, 60)
    assert errand is not None
    desk.reconciler.run()
    assert errands.claim(ErrandKind.FETCH, 60) is None
    assert errands.renew(errand, 60)


def test_a_job_whose_source_has_come_is_planned(desk: Desk) -> None:
    # Given a courier that died after noting that the source is there
    job_id = accept(desk)
    desk.registry.change(job_id, lambda job: job.model_copy(update={"source_sha256": "0" * 64, "source_size_bytes": 3}))
    desk.reconciler.run()
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
