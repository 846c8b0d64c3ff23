"""What is shown of a job while it is rendered: there with every segment, true of it, and of no weight in the result."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.worker.conftest import PixelRepeater, write_video
from tests.worker.lifecycle.conftest import Desk, RepeatingModels, working
from worker import live, metrics, tasks
from worker.contract.job import Container, JobOptions, JobRecord, JobStatus, VideoCodec, new_job_id, now
from worker.contract.storage import JobFolder, write_atomically
from worker.contract.stream import LiveFacts, StreamSegment
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings
from worker.video.containers import holds_codec
from worker.video.source import frame_crc32

SETTINGS = WorkerSettings(preset="tiny-random", batch_frames=2, segment_frames=10, cage="off")
OPTIONS = JobOptions(preset="tiny-random", encoder_preset="fast")
STREAMED = [
    (codec, container)
    for codec in (VideoCodec.H264, VideoCodec.HEVC, VideoCodec.AV1)
    for container in Container
    if holds_codec(container, codec)
]


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> Iterator[tasks.Workbench]:
    with working(desk, RepeatingModels(tmp_path), SETTINGS) as bench:
        yield bench


def accept(desk: Desk, options: JobOptions = OPTIONS, **properties: object) -> tuple[str, JobFolder]:
    """A job of three segments."""
    source = write_video(desk.storage.root / "clip.mp4", **{"frames": 30, "width": 96, "height": 96, **properties})
    record = JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=options,
        source_name="clip.mp4",
        source_size_bytes=source.stat().st_size,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    desk.registry.add(record)
    folder = desk.storage.folder(record.id)
    source.rename(folder.source)
    return record.id, folder


def facts_of(folder: JobFolder) -> LiveFacts:
    return LiveFacts.model_validate_json(folder.live_facts.read_bytes())


def stream_of(folder: JobFolder, segments: int) -> bytes:
    """What a player joins of the first so many segments."""
    stream = folder.stream_header.read_bytes()
    for index in range(segments):
        stream += fragment(folder.stream_segment(index).read_bytes(), folder.segment(index, ".mp4"))
    return stream


def stream_in_result(folder: JobFolder, result: Path) -> bytes:
    """The same of a job that has succeeded."""
    lines = folder.stream_in_result.read_bytes().splitlines()
    return folder.stream_header.read_bytes() + b"".join(fragment(line, result) for line in lines)


def fragment(described: bytes, file: Path) -> bytes:
    found = StreamSegment.model_validate_json(described)
    content = file.read_bytes()
    assert len(content) == found.file_bytes
    return found.head + b"".join(content[offset : offset + length] for offset, length in found.ranges)


def checksums(content: bytes) -> list[int]:
    with av.open(io.BytesIO(content)) as container:
        return [frame_crc32(frame) for frame in container.decode(video=0)]


def size_of(picture: Path) -> tuple[int, int]:
    with av.open(str(picture)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def test_a_segment_can_be_watched_as_soon_as_it_is_published(desk: Desk, bench: tasks.Workbench) -> None:
    # given a job, turned by a quarter, of which nothing is finished
    job_id, folder = accept(desk, width=96, height=64, rotation=90)
    tasks.plan(job_id)
    assert facts_of(folder).segments == 3
    assert facts_of(folder).borders_seconds == (0.0, 0.4, 0.8, 1.2)
    assert [path.name for path in folder.live.iterdir()] == ["facts.json"]
    # when its first segments are
    tasks.segment(job_id, 0)
    assert len(checksums(stream_of(folder, 1))) == 10
    tasks.segment(job_id, 1)
    # then there are their frames
    watched = checksums(stream_of(folder, 2))
    assert len(watched) == 20
    # and their first ones as pictures, as they are shown
    for name in ("00000", "00001"):
        assert size_of(folder.still(name, "source")) == (64, 96)
        assert size_of(folder.still(name, "result")) == (128, 192)
    # and they are those of the result
    tasks.segment(job_id, 2)
    tasks.assemble(job_id)
    assert watched == checksums(folder.result(Container.MP4).read_bytes())[:20]


@pytest.mark.parametrize(("codec", "container"), STREAMED)
def test_the_result_is_watched_as_its_segments_were(
    desk: Desk, bench: tasks.Workbench, codec: VideoCodec, container: Container
) -> None:
    # given a job with sound, all of whose segments are finished
    options = OPTIONS.model_copy(update={"codec": codec, "container": container, "drop_unsupported": True})
    job_id, folder = accept(desk, options, audio_tracks=1)
    tasks.plan(job_id)
    for index in range(3):
        tasks.segment(job_id, index)
    watched = stream_of(folder, 3)
    # when its result replaces them
    tasks.assemble(job_id)
    assert not folder.segments.exists()
    # then a player gets the very same bytes out of that, and of segments nothing is left
    assert stream_in_result(folder, folder.result(container)) == watched
    assert {path.name for path in folder.live.glob("*.json*")} == {"facts.json", "in_result.jsonl"}
    assert checksums(watched) == checksums(folder.result(container).read_bytes())


def test_the_result_is_the_same_as_without_all_this(desk: Desk, bench: tasks.Workbench, tmp_path: Path) -> None:
    # given what the command makes of a video, which nobody watches meanwhile
    job_id, folder = accept(desk, audio_tracks=1)
    source = tmp_path / "clip.mp4"
    source.write_bytes(folder.source.read_bytes())
    upscale_file(
        source,
        tmp_path / "result.mp4",
        OPTIONS,
        settings=SETTINGS,
        limits=VideoLimits(),
        load_upscaler=lambda preset: PixelRepeater(),
    )
    # when a job does the same
    run(job_id)
    # then so are the bytes
    assert folder.result(Container.MP4).read_bytes() == (tmp_path / "result.mp4").read_bytes()


def run(job_id: str) -> None:
    tasks.plan(job_id)
    for index in range(3):
        tasks.segment(job_id, index)
    tasks.assemble(job_id)


def test_a_segment_that_no_browser_plays_has_pictures_alone(desk: Desk, bench: tasks.Workbench) -> None:
    options = JobOptions(preset="tiny-random", container="mkv", codec="ffv1", drop_unsupported=True)  # type: ignore[arg-type]
    job_id, folder = accept(desk, options)
    tasks.plan(job_id)
    tasks.segment(job_id, 0)
    assert "h264" in (facts_of(folder).why_not_streamed or "")
    assert {path.name for path in folder.live.iterdir()} == {"facts.json", "00000.source.jpg", "00000.result.jpg"}


@pytest.mark.parametrize("step", ["stream_segment", "found_in_result"])
def test_a_stream_that_cannot_be_made_fails_no_job(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    job_id, folder = accept(desk)
    monkeypatch.setattr(live, step, lambda *_: 1 / 0)
    run(job_id)
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.SUCCEEDED
    assert not folder.stream_in_result.exists()


def test_nothing_is_shown_of_segments_that_another_version_made(desk: Desk, bench: tasks.Workbench) -> None:
    # given a job that lost its plan, which this version would not have made
    job_id, folder = accept(desk)
    tasks.plan(job_id)
    tasks.segment(job_id, 0)
    old = [folder.stream_header, folder.stream_segment(0), folder.still("00000", "source")]
    assert all(path.exists() for path in old)
    folder.plan.unlink()
    # when it is planned anew
    tasks.plan(job_id)
    # then of the old segments there is nothing to be watched
    assert not [path for path in old if path.exists()]


def test_a_worker_killed_before_it_published_leaves_nothing_untrue(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that dies after it has written how to show a segment, and before the segment is there
    job_id, folder = accept(desk)
    tasks.plan(job_id)
    published = tasks.publish_live

    def publish_and_die(*arguments: object) -> None:
        published(*arguments)  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(tasks, "publish_live", publish_and_die)
    with pytest.raises(Killed):
        tasks.segment(job_id, 0)
    monkeypatch.setattr(tasks, "publish_live", published)
    assert folder.stream_segment(0).exists()
    assert not folder.segment(0, ".mp4").exists()
    # when another one takes the job from there
    tasks.segment(job_id, 0)
    # then what is shown is the segment that is there
    assert len(checksums(stream_of(folder, 1))) == 10
    run(job_id)
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.SUCCEEDED


def test_a_worker_that_stood_still_before_it_published_leaves_what_its_successor_made(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that stands still when it has shown its lease, until another has made its segment
    job_id, folder = accept(desk)
    tasks.plan(job_id)
    segment = folder.segment(0, ".mp4")
    demand_lease = bench.watch.demand_lease

    def stand_still() -> None:
        demand_lease()
        monkeypatch.setattr(bench.watch, "demand_lease", demand_lease)
        write_atomically(segment, b"of its successor")

    monkeypatch.setattr(bench.watch, "demand_lease", stand_still)
    finished, existing = (metrics.SEGMENTS.labels(outcome)._value for outcome in ("finished", "existing"))
    before = finished.get(), existing.get()

    # When it goes on
    tasks.segment(job_id, 0)

    # Then that segment stays, and is counted once
    assert segment.read_bytes() == b"of its successor"
    assert (finished.get(), existing.get()) == (before[0], before[1] + 1)
    assert [path.name for path in folder.segments.iterdir() if path.suffix == ".part"] == []
    assert desk.registry.progress(job_id).segments_done == 1


def test_a_worker_killed_with_the_result_in_place_loses_no_stream(
    desk: Desk, bench: tasks.Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that dies when it has put the result in its place, and before the job has succeeded
    job_id, folder = accept(desk)
    published = tasks.publish_stream_in_result

    def die(*arguments: object) -> None:
        raise Killed

    monkeypatch.setattr(tasks, "publish_stream_in_result", die)
    with pytest.raises(Killed):
        run(job_id)
    watched = stream_of(folder, 3)
    # when another one takes over
    monkeypatch.setattr(tasks, "publish_stream_in_result", published)
    tasks.assemble(job_id)
    # then the job can be watched as before
    assert stream_in_result(folder, folder.result(Container.MP4)) == watched


def test_a_job_of_many_segments_has_few_pictures(desk: Desk, bench: tasks.Workbench) -> None:
    job_id, folder = accept(desk)
    tasks.plan(job_id)
    plan = tasks.read_plan(folder)
    assert plan is not None
    for total in (1, 39, 40, 41, 1000, 2700):
        long = plan.model_copy(update={"segments": plan.segments[:1] * total})
        shown = [index for index in range(total) if live.stills_of(long, index)]
        assert shown[0] == 0
        assert min(total, 20) <= len(shown) <= 40


def test_what_is_shown_goes_with_the_media(desk: Desk, bench: tasks.Workbench) -> None:
    job_id, folder = accept(desk)
    tasks.plan(job_id)
    tasks.segment(job_id, 0)
    desk.storage.remove_media(job_id)
    assert not folder.live.exists()
    assert [path.name for path in folder.path.iterdir()] == ["job.json"]


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""
