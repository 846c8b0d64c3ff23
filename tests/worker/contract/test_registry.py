"""The registry decides races once, and storage can always rebuild what Redis forgets."""

from pathlib import Path
from threading import Thread

import pytest
from redis import Redis
from redis.client import Pipeline
from redis.connection import Connection
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import (
    Container,
    JobError,
    JobOptions,
    JobRecord,
    JobStatus,
    PartialResult,
    ResultInfo,
    new_job_id,
    now,
)
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage, StorageBusyError, folder_locked

RESULT = ResultInfo(container=Container.MP4, width=128, height=96, frames=9, size_bytes=1, sha256="0" * 64)


@pytest.fixture
def storage(tmp_path: Path) -> JobStorage:
    storage = JobStorage(tmp_path)
    storage.prepare()
    return storage


@pytest.fixture
def registry(redis: Redis, storage: JobStorage) -> JobRegistry:
    return JobRegistry(redis, storage)


class Killed(BaseException):
    """SIGKILL, for what runs in this process."""


def make_record() -> JobRecord:
    return JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=JobOptions(),
        source_name="clip.mp4",
        source_size_bytes=3,
        source_sha256="0" * 64,
    )


def test_the_first_to_finish_a_job_wins_on_disk_too(registry: JobRegistry, storage: JobStorage) -> None:
    # Given a job that the user has canceled
    record = make_record()
    registry.add(record)
    registry.cancel(record.id)

    # When a worker still reports success, and another a failure
    late_success = registry.succeed(record.id, RESULT)
    late_failure = registry.fail(record.id, JobError(code=FailureCode.INTERNAL, message="late"))

    # Then it stays canceled, in Redis and in storage
    assert late_success is None
    assert late_failure is None
    assert registry.get(record.id) == storage.read_record(record.id)
    on_disk = storage.read_record(record.id)
    assert on_disk is not None
    assert on_disk.status == JobStatus.CANCELED


def test_a_job_survives_the_loss_of_redis(registry: JobRegistry, redis: Redis) -> None:
    # Given an accepted job, and a Redis that lost everything
    record = make_record()
    registry.add(record)
    redis.flushall()

    # When it is asked for and then finished
    found = registry.get(record.id)
    registry.succeed(record.id, RESULT)

    # Then nothing was missing, and it is indexed again
    assert found == record
    assert [job.status for job in registry.newest(10)] == [JobStatus.SUCCEEDED]
    assert registry.count(JobStatus.QUEUED) == 0


def test_pages_run_from_the_newest_and_follow_the_status(registry: JobRegistry) -> None:
    # Given five jobs, the second canceled
    records = []
    for index in range(5):
        record = make_record().model_copy(update={"id": f"{index:020d}"})
        registry.add(record)
        records.append(record.id)
    registry.cancel(records[1])

    # When they are listed in pages of two, and by status
    first = registry.newest(2)
    second = registry.newest(2, before=first[-1].id)

    # Then
    assert [job.id for job in first + second] == list(reversed(records))[:4]
    assert [job.id for job in registry.newest(9, JobStatus.CANCELED)] == [records[1]]
    assert [registry.queue_position(job_id) for job_id in records] == [1, None, 2, 3, 4]


def test_a_segment_finished_twice_counts_once(registry: JobRegistry) -> None:
    # Given a job of three segments of ten frames, the first already there before a restart
    record = make_record()
    registry.add(record)
    registry.start_rendering(record.id, frames_total=30, segments_total=3, finished_segments={0: 10})
    registry.note_segment_progress(record.id, 1, 4)

    # When the second is reported twice, then the last
    halfway = registry.progress(record.id)
    answers = [registry.finish_segment(record.id, index, 10, 3) for index in (1, 1, 2)]
    done = registry.progress(record.id)

    # Then
    assert (halfway.frames_done, halfway.segments_done) == (14, 1)
    assert answers == [False, False, True]
    assert (done.frames_done, done.frames_total, done.segments_done, done.segments_total) == (30, 30, 3, 3)
    assert done.fraction == 1


