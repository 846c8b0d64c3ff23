"""The client and the whole service: what it brings home is what `vsr upscale` makes."""

import asyncio
from pathlib import Path

from app.client import AsyncClient, Client, Progress
from tests.end_to_end.conftest import OPTIONS, PRESET, write_moving_video
from tests.end_to_end.test_serve import serving
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings


def test_both_clients_bring_home_what_the_command_makes(tmp_path: Path) -> None:
    # Given a video of three segments
    source = write_moving_video(tmp_path / "clip.mp4", frames=60)
    settings = WorkerSettings(preset=PRESET, device="cpu")
    upscale_file(source, tmp_path / "expected.mp4", OPTIONS, settings=settings, limits=VideoLimits())
    told: list[Progress] = []

    with serving(tmp_path / "data") as (url, _):

        async def in_an_event_loop() -> None:
            async with AsyncClient(url) as client:
                await client.upscale(
                    source, tmp_path / "async.mp4", told.append, preset=PRESET, encoder_preset="ultrafast"
                )

        # When
        with Client(url) as client:
            job = client.upscale(source, tmp_path / "sync.mp4", preset=PRESET, encoder_preset="ultrafast")
            picture_at = client.jobs.thumbnail(job.id, tmp_path / "frame.jpg", of="source", at_seconds=9)
        asyncio.run(in_an_event_loop())

    # Then
    expected = (tmp_path / "expected.mp4").read_bytes()
    assert (tmp_path / "sync.mp4").read_bytes() == (tmp_path / "async.mp4").read_bytes() == expected
    assert (told[0].step, told[-1].step) == ("uploading", "downloading")
    assert (told[-1].done, told[-1].total) == (len(expected), len(expected))
    assert (tmp_path / "frame.jpg").read_bytes().startswith(b"\xff\xd8")
    assert 0 <= picture_at <= 10


def test_a_preview_comes_home_before_the_job_is_done(tmp_path: Path) -> None:
    # Given a long job
    source = write_moving_video(tmp_path / "clip.mp4", frames=300)
    with serving(tmp_path / "data") as (url, _), Client(url) as client:
        job = client.jobs.create(source, preset=PRESET, encoder_preset="ultrafast")

        # When
        at_seconds = client.jobs.preview(job.id, tmp_path / "preview.mp4", at_seconds=20)

        # Then
        assert 19 <= at_seconds <= 20
        assert b"ftyp" in (tmp_path / "preview.mp4").read_bytes()[:16]
        client.jobs.cancel(job.id)
        assert [one.status for one in client.jobs.events(job.id)][-1] == "canceled"
