"""The commands of the guides, run as they stand, from top to bottom, against a real service."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.end_to_end.test_serve import REPOSITORY, serving

KEY = "a-key-for-the-guides-only"
SECRET = "a-secret-for-the-guides-only"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guides")
    settings = {"VSR_API_KEYS": KEY, "VSR_WEBHOOK_SECRET": SECRET, "VSR_ALLOW_LOOPBACK_TARGETS": "true"}
    with serving(folder / "data", VSR_CPU_THREADS="1", **settings) as (url, _):
        yield url


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The folder of somebody who follows a guide: a clip of the example's name, and the commands of a checkout."""
    (tmp_path / "examples").mkdir()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    noise = np.random.default_rng(0)
    with av.open(str(tmp_path / "examples/clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(24):
            picture = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    # The guide sends its first 100,000 bytes, and then the rest.
    assert (tmp_path / "examples/clip.mp4").stat().st_size > 100_000
    return tmp_path


def blocks(guide: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / guide).read_text(), re.DOTALL))


def follow(reader: Path, url: str, *command: str) -> str:
    environment = {"VSR_URL": url, "VSR_API_KEY": KEY, "VSR_WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        command, cwd=reader, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_guide_to_the_api_does_what_it_says(service: str, reader: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    (reader / "receiver.py").write_text(blocks("docs/api.md", "python").replace("8099", port))
    (reader / "guide.sh").write_text(blocks("docs/api.md", "sh").replace("8099", port))

    told = follow(reader, service, "bash", "-euo", "pipefail", "guide.sh")

    for sign in ("event: status", "upload-offset: 100000", "#EXTM3U", "job.succeeded", '"authenticated":true'):
        assert sign in told
    for code in ("job_not_found", "unknown_preset"):
        assert f'"code":"{code}"' in told
    assert {"clip_2x.mp4", "preview.mp4", "source.jpg", "result.jpg"} <= {path.name for path in reader.iterdir()}


def test_the_guide_to_the_python_client_does_what_it_says(service: str, reader: Path) -> None:
    (reader / "guide.py").write_text(blocks("docs/python-client.md", "python"))

    told = follow(reader, service, sys.executable, "guide.py")

    assert "succeeded 1.0" in told
    assert "There is no such preset" in told
    assert {"clip_2x.mp4", "preview.mp4", "frame.jpg", "a_2x.mp4", "b_2x.mkv"} <= {
        path.name for path in reader.iterdir()
    }
