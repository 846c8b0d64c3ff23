"""An errand is done by one courier at a time, outlives every courier, and comes back with the job that needs it."""

from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from worker.contract.errands import Errand, ErrandKind, Errands
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

CLAIM_SECONDS = 60.0


@pytest.fixture
def registry(redis: Redis, tmp_path: Path) -> JobRegistry:
    storage = JobStorage(tmp_path)
    storage.prepare()
    return JobRegistry(redis, storage)


@pytest.fixture
def errands(redis: Redis) -> Errands:
    return Errands(redis)


def job(**fields: object) -> JobRecord:
    record = JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=JobOptions(),
        source_name="clip.mp4",
        source_size_bytes=0,
        source_sha256="",
    )
    return record.model_copy(update=fields)


def claimed(errands: Errands, kind: ErrandKind, claim_seconds: float = CLAIM_SECONDS) -> Errand:
    errand = errands.claim(kind, claim_seconds)
    assert errand is not None
    return errand


def let_time_pass(redis: Redis, kind: ErrandKind) -> None:
    """Make everything due."""
    for job_id in redis.zrange(f"vsr:errands:{kind}", 0, -1):
        redis.zadd(f"vsr:errands:{kind}", {job_id: 1})


def test_an_accepted_job_without_its_source_is_to_be_fetched_once(registry: JobRegistry, errands: Errands) -> None:
    # Given
    record = job(source_url="https://example.com/clip.mp4")
    registry.add(record)

    # Then one courier gets it, and no other
    assert claimed(errands, ErrandKind.FETCH).job_id == record.id
    assert errands.claim(ErrandKind.FETCH, CLAIM_SECONDS) is None
    assert errands.claim(ErrandKind.WEBHOOK, CLAIM_SECONDS) is None


def test_a_job_whose_source_is_here_needs_no_courier(registry: JobRegistry, errands: Errands) -> None:
    registry.add(job(source_url="https://example.com/clip.mp4", source_sha256="0" * 64))
    registry.add(job(source_sha256="0" * 64))
    assert errands.count(ErrandKind.FETCH) == 0


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_whatever_ends_a_job_puts_its_webhook_up(registry: JobRegistry, errands: Errands, end: str) -> None:
    # Given a job with a receiver, and one without
    record, silent = job(webhook_url="https://example.com/hook"), job()
    for one in (record, silent):
        registry.add(one)
    assert errands.count(ErrandKind.WEBHOOK) == 0

    # When both end
    for one in (record, silent):
        if end == "cancel":
            registry.cancel(one.id)
        elif end == "fail":
            registry.fail(one.id, JobError(code=FailureCode.INTERNAL, message="x"))
        else:
            registry.change(one.id, lambda current: current.model_copy(update={"status": JobStatus.SUCCEEDED}))

    # Then
    assert claimed(errands, ErrandKind.WEBHOOK).job_id == record.id
    assert errands.count(ErrandKind.WEBHOOK) == 1


def test_the_errand_of_a_dead_courier_is_due_again_and_its_ghost_can_do_nothing(
    registry: JobRegistry, errands: Errands, redis: Redis
) -> None:
    # Given a courier that died, or fell asleep, with an errand in hand
    registry.add(job(source_url="https://example.com/clip.mp4"))
    ghost = claimed(errands, ErrandKind.FETCH)
    assert errands.renew(ghost, CLAIM_SECONDS)

    # When its claim has run out
    let_time_pass(redis, ErrandKind.FETCH)

    # Then another gets it, and is told that it is not the first
    second = claimed(errands, ErrandKind.FETCH)
    assert (second.job_id, second.losses, second.failures) == (ghost.job_id, 1, 0)

    # And the ghost neither keeps nor ends what is not its own
    assert not errands.renew(ghost, CLAIM_SECONDS)
    errands.finish(ghost)
    errands.postpone(ghost, 0)
    assert errands.claim(ErrandKind.FETCH, CLAIM_SECONDS) is None
    errands.finish(second)
    assert errands.count(ErrandKind.FETCH) == 0
    assert redis.keys("vsr:errands*") == []