def test_progress_noted_after_redis_forgot_the_job_is_no_progress_yet(registry: JobRegistry, redis: Redis) -> None:
    # Given a job under way, and a Redis that lost everything
    record = make_record()
    registry.add(record)
    registry.start_rendering(record.id, frames_total=20, segments_total=2, finished_segments={})
    redis.flushall()

    # When its worker, unaware, notes progress and finishes a segment
    registry.note_segment_progress(record.id, 1, 4)
    registry.finish_segment(record.id, 0, 10, 2)

    # Then the figures are zero until rendering is started anew from storage
    assert registry.progress(record.id).frames_total == 0
    registry.start_rendering(record.id, frames_total=20, segments_total=2, finished_segments={0: 10})
    assert registry.progress(record.id).frames_done == 10


def test_a_removed_job_leaves_nothing(registry: JobRegistry, storage: JobStorage, redis: Redis) -> None:
    # Given a job with media
    record = make_record()
    registry.add(record)
    storage.folder(record.id).source.write_bytes(b"abc")

    # When it is removed, and a worker has not heard of it yet
    registry.remove(record.id)
    registry.note_segment_progress(record.id, 0, 5)

    # Then
    assert registry.get(record.id) is None
    assert [path for path in storage.root.rglob("*") if path.is_file()] == []
    assert list(storage.jobs.iterdir()) == []
    assert redis.keys() == []


