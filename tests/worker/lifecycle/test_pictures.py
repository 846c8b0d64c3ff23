"""A zip of pictures through a job's steps, beside which a file of ours comes and goes."""

import hashlib
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.worker.conftest import PixelRepeater
from tests.worker.lifecycle.conftest import Desk, RepeatingModels, working
from worker import tasks
from worker.contract.failure import FailureCode
from worker.contract.job import Container, JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

SETTINGS = WorkerSettings(preset="tiny-random", batch_frames=2, segment_frames=3)


@pytest.fixture
def bench(desk: Desk, tmp_path: Path) -> Iterator[tasks.Workbench]:
    with working(desk, RepeatingModels(tmp_path), SETTINGS) as bench:
        yield bench


def write_zip(path: Path, count: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
            encoder = av.CodecContext.create("png", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 24, "rgb24", Fraction(1, 25)
            packets = [*encoder.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")), *encoder.encode(None)]
            archive.writestr(f"{number}.png", b"".join(bytes(packet) for packet in packets))
    return path


def accept(desk: Desk, source: Path, options: JobOptions) -> str:
    record = JobRecord(
        id=new_job_id(),
        created_at=now(),
        options=options,
        source_name=source.name,
        source_size_bytes=source.stat().st_size,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    desk.registry.add(record)
    desk.storage.folder(record.id).source.write_bytes(source.read_bytes())
    return record.id


def test_a_zip_becomes_a_zip_as_on_the_command_line_though_a_crash_took_its_pictures(
    desk: Desk, bench: tasks.Workbench, tmp_path: Path
) -> None:
    # given a zip, and what the command makes of it
    source = write_zip(tmp_path / "frames.zip", 6)
    upscale_file(
        source,
        tmp_path / "result.zip",
        JobOptions(),
        settings=SETTINGS,
        limits=VideoLimits(),
        load_upscaler=lambda preset: PixelRepeater(),
    )
    # when a job does the same, and loses between its steps what it made of the pictures
    job_id = accept(desk, source, JobOptions())
    folder = desk.storage.folder(job_id)
    tasks.plan(job_id)
    assert folder.pictures.exists()
    tasks.segment(job_id, 0)
    folder.pictures.unlink()
    tasks.segment(job_id, 1)
    folder.pictures.unlink()
    tasks.assemble(job_id)
    # then it has the same bytes, and only the source and the result are left
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.SUCCEEDED, record.error
    assert record.result is not None
    assert (record.result.container, record.result.frames) == (Container.ZIP, 6)
    assert record.source is not None
    assert (record.source.container, record.source.frames) == ("zip", 6)
    assert folder.result(Container.ZIP).read_bytes() == (tmp_path / "result.zip").read_bytes()
    assert folder.source.read_bytes() == source.read_bytes()
    assert {path.name for path in folder.path.iterdir()} == {
        "job.json",
        "live",
        "plan.json",
        "report.json",
        "result.zip",
        "source",
    }


def test_a_zip_that_is_refused_leaves_its_name_and_nothing_else(
    desk: Desk, bench: tasks.Workbench, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.writestr("notes.txt", "not a picture")
    job_id = accept(desk, tmp_path / "mixed.zip", JobOptions())
    tasks.plan(job_id)
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.error is not None
    assert record.error.code is FailureCode.NOT_A_VIDEO
    assert "notes.txt is not a PNG picture" in record.error.message
    assert {path.name for path in desk.storage.folder(job_id).path.iterdir()} == {"job.json", "source"}


def test_pictures_that_turn_out_unusable_do_not_stay_unpacked(
    desk: Desk, bench: tasks.Workbench, tmp_path: Path
) -> None:
    # given pictures for a container that cannot be chosen for them
    source = write_zip(tmp_path / "frames.zip", 3)
    job_id = accept(desk, source, JobOptions(container=Container.WEBM, codec="h264"))
    tasks.plan(job_id)
    record = desk.storage.read_record(job_id)
    assert record is not None
    assert record.status is JobStatus.FAILED
    assert not desk.storage.folder(job_id).pictures.exists()
