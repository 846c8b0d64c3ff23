"""Faults that a storm of signals does not hold: what one segment does to its workers, and a disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.client import Client, ProblemResponseError
from tests.chaos.cluster import DOOR, Cluster, wait_for
from tests.chaos.storm import OPTIONS
from tests.chaos.videos import videos_with_results
from worker.contract.failure import FailureCode
from worker.contract.job import JobStatus

CHOSEN = OPTIONS.model_dump(include={"preset", "encoder_preset"})


def test_a_poisonous_segment_ends_its_own_job_and_no_other(tmp_path: Path) -> None:
    # Given a segment that kills every worker, in the longer of two videos
    videos = videos_with_results(tmp_path, lengths=(24, 72))
    short, long = videos
    with Cluster(tmp_path / "c", PYTHONPATH=DOOR, VSR_TEST_FAULT="poison 2") as cluster, Client(cluster.url) as client:
        # When both are submitted, the poisonous first
        poisoned, healthy = client.jobs.create(long, **CHOSEN), client.jobs.create(short, **CHOSEN)

        # Then the one fails after three attempts, and the other ends as it should
        error = client.jobs.wait(poisoned.id).error
        assert error is not None
        assert error.code is FailureCode.WORKER_LOST
        assert client.jobs.wait(healthy.id).status is JobStatus.SUCCEEDED
        client.jobs.download(healthy.id, tmp_path / "result.mp4")
        assert (tmp_path / "result.mp4").read_bytes() == videos[short]


def test_decoding_that_stands_still_is_ended_and_done_again(tmp_path: Path) -> None:
    # Given a segment whose decoding hangs once
    videos = videos_with_results(tmp_path, lengths=(48,))
    [(video, expected)] = videos.items()
    door = {
        "PYTHONPATH": DOOR,
        "VSR_TEST_FAULT": "hang 1",
        "VSR_TEST_FAULT_ONCE": str(tmp_path / "hung"),
        "VSR_STALL_SECONDS": "2",
        "VSR_LEASE_SECONDS": "3",
    }
    with Cluster(tmp_path / "c", hosts=1, **door) as cluster, Client(cluster.url) as client:
        # When the video is submitted; then the process is ended, and the job is not
        job = client.jobs.wait(client.jobs.create(video, **CHOSEN).id)
        assert (tmp_path / "hung").exists()
        assert job.status is JobStatus.SUCCEEDED
        client.jobs.download(job.id, tmp_path / "result.mp4")
        assert (tmp_path / "result.mp4").read_bytes() == expected


def test_hosts_whose_clocks_are_hours_apart_take_nothing_from_each_other(tmp_path: Path) -> None:
    # Given two hosts, one of which lives an hour ahead, and its clock is then set back by two
    videos = videos_with_results(tmp_path, lengths=(72, 96))
    with Cluster(tmp_path / "c", VSR_LEASE_SECONDS="3") as cluster, Client(cluster.url) as client:
        for clock_seconds in (3600, -3600):
            cluster.hosts[1].stop()
            cluster.hosts[1].start(clock_seconds)
            cluster.wait_for_workers()

            # When both share the work
            jobs = {
                client.jobs.create(video, **CHOSEN).id: expected for video, expected in videos.items() for _ in range(2)
            }

            # Then it is done, and no task was begun twice
            for job_id, expected in jobs.items():
                assert client.jobs.wait(job_id).status is JobStatus.SUCCEEDED
                client.jobs.download(job_id, tmp_path / "result.mp4")
                assert (tmp_path / "result.mp4").read_bytes() == expected
        assert {
            task: len(executions) for task, executions in cluster.watched.begun.items() if len(executions) > 1
        } == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write until nothing fits any more."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_refuses_what_is_new_and_loses_nothing_that_was_accepted(tmp_path: Path, small_disk: Path) -> None:
    # Given a job that was accepted, on a disk that is full before any of it is rendered
    videos = videos_with_results(tmp_path, lengths=(48,))
    [(video, expected)] = videos.items()
    settings = {"VSR_MIN_FREE_BYTES": "0"}
    with Cluster(tmp_path / "c", hosts=1, storage=small_disk, **settings) as cluster, Client(cluster.url) as client:
        cluster.hosts[0].stop()
        accepted = client.jobs.create(video, **CHOSEN)
        filler = small_disk / "filler"
        fill(filler)

        # When another is submitted, and the worker gets to the first
        with pytest.raises(ProblemResponseError) as refused:
            client.jobs.create(video, **CHOSEN)
        assert refused.value.problem.status == 507
        cluster.hosts[0].start()
        wait_for("the first job's end", lambda: client.jobs.get(accepted.id).status.is_final)
        error = client.jobs.get(accepted.id).error
        assert error is not None
        assert error.code is FailureCode.OUT_OF_DISK

        # Then it can be tried again once there is room, and ends as it should
        filler.unlink()
        client.jobs.retry(accepted.id)
        assert client.jobs.wait(accepted.id).status is JobStatus.SUCCEEDED
        client.jobs.download(accepted.id, tmp_path / "result.mp4")
        assert (tmp_path / "result.mp4").read_bytes() == expected
