"""`vsr serve`: one command, the whole service; and nothing left running when it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from redis import Redis

from app.exit_codes import ExitCode
from tests.end_to_end.conftest import OPTIONS, PRESET, wait_for, write_moving_video
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def serving(storage: Path, *options: str, **settings: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """`vsr serve` with its address; `options` are words of the command, `settings` environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "VSR_STORAGE_DIR": str(storage),
        "VSR_METRICS_PORT": "0",
        "VSR_COURIER_METRICS_PORT": "0",
        "VSR_ENABLE_TEST_PRESETS": "true",
        **settings,
    }
    environment.pop("VSR_REDIS_URL", None)
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--preset", PRESET, "--device", "cpu"]
    command += options
    with (storage.parent / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("a live worker", lambda: has_a_worker(url))
        yield url, process
    except BaseException:
        sys.stdout.write((storage.parent / "serve.log").read_text())  # pytest shows it beside the failure
        raise
    finally:
        process.terminate()
        process.wait(60)


def has_a_worker(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}/readyz").json()["workers"])
    except httpx2.RequestError:
        return False


def processes_about(folder: Path) -> list[str]:
    """Command lines of processes that name the folder, or have it in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if str(folder).encode() in told:
            found.append((process / "cmdline").read_bytes().decode())
    return found


def test_three_curl_calls_give_the_same_bytes_as_the_command(tmp_path: Path) -> None:
    # Given a video of three segments, and what `vsr upscale` makes of it
    source = write_moving_video(tmp_path / "clip.mp4", frames=60)
    upscale_file(
        source,
        tmp_path / "expected.mp4",
        OPTIONS,
        settings=WorkerSettings(preset=PRESET, device="cpu"),
        limits=VideoLimits(),
    )

    # When it goes through the service: upload, poll, download
    with serving(tmp_path / "data") as (url, process):
        with source.open("rb") as file:
            accepted = httpx2.post(
                f"{url}/v1/jobs",
                files={"file": ("clip.mp4", file)},
                data={"preset": PRESET, "encoder_preset": OPTIONS.encoder_preset},
            )
        job = url + accepted.headers["Location"]
        wait_for("the end of the job", lambda: httpx2.get(job).json()["status"] not in ("queued", "running"))
        ended = httpx2.get(job).json()
        result = httpx2.get(f"{job}/result")

        # And the service is asked to stop
        process.terminate()
        exit_code = process.wait(60)

    # Then
    assert accepted.status_code == 202
    assert (ended["status"], ended["error"], ended["result"]["frames"]) == ("succeeded", None, 60)
    assert result.content == (tmp_path / "expected.mp4").read_bytes()
    assert exit_code == 0
    assert processes_about(tmp_path / "data") == []


def test_the_service_ends_with_its_own_redis_and_says_so(tmp_path: Path) -> None:
    # Given a service whose embedded Redis dies
    with serving(tmp_path / "data") as (_, process):
        with Redis(unix_socket_path=str(tmp_path / "data" / "redis" / "redis.sock")) as redis:
            os.kill(redis.info("server")["process_id"], signal.SIGKILL)

        # Then it does not go on answering that there is none
        assert process.wait(60) == ExitCode.SYSTEM
    assert "vsr: the embedded Redis ended" in (tmp_path / "serve.log").read_text()


def test_nothing_survives_a_kill_and_no_job_is_lost(tmp_path: Path) -> None:
    # Given a service with a job, killed the hard way
    source = write_moving_video(tmp_path / "clip.mp4", frames=60)
    with serving(tmp_path / "data") as (url, process):
        with source.open("rb") as file:
            job_id = httpx2.post(f"{url}/v1/jobs", files={"file": ("clip.mp4", file)}, data={"preset": PRESET}).json()[
                "id"
            ]
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        wait_for("the end of its children", lambda: not processes_about(tmp_path / "data"))

    # When it is started again on the same folder
    with serving(tmp_path / "data") as (url, _):
        job = f"{url}/v1/jobs/{job_id}"
        wait_for("the end of the job", lambda: httpx2.get(job).json()["status"] not in ("queued", "running"))
        ended = httpx2.get(job).json()

    # Then
    assert (ended["status"], ended["error"]) == ("succeeded", None)
