"""Whatever happens to the processes, every job ends, and with the bytes of an undisturbed run."""

import hashlib
from pathlib import Path

import pytest

from tests.end_to_end.conftest import House, Workers, wait_for, write_moving_video
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobStatus
from worker.contract.presets import loaded_models


def test_a_job_passes_through_the_worker_and_leaves_only_what_is_needed(
    house: House, video: Path, undisturbed: bytes
) -> None:
    with house.workers() as workers:
        # When a job is accepted
        job_id = house.submit(video)
        job = house.wait_for_end(job_id)

        # Then it succeeds, with the bytes of `vsr upscale`
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert house.result(job_id) == undisturbed
        assert job.result is not None
        assert (job.result.width, job.result.height, job.result.frames) == (128, 96, 120)
        assert job.result.sha256 == hashlib.sha256(undisturbed).hexdigest()
        progress = house.registry.progress(job_id)
        assert (progress.frames_done, progress.segments_done) == (120, 5)

        # And the segments are gone, the source and the report stay
        wait_for("tidying up", lambda: not house.folder(job_id).segments.exists())
        files = sorted(path.name for path in house.folder(job_id).path.iterdir())
        assert files == ["job.json", "plan.json", "report.json", "result.mp4", "source"]

        # And the others are told what is loaded, and what was done
        assert set(loaded_models(house.redis)) == {"tiny-random"}
        figures = workers.metrics()
        assert figures['vsr_jobs_finished_total{reason="",status="succeeded"}'] == 1
        assert figures['vsr_jobs_finished_total{reason="worker_lost",status="failed"}'] == 0
        assert figures['vsr_segments_total{outcome="finished"}'] == 5
        assert figures["vsr_frames_total"] == 120


def test_two_worker_processes_share_one_video_and_change_nothing(house: House, video: Path, undisturbed: bytes) -> None:
    with house.workers(2):
        job_id = house.submit(video)
        house.wait_for_end(job_id)
        assert house.result(job_id) == undisturbed


def test_a_killed_worker_process_costs_one_segment_and_not_a_byte(
    house: House, video: Path, undisturbed: bytes
) -> None:
    with house.workers() as workers:
        # Given a job under way
        job_id = house.submit(video)
        house.wait_for_middle(job_id)
        finished = house.finished_segments(job_id)

        # When the process dies
        workers.kill_process()

        # Then the next one does what is missing, and nothing twice
        wait_for("the next segment", lambda: len(house.finished_segments(job_id)) > len(finished))
        assert house.finished_segments(job_id).items() >= finished.items()
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed
        assert workers.metrics()['vsr_worker_deaths_total{reason="signal"}'] == 1


def test_a_canceled_job_leaves_the_worker_within_two_seconds(house: House, video: Path) -> None:
    with house.workers() as workers:
        # Given a job under way
        job_id = house.submit(video)
        house.wait_for_middle(job_id, segments_done=0)
        [name] = workers.names()
        assert workers.state(name) == "busy"

        # When it is canceled
        house.registry.cancel(job_id)

        # Then its worker is free (or gone) in time, the job keeps what is done, and the next job is served
        wait_for("the worker to leave the job", lambda: workers.state(name) != "busy", seconds=2.0)
        assert house.job(job_id).status is JobStatus.CANCELED
        following = house.submit(write_moving_video(video.with_name("short.mp4"), 8))
        assert house.wait_for_end(following).status is JobStatus.SUCCEEDED
        assert house.job(job_id).status is JobStatus.CANCELED


def test_a_cancel_takes_effect_though_the_network_cannot_be_interrupted(house: House, tmp_path: Path) -> None:
    # Given a job of which a single batch takes longer than a cancel may
    source = write_moving_video(tmp_path / "large.mp4", 24, width=320, height=240)
    with house.workers(VSR_BATCH_FRAMES="24") as workers:
        job_id = house.submit(source)
        wait_for("rendering", lambda: house.registry.progress(job_id).segments_total > 0)
        [name] = workers.names()
        wait_for("the segment", lambda: "segment" in workers.tasks())

        # When it is canceled
        house.registry.cancel(job_id)

        # Then the process ends itself, and another takes its place
        wait_for("the process to leave the job", lambda: workers.state(name) != "busy", seconds=2.0)
        wait_for("another process", lambda: workers.names() not in ([], [name]))
        assert workers.metrics()['vsr_worker_deaths_total{reason="canceled"}'] == 1
        assert house.job(job_id).status is JobStatus.CANCELED


