"""Memory that is too small makes a job slower, never wrong: all of it is rendered the smaller way, by everyone."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.upscaler import TwoStepUpscaler
from tests.worker.conftest import write_video
from tests.worker.lifecycle.conftest import Desk, StandingLease
from worker import metrics, tasks
from worker.cage import Cages
from worker.contract.failure import FailureCode
from worker.contract.job import Container, JobOptions, JobStatus, PartialResult, Progress
from worker.contract.queue import TaskKind, task_id
from worker.contract.report import RenderingReport, Report
from worker.contract.storage import JobFolder
from worker.job_files import read_plan
from worker.loaded_models import LoadedModels
from worker.local import upscale_file
from worker.network import NetworkUpscaler
from worker.plan import sha256_of_file
from worker.rendering import (
    REUSE_TILE_PX,
    Rendering,
    RenderingChangedError,
    agreed_rendering,
    beginning,
    read_rendering,
    step_down,
    unchanged,
)
from worker.settings import VideoLimits, WorkerSettings
from worker.task_watch import TaskWatch

WIDTH, HEIGHT, FRAMES, SEGMENT_FRAMES = 192, 64, 12, 4
OPTIONS = JobOptions(preset="tiny-random", encoder_preset="ultrafast")
STILL = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> tasks.Workbench:
    """A worker that usually takes four frames at a time."""
    watch = TaskWatch(StandingLease(), desk.registry, lambda: None, lease_seconds=15, stall_seconds=600)
    models = LoadedModels(torch.device("cpu"), tmp_path, None, 4)
    settings, limits = WorkerSettings(preset="tiny-random", segment_frames=SEGMENT_FRAMES, cage="off"), VideoLimits()
    cages = Cages(settings, limits, watch.check)
    return tasks.Workbench(desk.registry, desk.queue, desk.storage, models, watch, settings, limits, cages)


@pytest.fixture
def laid(bench: tasks.Workbench) -> object:
    token = tasks.workbench.set(bench)
    yield
    tasks.workbench.reset(token)


def memory_for(pixels: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give the networks memory for so many pixels of the source at a time; returns how to give all back."""
    enlarge = TwoStepUpscaler.enlarge

    def bounded(self: TwoStepUpscaler, center_lr: Tensor) -> Tensor:
        if center_lr[:, 0].numel() > pixels:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return enlarge(self, center_lr)

    monkeypatch.setattr(TwoStepUpscaler, "enlarge", bounded)
    return lambda: monkeypatch.setattr(TwoStepUpscaler, "enlarge", enlarge)


def accept(desk: Desk, options: JobOptions = OPTIONS, **properties: object) -> str:
    job_id = desk.accept()
    video = write_video(desk.storage.root / "clip.mp4", frames=FRAMES, width=WIDTH, height=HEIGHT, **properties)
    told = {"options": options.model_copy(update={"container": Container.MP4}), "source_sha256": sha256_of_file(video)}
    desk.registry.change(job_id, lambda job: job.model_copy(update=told))
    video.rename(desk.storage.folder(job_id).source)
    tasks.plan(job_id)
    return job_id


