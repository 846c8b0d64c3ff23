"""A preview among real processes: it overtakes what waits, survives its worker, and leaves every job as it is."""

import hashlib
import io
from pathlib import Path

import av
import numpy as np

from tests.end_to_end.conftest import House, Workers, wait_for, write_moving_video
from worker.contract.job import JobStatus
from worker.contract.stream import PreviewFacts

RunningHouse = tuple[House, Workers]


def preview_of(house: House, job_id: str) -> PreviewFacts:
    facts = house.folder(job_id).preview_facts
    wait_for("the preview", facts.exists)
    return PreviewFacts.model_validate_json(facts.read_bytes())


def frames_of(content: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


def test_previews_come_first_and_every_job_ends_with_its_bytes(
    running_house: RunningHouse, video: Path, undisturbed: bytes
) -> None:
    house, _ = running_house
    # given a long job under way, and one that waits behind it
    long_job = house.submit(write_moving_video(house.storage.root / "long.mp4", 600))
    job_id = house.submit(video)
    house.wait_for_middle(long_job)
    # when previews of both are asked for
    house.queue.enqueue_preview(job_id, 4.0)
    house.queue.enqueue_preview(long_job, 90.0)
    previews = preview_of(house, job_id), preview_of(house, long_job)
    # then they are there long before the long job is done
    assert [(preview.at_seconds, preview.frames, preview.error) for preview in previews] == [
        (4.0, 12, None),
        (90.0, 12, None),
    ]
    assert not house.job(long_job).status.is_final
    # and show what the result does
    assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
    assert house.result(job_id) == undisturbed
    shown, result = frames_of(house.folder(job_id).preview.read_bytes()), frames_of(undisturbed)[24:36]
    assert len(shown) == len(result)
    for ours, theirs in zip(shown, result, strict=True):
        assert 10 * np.log10(255**2 / max(((ours - theirs) ** 2).mean(), 1e-9)) > 30
    house.registry.cancel(long_job)


def test_a_worker_killed_at_a_preview_costs_neither_preview_nor_job(
    house: House, video: Path, undisturbed: bytes
) -> None:
    with house.workers() as workers:
        # given a worker that is at a preview
        job_id = house.submit(video)
        house.wait_for_middle(job_id)
        house.queue.enqueue_preview(job_id, 10.0)
        wait_for("a preview under way", lambda: "preview" in workers.tasks())
        # when its process is killed
        workers.kill_process()
        # then another one makes it
        assert preview_of(house, job_id).error is None
        folder = house.folder(job_id)
        assert hashlib.sha256(folder.preview.read_bytes()).hexdigest() == preview_of(house, job_id).sha256
        # and the job ends as if nothing had been, with nothing left behind
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed
        wait_for("tidying up", lambda: not list(folder.path.rglob("*.part")))


def test_a_preview_that_kills_every_worker_ends_as_failed_and_not_its_job(
    house: House, video: Path, undisturbed: bytes
) -> None:
    with house.workers() as workers:
        job_id = house.submit(video)
        house.wait_for_middle(job_id)
        house.queue.enqueue_preview(job_id, 10.0)
        # when every process that begins it is killed
        for _ in range(3):
            wait_for("a preview under way", lambda: "preview" in workers.tasks())
            workers.kill_process()
        # then it is given up
        error = preview_of(house, job_id).error
        assert error is not None
        assert error.code == "worker_lost"
        # and the job is not
        assert house.wait_for_end(job_id).status is JobStatus.SUCCEEDED
        assert house.result(job_id) == undisturbed
