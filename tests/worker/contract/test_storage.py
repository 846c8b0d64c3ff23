"""Files appear whole or not at all, and a deleted job stays deleted."""

import errno
from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions, JobRecord, now
from worker.contract.queue import TaskKind, task_id
from worker.contract.storage import (
    JobFolder,
    JobStorage,
    out_of_disk_named,
    process_mark,
    publishing,
    write_atomically,
)
from worker.job_files import remove_partial_files

JOB_ID = "0" * 20


@pytest.fixture
def storage(tmp_path: Path) -> JobStorage:
    storage = JobStorage(tmp_path / "storage")
    storage.prepare()
    return storage


def segments_of(storage: JobStorage) -> JobFolder:
    folder = storage.make_folder(JOB_ID)
    folder.make_segments()
    return folder


def test_the_folder_of_a_deleted_job_does_not_come_back(storage: JobStorage) -> None:
    # Given a job that is deleted while a worker is at it
    folder = segments_of(storage)
    storage.delete_job(JOB_ID)

    # When the worker goes on
    for go_on in (folder.make_segments, lambda: write_atomically(folder.segment(0, ".mp4"), b"a segment")):
        with pytest.raises(FileNotFoundError):
            go_on()

    # Then
    assert list(storage.jobs.iterdir()) == []


def test_only_the_partial_files_of_the_dead_process_are_removed(
    storage: JobStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given partial files of processes with the same pid, in two containers
    folder = segments_of(storage)
    writers, partials = [], {}
    for host in ("here", "there"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        monkeypatch.setattr("os.getpid", lambda: 7)
        writers.append(publishing(folder.segment(3, ".mp4")))
        partials[host] = writers[-1].__enter__()
        partials[host].touch()

    # When the one there has died, and its supervisor tidies up
    remove_partial_files(storage, task_id(TaskKind.SEGMENT, JOB_ID, 3), pid=7)

    # Then
    assert partials["here"].exists()
    assert not partials["there"].exists()


def test_the_folder_that_a_caged_process_wrote_in_goes_with_its_dead_worker(storage: JobStorage) -> None:
    # Given what workers that were killed left: one of this host's process 7, one of another's, with files in it
    folder = segments_of(storage)
    ours = folder.path / f"caged.{process_mark(7)}.{'0' * 8}.part"
    theirs = folder.path / f"caged.elsewhere.7.{'0' * 8}.part"
    for left in (ours, theirs):
        left.mkdir()
        (left / "result.mp4").touch()
    # When the supervisor tidies up behind a segment
    remove_partial_files(storage, task_id(TaskKind.SEGMENT, JOB_ID, 3), pid=7)
    # Then
    assert [ours.exists(), theirs.exists()] == [False, True]
    # And when the job expires, then nothing stays
    storage.remove_media(JOB_ID)
    assert not theirs.exists()


def test_a_record_in_the_folder_of_another_job_is_none(storage: JobStorage) -> None:
    # Given two jobs, and somebody who copies the record of one into the folder of the other
    other_id = "1" * 20
    for job_id in (JOB_ID, other_id):
        storage.write_record(
            JobRecord(
                id=job_id,
                created_at=now(),
                options=JobOptions(),
                source_name="a.mp4",
                source_size_bytes=1,
                source_sha256="0" * 64,
            )
        )
    storage.folder(JOB_ID).record.write_bytes(storage.folder(other_id).record.read_bytes())
    # Then it counts for neither
    with pytest.raises(ValidationError, match="is that of another job"):
        storage.read_record(JOB_ID)
    assert storage.read_record(other_id) is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_want_of_space_has_a_name(number: int) -> None:
    with pytest.raises(JobFailureError) as caught, out_of_disk_named():
        raise OSError(number, "no room")
    assert caught.value.code is FailureCode.OUT_OF_DISK
