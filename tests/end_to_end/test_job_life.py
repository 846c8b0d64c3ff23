"""Whatever happens to the processes, every job ends, and with the bytes of an undisturbed run."""

import hashlib
import io
import signal
import time
from pathlib import Path

import av
import pytest

from app.embedded_redis import EmbeddedRedis
from tests.end_to_end.conftest import House, Workers, wait_for, write_moving_video
from worker.contract.cage_gaps import is_there_a_cage_gap
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobStatus, PartialResult
from worker.contract.presets import loaded_models
from worker.contract.report import Report

RunningHouse = tuple[House, Workers]

DEATHS = 'vsr_worker_deaths_total{reason="signal"}'
CANCEL_SECONDS = 5.0
"""A cancel never takes longer. On a machine that has nothing else to do it takes 1.75 s where a batch has to be cut
short: a task is given 1.25 s to stop by itself, the watch looks every 0.25 s, and the supervisor every 0.05 s."""


def test_a_job_passes_through_the_worker_and_leaves_only_what_is_needed(
    running_house: RunningHouse, video: Path, undisturbed: bytes
) -> None:
    house, workers = running_house
    before = workers.metrics()

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
    wait_for("tidying up", lambda: not house.folder(job_id).rendering.exists())
    files = sorted(path.name for path in house.folder(job_id).path.iterdir())
    assert files == ["job.json", "live", "plan.json", "report.json", "result.mp4", "source"]

    # And the report tells what every worker found in its segments, and took for them
    report = Report.model_validate_json(house.folder(job_id).report.read_bytes())
    assert (report.frames.source, report.frames.result, report.timestamps.exact) == (120, 120, True)
    assert report.result.sha256 == job.result.sha256
    assert set(report.stage_seconds) == {"plan", "decode", "infer", "wait", "encode", "check", "assemble"}
    assert min(report.stage_seconds.values()) > 0
    assert (report.quality.frames_compared > 0, report.quality.segments_without_figures) == (True, 0)
    assert report.quality.segment_borders is not None

    # And the others are told what is loaded, and what was done
    assert set(loaded_models(house.redis)) == {"tiny-random"}
    after = workers.metrics()
    counted = {name: after[name] - before[name] for name in before if name in after}
    assert counted['vsr_jobs_finished_total{reason="",status="succeeded"}'] == 1
    assert counted['vsr_jobs_finished_total{reason="worker_lost",status="failed"}'] == 0
    assert counted['vsr_segments_total{outcome="finished"}'] == 5
    assert counted['vsr_frames_total{preset="tiny-random"}'] == 120
    assert counted['vsr_output_pixels_total{preset="tiny-random"}'] == 120 * 128 * 96