def test_what_is_postponed_is_not_due_and_what_is_given_back_counts_no_attempt(
    registry: JobRegistry, errands: Errands
) -> None:
    registry.add(job(source_url="https://example.com/clip.mp4"))
    errands.give_back(claimed(errands, ErrandKind.FETCH))
    errand = claimed(errands, ErrandKind.FETCH)
    assert (errand.losses, errand.failures) == (0, 0)

    errands.postpone(errand, 3600)
    assert errands.claim(ErrandKind.FETCH, CLAIM_SECONDS) is None
    assert errands.count(ErrandKind.FETCH) == 1

    errands.put(ErrandKind.FETCH, errand.job_id)
    again = claimed(errands, ErrandKind.FETCH)
    assert (again.losses, again.failures) == (0, 1)


@pytest.mark.parametrize("end", ["give_back", "postpone", "finish"])
def test_what_was_let_go_of_is_not_renewed_by_the_thread_that_renews_claims(
    registry: JobRegistry, errands: Errands, end: str
) -> None:
    # Given an errand that is let go of, while another thread of its courier still has it on its list
    registry.add(job(source_url="https://example.com/clip.mp4"))
    errand = claimed(errands, ErrandKind.FETCH)
    newer = replace(errand, claim="another")
    ends = {"give_back": errands.give_back, "postpone": lambda one: errands.postpone(one, 0), "finish": errands.finish}
    ends[end](errand)

    # When
    renewed = errands.renew(errand, CLAIM_SECONDS)

    # Then it is due, or done, and nothing goes on under its name
    assert renewed is False
    assert errand.take_over(newer) is False
    assert (errands.claim(ErrandKind.FETCH, CLAIM_SECONDS) is None) == (end == "finish")


def test_a_claim_of_ones_own_that_was_taken_anew_goes_on(registry: JobRegistry, errands: Errands, redis: Redis) -> None:
    registry.add(job(source_url="https://example.com/clip.mp4"))
    errand = claimed(errands, ErrandKind.FETCH)
    let_time_pass(redis, ErrandKind.FETCH)

    assert errand.take_over(claimed(errands, ErrandKind.FETCH))
    assert errands.renew(errand, CLAIM_SECONDS)


def test_indexing_a_job_again_changes_nothing_about_its_errand(registry: JobRegistry, errands: Errands) -> None:
    # Given an errand that was postponed, and one that is being done
    for _ in range(2):
        registry.add(job(source_url="https://example.com/clip.mp4"))
    errands.postpone(claimed(errands, ErrandKind.FETCH), 3600)
    errand = claimed(errands, ErrandKind.FETCH)

    # When
    for record in registry.newest(10):
        registry.index(record)

    # Then
    assert errands.claim(ErrandKind.FETCH, CLAIM_SECONDS) is None
    assert errands.renew(errand, CLAIM_SECONDS)


def test_the_errands_of_an_emptied_redis_come_back_with_its_jobs(
    registry: JobRegistry, errands: Errands, redis: Redis
) -> None:
    # Given a source to be fetched and an end to be told
    waiting, ended = job(source_url="https://example.com/a.mp4"), job(webhook_url="https://example.com/hook")
    for record in (waiting, ended):
        registry.add(record)
    registry.cancel(ended.id)

    # When Redis is emptied and indexed again
    redis.flushall()
    for record in (waiting, ended):
        registry.change(record.id, lambda current: current)

    # Then
    assert claimed(errands, ErrandKind.FETCH).job_id == waiting.id
    assert claimed(errands, ErrandKind.WEBHOOK).job_id == ended.id


def test_a_second_end_of_a_retried_job_is_told_at_once(registry: JobRegistry, errands: Errands) -> None:
    # Given a job whose first end could not be told so far
    record = job(webhook_url="https://example.com/hook")
    registry.add(record)
    registry.fail(record.id, JobError(code=FailureCode.INTERNAL, message="x"))
    errands.postpone(claimed(errands, ErrandKind.WEBHOOK), 3600)

    # When it is tried again and ends again
    registry.change(record.id, lambda current: current.model_copy(update={"status": JobStatus.QUEUED}))
    registry.cancel(record.id)

    # Then
    assert claimed(errands, ErrandKind.WEBHOOK).job_id == record.id


def test_a_deleted_job_leaves_no_errand(registry: JobRegistry, errands: Errands, redis: Redis) -> None:
    record = job(source_url="https://example.com/clip.mp4", webhook_url="https://example.com/hook")
    registry.add(record)
    claimed(errands, ErrandKind.FETCH)
    registry.cancel(record.id)
    registry.remove(record.id)
    assert redis.keys("*") == []