def test_a_job_that_is_removed_while_it_changes_stays_removed(
    registry: JobRegistry, storage: JobStorage, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose removal begins just when a change of it is about to be written
    record = make_record()
    registry.add(record)
    removal = Thread(target=lambda: JobRegistry(redis, storage).remove(record.id))
    write_record = storage.write_record

    def write_late(changed: JobRecord) -> None:
        removal.start()
        removal.join(timeout=0.5)  # it may be done by then, or must wait for us
        write_record(changed)

    monkeypatch.setattr(storage, "write_record", write_late)

    # When
    registry.cancel(record.id)
    removal.join()

    # Then
    assert list(storage.jobs.iterdir()) == []
    assert registry.get(record.id) is None


def test_ids_sort_by_time_and_never_reach_outside_the_storage(storage: JobStorage) -> None:
    assert new_job_id()[:8] <= new_job_id()[:8]
    with pytest.raises(ValueError, match="not a job id"):
        storage.folder("../../etc/passwd....")


@pytest.mark.parametrize("fault", [Killed(), JobFailureError(FailureCode.OUT_OF_DISK, "the disk is full")])
def test_a_change_that_storage_never_heard_of_is_known_to_be_unwritten_and_can_be_written(
    registry: JobRegistry, storage: JobStorage, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    # Given a worker that succeeds, and dies (or finds the disk full) between telling Redis and telling storage
    record = make_record()
    registry.add(record)

    def cut_short(record: JobRecord) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_record", cut_short)
        with pytest.raises((Killed, JobFailureError)):
            registry.succeed(record.id, RESULT)
    assert registry.unwritten_ids() == [record.id]

    # When somebody looks after it
    settled = registry.settle(record.id)

    # Then storage knows what Redis decided
    assert settled is not None
    assert settled.status is JobStatus.SUCCEEDED
    assert storage.read_record(record.id) == settled
    assert registry.unwritten_ids() == []


def test_a_change_whose_answer_was_lost_is_known_to_be_ones_own(
    registry: JobRegistry, storage: JobStorage, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that carries out a transaction, and whose answer comes too late
    record = make_record()
    registry.add(record)
    execute = Pipeline._execute_transaction
    lost: list[object] = []

    def late(self: Pipeline, connection: Connection, commands: list[object], raise_on_error: bool) -> object:
        answer = execute(self, connection, commands, raise_on_error)
        if not lost:
            lost.append(answer)
            self.watching = True  # as it is until the answer is read
            raise RedisTimeoutError("Timeout reading from socket")
        return answer

    # When a job is canceled
    monkeypatch.setattr(Pipeline, "_execute_transaction", late)
    canceled = registry.cancel(record.id, keep_partial=True)

    # Then it was canceled by us, durably and once
    assert lost
    assert canceled is not None
    assert canceled.partial_result is PartialResult.BEING_MADE
    assert storage.read_record(record.id) == canceled
    assert canceled.revision == 1
    assert registry.unwritten_ids() == []


def test_a_change_lost_by_redis_right_after_it_was_made_is_durable(
    registry: JobRegistry, storage: JobStorage, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that is wiped before storage was told
    record = make_record()
    registry.add(record)

    # When
    write = registry._write_down

    def write_after_the_wipe(changed: JobRecord) -> None:
        redis.flushall()
        write(changed)

    monkeypatch.setattr(registry, "_write_down", write_after_the_wipe)
    registry.succeed(record.id, RESULT)

    # Then
    on_disk = storage.read_record(record.id)
    assert on_disk is not None
    assert on_disk.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("later_in", ["redis", "storage"])
def test_of_redis_and_storage_the_later_revision_wins(
    registry: JobRegistry, storage: JobStorage, later_in: str
) -> None:
    # Given a job that was failed and is tried again, of which one of the two knows only the failure
    record = make_record()
    registry.add(record)
    failed = registry.fail(record.id, JobError(code=FailureCode.INTERNAL, message="lost"))
    retried = registry.retry(record.id)
    assert failed
    assert retried
    if later_in == "redis":
        storage.write_record(failed)
    else:
        registry.index(failed)

    # When
    settled = registry.settle(record.id)

    # Then
    assert settled == storage.read_record(record.id) == registry.get(record.id) == retried
    assert registry.unfinished_ids() == [record.id]


def test_what_redis_forgot_in_a_power_cut_still_decides_races(registry: JobRegistry, storage: JobStorage) -> None:
    # Given a canceled job that Redis believes to be under way
    record = make_record()
    registry.add(record)
    canceled = registry.cancel(record.id)
    registry.index(record)

    # When its worker reports success
    succeeded = registry.succeed(record.id, RESULT)

    # Then it comes too late
    assert succeeded is None
    assert storage.read_record(record.id) == canceled


def test_putting_a_job_back_into_the_index_writes_nothing(
    registry: JobRegistry, storage: JobStorage, redis: Redis
) -> None:
    # Given a job in an emptied Redis
    record = make_record()
    registry.add(record)
    redis.flushall()
    written = storage.folder(record.id).record.stat()

    # When
    registry.settle(record.id)

    # Then
    assert registry.indexed_ids() == {record.id}
    assert storage.folder(record.id).record.stat() == written


def test_a_record_of_before_there_were_revisions_can_be_changed(registry: JobRegistry, storage: JobStorage) -> None:
    # Given a job of the version before
    record = make_record()
    registry.add(record)
    file = storage.folder(record.id).record
    file.write_text(record.model_dump_json(exclude={"revision"}))
    assert "revision" not in file.read_text()

    # When
    canceled = registry.cancel(record.id)

    # Then
    assert canceled is not None
    assert canceled.revision == 1
    assert storage.read_record(record.id) == canceled


def test_a_damaged_record_is_replaced_by_what_redis_knows(registry: JobRegistry, storage: JobStorage) -> None:
    record = make_record()
    registry.add(record)
    storage.folder(record.id).record.write_bytes(b"{")
    assert registry.settle(record.id) == record
    assert storage.read_record(record.id) == record


def test_a_job_whose_storage_somebody_holds_for_too_long_is_changed_and_written_later(
    redis: Redis, tmp_path: Path
) -> None:
    # Given a process that froze while it held a job
    storage = JobStorage(tmp_path, lock_wait_seconds=0.05)
    storage.prepare()
    registry = JobRegistry(redis, storage)
    record = make_record()
    registry.add(record)

    # When
    with folder_locked(storage.folder(record.id).path, 0), pytest.raises(StorageBusyError):
        registry.cancel(record.id)

    # Then
    assert registry.is_final(record.id)
    assert registry.unwritten_ids() == [record.id]
    registry.settle(record.id)
    assert storage.read_record(record.id) == registry.get(record.id)


def test_a_redis_that_was_started_again_is_one_that_nobody_has_checked(registry: JobRegistry, redis: Redis) -> None:
    assert not registry.is_checked()
    registry.note_checked()
    assert registry.is_checked()
    redis.set("vsr:jobs:checked", "0" * 40)  # as an earlier server process has left it
    assert not registry.is_checked()