def test_bad_sources_fail_with_their_reasons_and_the_worker_lives_on(
    running_house: RunningHouse, tmp_path: Path
) -> None:
    # Given sources that cannot be upscaled, and presets that cannot be loaded
    house, workers = running_house
    names = workers.names()
    bad_sources = {
        FailureCode.EMPTY_FILE: b"",
        FailureCode.NOT_A_VIDEO: b"this is a text, and not a short one at all" * 99,
        FailureCode.PLAYLIST_REFUSED: b"#EXTM3U\n#EXTINF:4,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    }
    jobs = {}
    for code, content in bad_sources.items():
        source = tmp_path / "source.mp4"
        source.write_bytes(content)
        jobs[code] = house.submit(source)
    good = write_moving_video(tmp_path / "good.mp4", 8)
    jobs[FailureCode.UNKNOWN_PRESET] = house.submit(good, preset="no-such-preset")
    jobs[FailureCode.WEIGHTS_MISSING] = house.submit(good, preset="paper")

    # When they have ended
    errors = {code: error_of(house, job_id) for code, job_id in jobs.items()}

    # Then each says why, and the same process is still there
    assert {code: error.code for code, error in errors.items()} == {code: code for code in jobs}
    assert all(error.message for error in errors.values())
    assert workers.names() == names


def test_a_worker_without_a_whole_cage_is_known_as_such_while_it_lives(house: House) -> None:
    # Given a worker that shall have none
    with house.workers(VSR_CAGE="off", VSR_LEASE_SECONDS="2") as workers:
        # Then it says so to the gateway, and to Prometheus
        wait_for("the news", lambda: is_there_a_cage_gap(house.redis))
        protections = {name: value for name, value in workers.metrics().items() if "vsr_cage_protection" in name}
        assert len(protections) == 5
        assert set(protections.values()) == {0.0}

    # And when it has gone nobody says so any more
    wait_for("the silence", lambda: not is_there_a_cage_gap(house.redis))


def test_a_canceled_job_leaves_the_worker_in_time(running_house: RunningHouse, video: Path, tmp_path: Path) -> None:
    # Given a job under way
    house, workers = running_house
    job_id = house.submit(video)
    house.wait_for_middle(job_id, segments_done=0)
    [name] = workers.names()
    assert workers.state(name) == "busy"

    # When it is canceled
    house.registry.cancel(job_id)

    # Then its worker is free in time, and serves the next job; the canceled one keeps what is done
    wait_for("the worker to leave the job", lambda: workers.state(name) != "busy", seconds=CANCEL_SECONDS)
    following = house.submit(write_moving_video(tmp_path / "short.mp4", 8))
    assert house.wait_for_end(following).status is JobStatus.SUCCEEDED
    assert house.job(job_id).status is JobStatus.CANCELED
    assert workers.names() == [name]


def test_a_canceled_job_that_is_tried_again_keeps_what_was_done(
    running_house: RunningHouse, video: Path, undisturbed: bytes
) -> None:
    # Given a job that was canceled in its middle
    house, workers = running_house
    job_id = house.submit(video)
    house.wait_for_middle(job_id)
    house.registry.cancel(job_id)
    [name] = workers.names()
    wait_for("the worker to leave the job", lambda: workers.state(name) != "busy")
    finished = house.finished_segments(job_id)

    # When it is tried again, as the gateway does it
    house.queue.forget_ended_tasks(job_id, house.registry.progress(job_id).segments_total)
    house.registry.retry(job_id)
    house.queue.enqueue_plan(job_id)
    house.wait_for_middle(job_id, segments_done=len(finished))
    kept = house.finished_segments(job_id)

    # Then it goes on behind what was done, and ends as if nothing had been
    assert finished
    assert finished.items() <= kept.items()
    assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    assert house.result(job_id) == undisturbed


def test_what_a_canceled_job_had_finished_is_kept_though_its_worker_dies(
    running_house: RunningHouse, video: Path
) -> None:
    # Given a job in its middle
    house, workers = running_house
    job_id = house.submit(video)
    house.wait_for_middle(job_id)

    # When it is canceled with the wish to keep what is done, as the gateway does it, and its worker dies
    house.registry.cancel(job_id, keep_partial=True)
    house.queue.enqueue_assemble(job_id)
    workers.kill_process()

    # Then the next one puts together what there is
    wait_for("the beginning", lambda: house.job(job_id).partial_result is not PartialResult.BEING_MADE)
    job = house.job(job_id)
    assert (job.status, job.partial_result) == (JobStatus.CANCELED, PartialResult.KEPT)
    assert job.source is not None
    assert job.result is not None
    assert 0 < job.result.frames < job.source.frames
    with av.open(io.BytesIO(house.result(job_id))) as result:
        assert sum(1 for _ in result.decode(video=0)) == job.result.frames


def test_a_killed_worker_process_costs_one_segment_and_not_a_byte(
    running_house: RunningHouse, video: Path, undisturbed: bytes
) -> None:
    # Given a job under way
    house, workers = running_house
    job_id = house.submit(video)
    house.wait_for_middle(job_id)
    finished = house.finished_segments(job_id)
    deaths = workers.metrics()[DEATHS]

    # When the process dies
    workers.kill_process()

    # Then the next one does what is missing, and nothing twice
    wait_for("the next segment", lambda: len(house.finished_segments(job_id)) > len(finished))
    assert house.finished_segments(job_id).items() >= finished.items()
    assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    assert house.result(job_id) == undisturbed
    assert workers.metrics()[DEATHS] == deaths + 1


def test_a_job_that_kills_every_worker_fails_and_the_next_one_succeeds(
    running_house: RunningHouse, video: Path, tmp_path: Path
) -> None:
    # Given a job that takes its process down, three times
    house, workers = running_house
    job_id = house.submit(video)
    for _ in range(3):
        wait_for("rendering", lambda: "segment" in workers.tasks())
        workers.kill_process()

    # When its task comes up once more
    error = error_of(house, job_id)

    # Then the job has failed, with the reason, and nothing else has
    assert error.code is FailureCode.WORKER_LOST
    assert not list(house.folder(job_id).segments.glob("*.part"))
    following = house.submit(write_moving_video(tmp_path / "after.mp4", 8))
    assert house.wait_for_end(following).status is JobStatus.SUCCEEDED


def test_a_cancel_takes_effect_though_the_network_cannot_be_interrupted(house: House, tmp_path: Path) -> None:
    # Given a job of which a single batch takes longer than a cancel may
    source = write_moving_video(tmp_path / "large.mp4", 48, width=480, height=360, rate=12)
    with house.workers(VSR_BATCH_FRAMES="48") as workers:
        job_id = house.submit(source)
        [name] = workers.names()
        wait_for("the batch", lambda: workers.metrics().get("vsr_batch_frames_count", 0) > 0)

        # When it is canceled
        house.registry.cancel(job_id)

        # Then the process ends itself, and another takes its place
        wait_for("the process to leave the job", lambda: workers.state(name) != "busy", seconds=CANCEL_SECONDS)
        wait_for("another process", lambda: workers.names() not in ([], [name]))
        assert workers.metrics()['vsr_worker_deaths_total{reason="canceled"}'] == 1
        assert house.job(job_id).status is JobStatus.CANCELED


def test_a_stopped_worker_gives_its_task_back_and_two_others_finish_the_job(
    house: House, video: Path, undisturbed: bytes
) -> None:
    # Given a job under way
    with house.workers() as workers:
        job_id = house.submit(video)
        house.wait_for_middle(job_id)

        # When the worker is asked to stop
        code = workers.stop()

        # Then it ends in order, with the task in the queue and no attempt used
        assert code == 0
        tasks = house.queue.rq.jobs
        assert tasks
        assert [task.retries_left for task in tasks] == [3] * len(tasks)
        assert house.job(job_id).status is JobStatus.RUNNING
        assert not list(house.folder(job_id).segments.glob("*.part"))

    # And two others share what is left, and change nothing
    with house.workers(2):
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed


def test_a_worker_that_is_too_slow_to_stop_is_killed_and_its_task_loses_no_attempt(
    house: House, tmp_path: Path
) -> None:
    # Given a batch that takes longer than a stopping worker may
    source = write_moving_video(tmp_path / "large.mp4", 24, width=320, height=240)
    with house.workers(VSR_BATCH_FRAMES="24", VSR_DRAIN_SECONDS="0.5") as workers:
        job_id = house.submit(source)
        wait_for("the segment", lambda: "segment" in workers.tasks())

        # When the worker is asked to stop
        code = workers.stop()

        # Then
        assert code == 0
        [task] = house.queue.rq.jobs
        assert task.retries_left == 3
        assert house.job(job_id).status is JobStatus.RUNNING
        assert not list(house.folder(job_id).segments.glob("*.part"))


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


def test_a_worker_that_waits_is_known_to_an_emptied_redis_again(house: House) -> None:
    # Given a worker with nothing to do
    with house.workers(VSR_LEASE_SECONDS="3") as workers:
        [name] = workers.names()
        wait_for("its process id", lambda: len(workers.pids()) == 1)
        [pid] = workers.pids()

        # When Redis forgets everything
        house.redis.flushall()

        # Then the same process is there again, and works
        wait_for("the worker", lambda: workers.pids() == [pid])
        assert workers.names() == [name]
        assert workers.state(name) in ("idle", "started")


def test_a_redis_that_is_away_for_a_while_ends_no_process(
    house: House, redis_server: EmbeddedRedis, video: Path, undisturbed: bytes
) -> None:
    # Given a job under way
    with house.workers() as workers:
        pids = workers.pids()
        job_id = house.submit(video)
        house.wait_for_middle(job_id)

        # When Redis is away for so long that the task ends without it
        redis_server.stop()
        time.sleep(3)
        redis_server.start()

        # Then the same process goes on, and the job ends as it should
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed
        assert workers.pids() == pids


def test_a_process_that_slept_through_its_lease_does_not_disturb_its_successor(
    house: House, video: Path, undisturbed: bytes
) -> None:
    # Given a job under way, with a short lease
    with house.workers(VSR_LEASE_SECONDS="2") as workers:
        job_id = house.submit(video)
        house.wait_for_middle(job_id)
        [name], [pid] = workers.names(), workers.pids()

        # When its process is frozen for longer than that
        workers.signal_process(pid, signal.SIGSTOP)
        wait_for("another process", lambda: workers.names() not in ([], [name]))

        # Then the frozen one was ended, the task went to the next, and nobody can tell from the result
        assert not Path(f"/proc/{pid}").exists()
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed


@pytest.mark.parametrize(("setting", "value", "exit_code"), [("VSR_PRESET", "paper", 10), ("VSR_DEVICE", "cuda", 11)])
def test_a_worker_that_cannot_start_says_why_once(
    house: House, tmp_path: Path, setting: str, value: str, exit_code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    # When a worker is started with what it cannot have: weights that nobody imported, a GPU that is hidden
    settings = {setting: value, "VSR_WEIGHTS_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    workers = Workers(house, 1, settings)

    # Then its supervisor does not try again and again
    assert workers.supervisor.wait(60) == exit_code
    assert capfd.readouterr().err.count("worker_cannot_start") == 1


def test_worker_processes_do_not_outlive_their_supervisor(house: House) -> None:
    workers = Workers(house, 1, {})
    wait_for("the worker process", lambda: len(workers.pids()) == 1)
    [pid] = workers.pids()
    workers.supervisor.kill()
    workers.supervisor.wait()
    wait_for("the end of the worker process", lambda: not Path(f"/proc/{pid}").exists())


def error_of(house: House, job_id: str) -> JobError:
    error = house.wait_for_end(job_id).error
    assert error is not None
    return error
