"""The client and the whole service: what it brings home is what `vsr upscale` makes."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from app.client import AsyncClient, Client, Progress
from app.exit_codes import ExitCode
from benchmarks.gateway_process import GatewayProcess
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


def test_ctrl_c_while_the_command_waits_cancels_the_job(tmp_path: Path) -> None:
    # Given a service without workers, and somebody who waits
    (tmp_path / "clip.mp4").write_bytes(b"abc")
    with GatewayProcess(tmp_path) as gateway, Client(gateway.url) as client:
        command = [
            sys.executable,
            "-m",
            "app.cli",
            "submit",
            str(tmp_path / "clip.mp4"),
            "--wait",
            "--url",
            gateway.url,
        ]
        environment = os.environ | {"VSR_UPLOADS_DIR": str(tmp_path / "uploads")}
        waiting = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr
        assert waiting.stderr.readline().startswith("uploading")
        assert waiting.stderr.readline().startswith("waiting, number 1")

        # When
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)

        # Then
        [job] = client.jobs.list().jobs
        assert (job.status, waiting.returncode) == ("canceled", ExitCode.INTERRUPTED)
        assert said.splitlines()[-1] == f"canceled job {job.id}"