def test_a_stopped_worker_gives_its_task_back(house: House, video: Path, undisturbed: bytes) -> None:
    # Given a job under way
    with house.workers() as workers:
        job_id = house.submit(video)
        house.wait_for_middle(job_id)

        # When the worker is asked to stop
        code = workers.stop()

        # Then it ends in order, with the task at the front of the queue and no attempt used
        assert code == 0
        tasks = house.queue.rq.jobs
        assert tasks
        assert [task.retries_left for task in tasks] == [3] * len(tasks)
        assert house.job(job_id).status is JobStatus.RUNNING
        assert not list(house.folder(job_id).segments.glob("*.part"))

    # And another worker finishes the job
    with house.workers():
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed


def test_an_emptied_redis_loses_no_job(house: House, video: Path, undisturbed: bytes) -> None:
    # Given a job under way, and one that waits
    with house.workers():
        under_way, waiting = house.submit(video), house.submit(video)
        house.wait_for_middle(under_way)

        # When Redis forgets everything
        house.redis.flushall()

        # Then both end, and as they should
        for job_id in (under_way, waiting):
            assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
            assert house.result(job_id) == undisturbed


def test_a_job_that_kills_every_worker_fails_and_the_next_one_succeeds(house: House, video: Path) -> None:
    with house.workers() as workers:
        # Given a job that takes its process down, three times
        job_id = house.submit(video)
        for _ in range(3):
            wait_for("rendering", lambda: "segment" in workers.tasks())
            workers.kill_process()

        # When its task comes up once more
        job = house.wait_for_end(job_id)

        # Then the job has failed, with the reason, and nothing else has
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error.code is FailureCode.WORKER_LOST
        assert not list(house.folder(job_id).segments.glob("*.part"))
        following = house.submit(write_moving_video(video.with_name("after.mp4"), 8))
        assert house.wait_for_end(following).status is JobStatus.SUCCEEDED


def test_bad_sources_fail_with_their_reasons_and_the_worker_lives_on(house: House, tmp_path: Path) -> None:
    # Given sources that cannot be upscaled
    sources = {
        FailureCode.EMPTY_FILE: b"",
        FailureCode.NOT_A_VIDEO: b"this is a text, and not a short one at all" * 99,
        FailureCode.PLAYLIST_REFUSED: b"#EXTM3U\n#EXTINF:4,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    }
    with house.workers() as workers:
        [name] = workers.names()

        # When they are submitted all the same
        jobs = {}
        for code, content in sources.items():
            source = tmp_path / "source.mp4"
            source.write_bytes(content)
            jobs[code] = house.submit(source)
        unknown = house.submit(write_moving_video(tmp_path / "good.mp4", 8), preset="no-such-preset")
        without_weights = house.submit(tmp_path / "good.mp4", preset="paper")

        # Then each says why, and the same process is still there
        errors = {code: house.wait_for_end(job_id).error for code, job_id in jobs.items()}
        assert {code: error.code for code, error in errors.items() if error} == {code: code for code in sources}
        assert _error(house, unknown).code is FailureCode.UNKNOWN_PRESET
        assert _error(house, without_weights).code is FailureCode.WEIGHTS_MISSING
        assert workers.names() == [name]


@pytest.mark.parametrize(
    ("setting", "value", "exit_code"),
    [("VSR_PRESET", "paper", 10), ("VSR_DEVICE", "cuda", 11), ("VSR_PRESET", "no-such-preset", 12)],
)
def test_a_worker_that_cannot_start_says_why_once(
    house: House, tmp_path: Path, setting: str, value: str, exit_code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    # When a worker is started with what it cannot have (here: no GPU, no imported weights)
    workers = Workers(house, 1, {setting: value, "VSR_WEIGHTS_DIR": str(tmp_path)})

    # Then its supervisor does not try again and again
    assert workers.supervisor.wait(60) == exit_code
    assert capfd.readouterr().err.count("worker_cannot_start") == 1


def _error(house: House, job_id: str) -> JobError:
    error = house.wait_for_end(job_id).error
    assert error is not None
    return error


def test_worker_processes_do_not_outlive_their_supervisor(house: House) -> None:
    workers = Workers(house, 1, {})
    wait_for("the worker process", lambda: len(workers.pids()) == 1)
    [pid] = workers.pids()
    workers.supervisor.kill()
    workers.supervisor.wait()
    wait_for("the end of the worker process", lambda: not Path(f"/proc/{pid}").exists())
