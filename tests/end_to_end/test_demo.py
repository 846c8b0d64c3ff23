"""`vsr demo`: one command shows the whole service, and leaves nothing but the result."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest

from app.exit_codes import ExitCode
from tests.end_to_end.conftest import PRESET, write_moving_video
from tests.end_to_end.test_serve import REPOSITORY, processes_about

DEMO = [sys.executable, "-m", "app.cli", "demo", "clip.mp4", "--preset", PRESET, "--device", "cpu"]


def environment(folder: Path) -> dict[str, str]:
    """Of somebody who uses another service of this kind, which the demo leaves alone."""
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "TMPDIR": str(folder),
        "VSR_ENABLE_TEST_PRESETS": "true",
        "VSR_REDIS_URL": "redis://127.0.0.1:1/0",
        "VSR_API_KEYS": "key-of-the-other-service",
        "VSR_STORAGE_DIR": "/proc/nowhere",
    }


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder: pytest's own has so long a name that no socket's fits behind it."""
    with TemporaryDirectory(prefix="vsr-") as folder:
        yield Path(folder)


@contextmanager
def demo(folder: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [*DEMO, *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_clip_goes_through_the_whole_service_and_only_the_result_stays(short_path: Path) -> None:
    write_moving_video(short_path / "clip.mp4", frames=5)

    with demo(short_path, "--json") as process:
        out, err = process.communicate(timeout=60)

    told = json.loads(out)
    assert (process.returncode, told["job"]["status"], told["output"]) == (ExitCode.OK, "succeeded", "clip_2x.mp4"), err
    assert told["job"]["result"]["size_bytes"] == (short_path / "clip_2x.mp4").stat().st_size
    assert sorted(path.name for path in short_path.iterdir()) == ["clip.mp4", "clip_2x.mp4"]
    assert processes_about(short_path) == []


def test_the_page_stays_until_it_is_ended(short_path: Path) -> None:
    # Given
    write_moving_video(short_path / "clip.mp4", frames=5)
    with demo(short_path) as process:
        assert process.stderr
        assert process.stdout
        address = process.stderr.readline().split("Its page: ")[1].strip()
        assert process.stdout.readline() == "clip_2x.mp4: 128x96, 5 frames\n"

        # Then
        assert "<html" in httpx2.get(address).text

        # And when it is ended
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK
    assert processes_about(short_path) == []


def test_a_result_that_cannot_be_saved_ends_the_demo_in_one_line(short_path: Path) -> None:
    # Given a name that is not too long by itself, but with what a download is called before it is whole
    write_moving_video(short_path / "clip.mp4", frames=5)
    name = f"{'x' * 246}.mp4"

    with demo(short_path, "--stop", "-o", name) as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == ExitCode.SYSTEM
    assert "File name too long" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert processes_about(short_path) == []


def test_a_clip_that_is_none_ends_the_demo_with_the_reason(short_path: Path) -> None:
    (short_path / "clip.mp4").write_bytes(b"no video")

    with demo(short_path) as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == ExitCode.JOB_FAILED
    assert "failed: not_a_video" in err.splitlines()[-1]