def finish(desk: Desk, job_id: str) -> None:
    """Everything that is missing, as the reconciler would hand it out."""
    for index in range(FRAMES // SEGMENT_FRAMES):
        tasks.segment(job_id, index)
    tasks.assemble(job_id)


def undisturbed(source: Path, folder: Path, **settings: int) -> bytes:
    output = folder / "undisturbed.mp4"
    told = WorkerSettings(preset="tiny-random", device="cpu", segment_frames=SEGMENT_FRAMES, **settings)
    upscale_file(source, output, OPTIONS, settings=told, limits=VideoLimits(), overwrite=True)
    return output.read_bytes()


def test_a_batch_that_does_not_fit_is_halved_for_the_whole_job(
    desk: Desk, bench: tasks.Workbench, laid: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job of which a segment is finished, before the memory becomes too small for more than two frames
    job_id = accept(desk)
    folder = desk.storage.folder(job_id)
    tasks.segment(job_id, 0)
    assert len(list(folder.segments.glob("*.mp4"))) == 1
    enough = memory_for(2 * WIDTH * HEIGHT, monkeypatch)

    # When the next is rendered; then the first is gone, as it was made otherwise
    tasks.segment(job_id, 1)
    assert [path.name for path in folder.segments.glob("*.mp4")] == ["00001.mp4"]
    assert str(read_rendering(folder)) == "whole frames, 2 at a time"
    progress = desk.registry.progress(job_id)
    assert (progress.batch_frames, progress.tile_px, progress.segments_done) == (2, None, 1)

    # And when memory is back, the rest is still made like the second
    enough()
    finish(desk, job_id)
    job = desk.storage.read_record(job_id)
    assert job is not None
    assert job.status is JobStatus.SUCCEEDED, job.error
    result = folder.result(job.result.container).read_bytes()  # type: ignore[union-attr]
    assert result == undisturbed(folder.source, tmp_path, batch_frames=2)
    report = Report.model_validate_json(folder.report.read_bytes())
    assert report.rendering == RenderingReport(batch_frames=2, tile_px=None, backoffs=1)


def test_frames_that_do_not_fit_alone_are_cut_into_tiles(
    desk: Desk, bench: tasks.Workbench, laid: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given memory for less than a frame: for 128 pixels of its width, with what a tile of 64 sees around it
    memory_for(128 * HEIGHT, monkeypatch)
    job_id = accept(desk)
    finish(desk, job_id)

    # Then the job is done in the largest tiles that fit, with the bytes that such tiles always give
    folder = desk.storage.folder(job_id)
    job = desk.storage.read_record(job_id)
    assert job is not None
    assert job.status is JobStatus.SUCCEEDED, job.error
    report = Report.model_validate_json(folder.report.read_bytes())
    assert report.rendering == RenderingReport(batch_frames=1, tile_px=64, backoffs=4)
    result = folder.result(job.result.container).read_bytes()  # type: ignore[union-attr]
    assert result == undisturbed(folder.source, tmp_path, batch_frames=1, tile_px=64)


def test_below_the_smallest_tile_the_job_says_that_memory_is_short(
    desk: Desk, bench: tasks.Workbench, laid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(16, monkeypatch)
    job_id = accept(desk)
    tasks.segment(job_id, 0)
    job = desk.registry.get(job_id)
    assert job is not None
    assert job.error is not None
    assert job.error.code is FailureCode.OUT_OF_MEMORY
    assert "tiles of 64 px, 1 at a time" in job.error.message


def test_a_canceled_job_that_runs_out_of_memory_keeps_what_it_had_finished(
    desk: Desk, bench: tasks.Workbench, laid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job with two finished segments
    job_id = accept(desk)
    tasks.segment(job_id, 0)
    tasks.segment(job_id, 1)

    # When it is canceled with the wish to keep them, and then the batch under way does not fit
    def canceled_meanwhile(self: TwoStepUpscaler, center_lr: Tensor) -> Tensor:
        desk.registry.cancel(job_id, keep_partial=True)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TwoStepUpscaler, "enlarge", canceled_meanwhile)
    tasks.segment(job_id, 2)
    tasks.assemble(job_id)

    # Then they are kept
    job = desk.registry.get(job_id)
    assert job is not None
    assert job.partial_result is PartialResult.KEPT
    assert job.result is not None
    assert job.result.frames == 2 * SEGMENT_FRAMES


@pytest.mark.parametrize("others_live", [True, False])
def test_a_job_begun_with_other_weights_is_begun_anew_once_nobody_has_them(
    desk: Desk, bench: tasks.Workbench, laid: None, tmp_path: Path, others_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job of which a worker has made a segment
    monkeypatch.setattr(tasks, "_LEAVE_SECONDS", 0)
    job_id = accept(desk)
    folder = desk.storage.folder(job_id)
    tasks.segment(job_id, 0)
    first = folder.segment(0, ".mp4").stat().st_ino
    before = read_rendering(folder)
    assert before is not None
    [key] = desk.queue.rq.connection.keys("vsr:makers:*")
    if not others_live:
        desk.queue.rq.connection.delete(key)

    # When a worker with other weights gets the next
    monkeypatch.setattr(bench.models.get("tiny-random"), "_weights", "f" * 32)
    left = tasks.segment(job_id, 1)

    # Then, as long as the first worker lives, it leaves the job to that
    if others_live:
        assert left is not None
        assert not left.enqueue_at_front
        assert read_rendering(folder) == before
        assert [path.stat().st_ino for path in folder.segments.glob("*.mp4")] == [first]
        return

    # and else makes all of it itself
    assert left is None
    assert [path.name for path in folder.segments.glob("*.mp4")] == ["00001.mp4"]
    finish(desk, job_id)
    job = desk.storage.read_record(job_id)
    assert job is not None
    assert job.status is JobStatus.SUCCEEDED, job.error


def test_the_command_backs_off_like_the_service_and_knows_its_result_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given memory for two frames, and a worker that usually takes four
    source = write_video(tmp_path / "clip.mp4", frames=FRAMES, width=WIDTH, height=HEIGHT)
    output = tmp_path / "clip_2x.mp4"
    settings = WorkerSettings(preset="tiny-random", device="cpu", segment_frames=SEGMENT_FRAMES, batch_frames=4)
    enough = memory_for(2 * WIDTH * HEIGHT, monkeypatch)

    # When a file is upscaled
    outcome = upscale_file(source, output, OPTIONS, settings=settings, limits=VideoLimits())

    # Then it says how, and another run sees that it is done
    assert outcome.report is not None
    assert outcome.report.rendering == RenderingReport(batch_frames=2, tile_px=None, backoffs=1)
    enough()
    assert output.read_bytes() == undisturbed(source, tmp_path, batch_frames=2)
    assert upscale_file(source, output, OPTIONS, settings=settings, limits=VideoLimits()).already_done


def test_a_segment_made_the_old_way_is_not_published_after_a_step_down(desk: Desk, laid: None) -> None:
    # Given two workers at segments of one job, when the first runs out of memory
    job_id = accept(desk)
    folder = desk.storage.folder(job_id)
    plan = read_plan(folder)
    assert plan is not None
    usual = Rendering(batch_frames=4)
    of_first, of_second = agreed_rendering(folder, usual), agreed_rendering(folder, usual)
    folder.make_live()
    of_segment, of_preview = folder.still("00000", "result"), folder.still("preview", "result")
    for picture in (of_segment, of_preview):
        picture.write_bytes(b"a picture")
    smaller = step_down(folder, plan, of_first)

    # Then what was shown of its segments is gone, and a preview, which is no part of them, is not
    assert (of_segment.exists(), of_preview.exists()) == (False, True)

    # And the second may not publish, and steps no further down when it runs out of memory too
    with pytest.raises(RenderingChangedError), unchanged(folder, of_second):
        pytest.fail("published")
    assert step_down(folder, plan, of_second) == smaller == Rendering(batch_frames=2, backoffs=1)


def test_the_first_worker_decides_for_all(tmp_path: Path) -> None:
    # Given many workers with different settings that begin at the same moment
    folder = JobFolder(tmp_path)
    agreed: list[Rendering] = []
    start = threading.Barrier(8)

    def begin(batch_frames: int) -> None:
        start.wait()
        agreed.append(agreed_rendering(folder, Rendering(batch_frames=batch_frames)))

    workers = [threading.Thread(target=begin, args=(number + 1,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    # Then all render alike
    assert len(set(agreed)) == 1


def test_an_assembly_that_comes_too_early_waits_for_the_reconciler(
    desk: Desk, bench: tasks.Workbench, laid: None
) -> None:
    # Given a job whose segments were counted and then removed
    job_id = accept(desk)
    for index in range(FRAMES // SEGMENT_FRAMES):
        tasks.segment(job_id, index)
    folder = desk.storage.folder(job_id)
    plan = read_plan(folder)
    assert plan is not None
    rendering = read_rendering(folder)
    assert rendering is not None
    step_down(folder, plan, rendering)

    # When it is assembled; then it goes on, and the missing segments are handed out again
    tasks.assemble(job_id)
    assert desk.registry.get(job_id).status is JobStatus.RUNNING  # type: ignore[union-attr]
    desk.queue.rq.empty()
    desk.reconciler.run()
    assert task_id(TaskKind.SEGMENT, job_id, 0) in desk.queue.rq.job_ids


def test_a_job_begins_with_what_fits_into_the_free_memory(
    desk: Desk, bench: tasks.Workbench, laid: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given memory that is free for a tile of 64 with what it sees around it, and not for a whole frame
    free_bytes = tiny_needs(bench, Rendering(batch_frames=1, tile_px=64)) * 4 // 3
    monkeypatch.setattr("worker.loaded_models.free_bytes", lambda device: free_bytes)

    # When a job is done, of which the first segment is made so; others, who have more, follow the first
    job_id = accept(desk)
    tasks.segment(job_id, 0)
    monkeypatch.undo()
    finish(desk, job_id)

    # Then no segment was made another way before, and the bytes are those of such tiles
    folder = desk.storage.folder(job_id)
    report = Report.model_validate_json(folder.report.read_bytes())
    assert report.rendering == RenderingReport(batch_frames=1, tile_px=64, backoffs=0)
    assert result_of(desk, job_id) == undisturbed(folder.source, tmp_path, batch_frames=1, tile_px=64)


def test_the_command_begins_with_what_fits_and_goes_on_so(
    bench: tasks.Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an upscale that was begun with little memory and interrupted after a segment
    source = write_video(tmp_path / "clip.mp4", frames=FRAMES, width=WIDTH, height=HEIGHT)
    output = tmp_path / "out.mp4"
    free_bytes = tiny_needs(bench, Rendering(batch_frames=1, tile_px=64)) * 4 // 3
    monkeypatch.setattr("worker.loaded_models.free_bytes", lambda device: free_bytes)
    told = WorkerSettings(preset="tiny-random", device="cpu", segment_frames=SEGMENT_FRAMES, batch_frames=4)

    def interrupt(progress: Progress) -> None:
        if progress.segments_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale_file(source, output, OPTIONS, settings=told, limits=VideoLimits(), on_progress=interrupt)
    monkeypatch.undo()

    # When it goes on, with all memory there is; then in the way that it was begun
    outcome = upscale_file(source, output, OPTIONS, settings=told, limits=VideoLimits())
    assert outcome.started_over is None
    assert outcome.resumed_segments > 0
    assert output.read_bytes() == undisturbed(source, tmp_path, batch_frames=1, tile_px=64)
    assert upscale_file(source, output, OPTIONS, settings=told, limits=VideoLimits()).already_done


def tiny_needs(bench: tasks.Workbench, rendering: Rendering) -> int:
    networks = bench.models.get("tiny-random")
    assert isinstance(networks, NetworkUpscaler)
    return networks.needed_bytes(rendering, WIDTH, HEIGHT)


def result_of(desk: Desk, job_id: str) -> bytes:
    job = desk.storage.read_record(job_id)
    assert job is not None
    assert job.status is JobStatus.SUCCEEDED, job.error
    return desk.storage.folder(job_id).result(job.result.container).read_bytes()  # type: ignore[union-attr]


def test_tiles_that_are_reused_give_the_bytes_of_tiles(
    desk: Desk, bench: tasks.Workbench, laid: None, tmp_path: Path
) -> None:
    # Given a job of a still video that asks for reuse, and names no tile
    job_id = accept(desk, OPTIONS.model_copy(update={"reuse": True}), picture=lambda number, width, height: STILL)
    before = reused_tiles()
    finish(desk, job_id)

    # Then the still tiles were not computed again, and nobody can tell
    folder = desk.storage.folder(job_id)
    report = Report.model_validate_json(folder.report.read_bytes())
    assert report.rendering == RenderingReport(batch_frames=4, tile_px=REUSE_TILE_PX, backoffs=0)
    assert report.tile_reuse is not None
    assert reused_tiles() - before == report.tile_reuse.reused > 0
    assert result_of(desk, job_id) == undisturbed(folder.source, tmp_path, batch_frames=4, tile_px=REUSE_TILE_PX)


def reused_tiles() -> float:
    return metrics.TILES.labels("reused")._value.get()


@pytest.mark.parametrize(
    ("free_bytes", "begun"),
    [
        (None, Rendering(batch_frames=4)),
        (1000, Rendering(batch_frames=4)),
        (600, Rendering(batch_frames=2)),
        (200, Rendering(batch_frames=1, tile_px=256)),
        (1, Rendering(batch_frames=1, tile_px=64)),
    ],
)
def test_the_first_way_is_the_largest_that_leaves_a_fifth_free(free_bytes: int | None, begun: Rendering) -> None:
    # 200 bytes for each whole frame of a batch, a quarter of it in tiles of 256 px; none are of 512, as frames are not
    def needed_bytes(rendering: Rendering) -> int:
        return rendering.batch_frames * 200 * (rendering.tile_px or 1024) // 1024

    assert beginning(Rendering(batch_frames=4), free_bytes, needed_bytes, longer_side_px=500) == begun


@given(st.integers(1, 64), st.none() | st.integers(2, 64).map(lambda n: 16 * n), st.integers(16, 4096))
def test_steps_only_lead_down_and_end(batch_frames: int, tile_px: int | None, longer_side_px: int) -> None:
    rendering: Rendering | None = Rendering(batch_frames=batch_frames, tile_px=tile_px)
    pixels = []
    while rendering:
        side = min(rendering.tile_px or longer_side_px, longer_side_px)
        pixels.append(rendering.batch_frames * side)
        rendering = rendering.smaller(longer_side_px)
    assert pixels == sorted(set(pixels), reverse=True)
