"""A preview: the frames that the result will have, before all else, and nothing of it is seen in the job."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from rq.exceptions import NoSuchJobError
from rq.job import Job

from tests.worker.conftest import PixelRepeater, write_video
from tests.worker.lifecycle.conftest import Desk, RepeatingModels, make_worker, start_task, working
from worker import tasks
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.contract.queue import TaskKind, task_id
from worker.contract.storage import JobFolder
from worker.contract.stream import PreviewFacts
from worker.plan import Plan, make_plan
from worker.preview import MAX_PREVIEW_FRAMES, preview_plan
from worker.rendering import Rendering
from worker.settings import VideoLimits, WorkerSettings
from worker.task_watch import TaskGivenBackError
from worker.upscaler import FrameBatch, Upscaler

SETTINGS = WorkerSettings(preset="tiny-random", batch_frames=2, segment_frames=40, cage="off")
OPTIONS = JobOptions(preset="tiny-random", encoder_preset="ultrafast")
FRAMES = 80


class TellingRepeater(PixelRepeater):
    """Repeats pixels, and mixes in the neighbours: a frame that was shown others looks otherwise."""

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        mixed = (previous_lr // 4 + center_lr // 2 + next_lr // 4).astype(center_lr.dtype)
        return super().__call__(previous_lr, mixed, next_lr)


class OneModel(RepeatingModels):
    def get(self, preset: str, rendering: object = None, *, reuse: bool = False) -> Upscaler:
        return TellingRepeater()


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> Iterator[tasks.Workbench]:
    with working(desk, OneModel(tmp_path), SETTINGS) as bench:
        yield bench


def accept(desk: Desk, wanted: JobOptions = OPTIONS, **properties: object) -> tuple[str, JobFolder]:
    source = write_video(desk.storage.root / "clip.mp4", **{"frames": FRAMES, **properties})
    record = JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=wanted,
        source_name="clip.mp4",
        source_size_bytes=source.stat().st_size,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    desk.registry.add(record)
    folder = desk.storage.folder(record.id)
    source.rename(folder.source)
    return record.id, folder


def run(job_id: str) -> None:
    tasks.plan(job_id)
    for index in range(2):
        tasks.segment(job_id, index)
    tasks.assemble(job_id)


def facts_of(folder: JobFolder) -> PreviewFacts:
    return PreviewFacts.model_validate_json(folder.preview_facts.read_bytes())


def pictures_of(file: Path) -> list[np.ndarray]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


def everything_but_live(desk: Desk, job_id: str) -> dict[str, bytes]:
    folder = desk.storage.folder(job_id).path
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "live"
    }


def test_a_preview_of_a_waiting_job_shows_the_frames_of_its_result(desk: Desk, bench: tasks.Workbench) -> None:
    # given a job that nobody has looked at
    job_id, folder = accept(desk)
    # when a preview from the middle of a second is made, and then the whole
    tasks.preview(job_id, 0.5)
    facts = facts_of(folder)
    assert (facts.at_seconds, facts.frames, facts.error) == (0.48, 50, None)
    assert facts.sha256 == hashlib.sha256(folder.preview.read_bytes()).hexdigest()
    preview = pictures_of(folder.preview)
    assert desk.registry.get(job_id).status is JobStatus.QUEUED  # type: ignore[union-attr]
    run(job_id)
    # then it has the frames of the result from there on, across the border of its segments
    result = pictures_of(folder.result(Container.MP4))[12:62]
    assert len(preview) == len(result) == 50
    for ours, theirs in zip(preview, result, strict=True):
        error = ((ours - theirs) ** 2).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 33


def test_what_reaches_the_encoder_is_what_the_result_gets(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given the very frames that the networks make of the whole video
    made: list[list[bytes]] = []

    class Noting(TellingRepeater):
        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            upscaled = super().__call__(previous_lr, center_lr, next_lr)
            made[-1] += [frame.tobytes() for frame in upscaled]
            return upscaled

    monkeypatch.setattr(OneModel, "get", lambda *_, **__: Noting())
    job_id, _ = accept(desk)
    # when a preview from frame 13 on is made (batches of two are other ones there), and then the whole
    made.append([])
    tasks.preview(job_id, 0.52)
    made.append([])
    run(job_id)
    # then its frames are those, bit for bit
    assert made[0] == made[1][13:63]


def test_a_job_with_a_preview_ends_with_the_same_bytes(desk: Desk, bench: tasks.Workbench) -> None:
    plain_id, plain = accept(desk)
    run(plain_id)
    job_id, folder = accept(desk)
    # when previews come before, between and after its steps
    tasks.preview(job_id, 0.0)
    tasks.plan(job_id)
    before = everything_but_live(desk, job_id)
    progress = desk.registry.progress(job_id)
    tasks.preview(job_id, 2.0)
    # then nothing of the job has changed
    assert everything_but_live(desk, job_id) == before
    assert desk.registry.progress(job_id) == progress
    run(job_id)
    assert folder.result(Container.MP4).read_bytes() == plain.result(Container.MP4).read_bytes()


def test_the_last_preview_stays_with_its_first_frame_as_pictures(desk: Desk, bench: tasks.Workbench) -> None:
    job_id, folder = accept(desk, width=96, height=64, rotation=90)
    tasks.preview(job_id, 0.0)
    first = folder.preview.read_bytes()
    tasks.preview(job_id, 2.0)
    assert facts_of(folder).at_seconds == 2.0
    assert folder.preview.read_bytes() != first
    # and browsers turn it, and play it from its first bytes on
    with av.open(str(folder.preview)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert next(container.decode(video)).rotation in (90, -90)
    content = folder.preview.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    for of, size in (("source", (64, 96)), ("result", (128, 192))):
        with av.open(str(folder.still("preview", of))) as picture:  # type: ignore[arg-type]
            assert (picture.streams.video[0].width, picture.streams.video[0].height) == size
    assert not list(folder.live.glob("*.part"))


@pytest.mark.parametrize(
    ("at_seconds", "first", "stop"),
    [(0.0, 0, 50), (0.039, 0, 50), (0.04, 1, 51), (2.0, 50, 80), (3.16, 79, 80), (1e9, 79, 80)],
)
def test_a_preview_is_two_seconds_from_the_frame_that_is_shown_then(
    tmp_path: Path, at_seconds: float, first: int, stop: int
) -> None:
    plan = preview_plan(plan_of(tmp_path, frames=FRAMES), at_seconds)
    assert (plan.segments[0].first, plan.segments[0].stop) == (first, stop)


def test_a_preview_of_many_frames_per_second_is_shorter(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, frames=300, pts=[number * 64 for number in range(300)])  # 200 per second
    assert preview_plan(plan, 0.0).segments[0].frames == MAX_PREVIEW_FRAMES


@pytest.mark.parametrize(
    ("codec", "container", "pixel_format"),
    [
        ("ffv1", "mkv", "yuv420p"),
        ("hevc", "mp4", "yuv420p10le"),
        ("h264", "mp4", "yuv422p10le"),
        ("h264", "mp4", "yuv444p"),
        ("png", "zip", "gray"),
    ],
)
def test_whatever_the_result_is_the_preview_is_played_by_browsers(
    desk: Desk, bench: tasks.Workbench, codec: str, container: str, pixel_format: str
) -> None:
    chosen = {"codec": codec, "container": container, "drop_unsupported": True, "quality": "lossless"}
    options = JobOptions.model_validate(OPTIONS.model_dump() | chosen)
    job_id, folder = accept(desk, options, frames=10, pixel_format=pixel_format)
    tasks.preview(job_id, 0.0)
    assert facts_of(folder).error is None
    with av.open(str(folder.preview)) as opened:
        context = opened.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def plan_of(folder: Path, **properties: object) -> Plan:
    source = write_video(folder / "clip.mp4", width=32, height=32, **properties)
    return make_plan(source, OPTIONS, VideoLimits())


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_source_of_which_no_preview_can_be_made_says_why_and_waits_on(desk: Desk, bench: tasks.Workbench) -> None:
    # given a file that is no video
    job_id, folder = accept(desk)
    folder.source.write_bytes(b"no video at all")
    # when its preview is asked for
    tasks.preview(job_id, 1.5)
    # then that has failed, and the job has not
    facts = facts_of(folder)
    assert facts.error is not None
    assert (facts.at_seconds, facts.error.code) == (1.5, FailureCode.NOT_A_VIDEO)
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.QUEUED


@pytest.mark.parametrize("error", [MemoryError(), JobFailureError(FailureCode.OUT_OF_MEMORY, "too small")])
def test_a_preview_that_lacks_memory_is_made_smaller_and_the_job_is_not(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    job_id, folder = accept(desk)
    asked: list[Rendering] = []

    class Short(TellingRepeater):
        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            if asked[-1].batch_frames > 1:
                raise error
            return super().__call__(previous_lr, center_lr, next_lr)

    def get(self: object, preset: str, rendering: Rendering | None = None, *, reuse: bool = False) -> Upscaler:
        asked.extend([rendering] if rendering else [])
        return Short()

    monkeypatch.setattr(OneModel, "get", get)
    tasks.preview(job_id, 0.0)
    assert facts_of(folder).error is None
    assert [way.batch_frames for way in asked] == [2, 1]
    assert not folder.rendering.exists()


def test_a_preview_ends_with_its_job(desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a job that is deleted, or canceled, while its preview is rendered
    rendered = tasks.render_segment
    for end in (desk.registry.remove, desk.registry.cancel):
        job_id, folder = accept(desk)

        def render_and_end(
            *arguments: object, job_id: str = job_id, end: Callable[[str], object] = end, **how: object
        ) -> None:
            end(job_id)
            rendered(*arguments, **how)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "render_segment", render_and_end)
            tasks.preview(job_id, 0.0)
        # then there is none, and no folder comes back
        assert not folder.preview_facts.exists()
        assert not folder.preview.exists()
        assert folder.path.exists() == (end == desk.registry.cancel)
    # and one that comes too late does nothing
    tasks.preview(job_id, 0.0)
    assert not folder.preview_facts.exists()


def test_a_worker_that_stops_gives_the_preview_back(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, folder = accept(desk)
    monkeypatch.setattr(tasks, "render_segment", raising(TaskGivenBackError()))
    retry = tasks.preview(job_id, 0.0)
    assert retry is not None
    assert not folder.preview_facts.exists()
    assert not list(folder.live.glob("*.part"))


def test_a_worker_killed_at_a_preview_leaves_it_to_the_next(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, folder = accept(desk)
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "publish_preview", raising(Killed()))
        with pytest.raises(Killed):
            tasks.preview(job_id, 0.0)
    assert not folder.preview_facts.exists()
    tasks.preview(job_id, 0.0)
    assert facts_of(folder).frames == 50


def test_a_plan_that_came_first_stays(desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a job that is planned, and has its first segment, while a preview still reads its source
    job_id, folder = accept(desk)
    made = tasks.make_plan

    def meanwhile(*arguments: object, **how: object) -> Plan:
        monkeypatch.setattr(tasks, "make_plan", made)
        tasks.plan(job_id)
        tasks.segment(job_id, 0)
        folder.plan.write_bytes(folder.plan.read_bytes().replace(b'"survey_seconds":', b'"survey_seconds":1'))
        return made(*arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "make_plan", meanwhile)
    # when it is done with that
    tasks.preview(job_id, 0.0)
    # then the job's plan and segment are those that were there
    assert b'"survey_seconds":1' in folder.plan.read_bytes()
    assert folder.segment(0, ".mp4").exists()
    assert facts_of(folder).error is None


# --- its place in the queue -------------------------------------------------------------------------------------------


def test_a_preview_comes_before_all_that_waits_and_only_once(desk: Desk) -> None:
    other, job_id = desk.accept(), desk.accept()
    for waiting in (other, job_id):
        desk.queue.enqueue_plan(waiting)
    # when a preview is asked for twice
    assert not desk.queue.is_preview_under_way(job_id)
    desk.queue.enqueue_preview(job_id, 1.0)
    desk.queue.enqueue_preview(job_id, 2.0)
    # then it is the first, once, and as asked for first
    preview = task_id(TaskKind.PREVIEW, job_id)
    assert desk.queue.rq.job_ids == [preview, task_id(TaskKind.PLAN, other), task_id(TaskKind.PLAN, job_id)]
    task = Job.fetch(preview, connection=desk.queue.rq.connection, serializer=desk.queue.rq.serializer)
    assert task.kwargs == {"job_id": job_id, "at_seconds": 1.0}
    assert desk.queue.is_preview_under_way(job_id)
    # and a worker that takes it keeps it
    start_task(make_worker(desk.queue, "one"), desk.queue)
    assert desk.queue.is_preview_under_way(job_id)
    desk.queue.enqueue_preview(job_id, 3.0)
    assert preview not in desk.queue.rq.job_ids


def test_previews_and_all_else_take_turns(desk: Desk, bench: tasks.Workbench) -> None:
    # Given a worker that has just begun a preview, and a job that waits
    previewed, waiting, other = accept(desk)[0], desk.accept(), desk.accept()
    tasks.preview(previewed, 1.0)
    desk.queue.enqueue_plan(waiting)
    # When another is asked for, then it waits too
    desk.queue.enqueue_preview(other, 1.0)
    plan, preview = task_id(TaskKind.PLAN, waiting), task_id(TaskKind.PREVIEW, other)
    assert desk.queue.rq.job_ids == [plan, preview]
    # And once something else has been begun, the next comes first again
    tasks.plan(previewed)
    desk.queue.forget_tasks(other, 0)
    desk.queue.enqueue_preview(other, 1.0)
    assert [task for task in desk.queue.rq.job_ids if task in (plan, preview)] == [preview, plan]


def test_a_lost_workers_preview_goes_to_the_next_and_the_reconciler_enqueues_none(
    desk: Desk, bench: tasks.Workbench
) -> None:
    job_id, _ = accept(desk)
    desk.queue.enqueue_preview(job_id, 1.0)
    start_task(make_worker(desk.queue, "lost"), desk.queue)
    desk.recovery.reap("lost")
    preview = task_id(TaskKind.PREVIEW, job_id)
    assert desk.queue.rq.job_ids == [preview]
    # when Redis loses everything
    desk.queue.rq.connection.flushall()
    desk.reconciler.run()
    # then the job is on its way again, and of the preview nobody knows: it is to be asked for again
    assert desk.queue.rq.job_ids == [task_id(TaskKind.PLAN, job_id)]
    assert not desk.queue.is_preview_under_way(job_id)


def test_a_deleted_job_leaves_no_preview_in_the_queue(desk: Desk) -> None:
    job_id = desk.accept()
    desk.queue.enqueue_preview(job_id, 1.0)
    desk.queue.forget_tasks(job_id, 0)
    assert desk.queue.rq.job_ids == []
    with pytest.raises(NoSuchJobError):
        Job.fetch(task_id(TaskKind.PREVIEW, job_id), connection=desk.queue.rq.connection)


def raising(error: BaseException) -> object:
    def work(*_: object, **__: object) -> None:
        raise error

    return work


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""
