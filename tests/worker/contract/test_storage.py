"""Files appear whole or not at all, and a deleted job stays deleted."""

from pathlib import Path

import pytest

from worker.contract.queue import TaskKind, task_id
from worker.contract.storage import JobFolder, JobStorage, publishing, write_atomically
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
