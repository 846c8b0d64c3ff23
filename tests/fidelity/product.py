"""How the matrix reaches the product: the command's code in this process, and a service of real processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.end_to_end.conftest import wait_for
from tests.fidelity.row import SEGMENT_FRAMES, Row, Upscaled
from tests.fidelity.witness import Witness
from worker.contract.job import Container, JobOptions, Progress
from worker.local import default_output, upscale_file
from worker.settings import VideoLimits, WorkerSettings

REPOSITORY = Path(__file__).parents[2]


def upscale(row: Row, source: Path, folder: Path, segment_frames: int = SEGMENT_FRAMES) -> Upscaled:
    """Upscale as the command does, in several segments, and let the witness look at both files."""
    output = folder / f"result{output_suffix(row, source)}"
    seen: list[Progress] = []
    settings = WorkerSettings(device="cpu", segment_frames=segment_frames)
    outcome = upscale_file(
        source, output, row.options, settings=settings, limits=VideoLimits(), on_progress=seen.append
    )
    assert outcome.report is not None
    upscaled = Upscaled(
        Witness(source, row.video_index), Witness(output, row.video_index), outcome.report.model_dump(mode="json")
    )
    assert seen[-1].segments_total > 1 or len(upscaled.source.video.frames) < 2 * segment_frames
    return upscaled


def output_suffix(row: Row, source: Path) -> str:
    return row.suffix or default_output(source).suffix


class Service:
    """A running `vsr serve`, as a client sees it."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def has_a_worker(self) -> bool:
        try:
            return bool(self._http.get("/readyz").json()["workers"])
        except httpx2.RequestError:
            return False

    def submit(self, source: Path, options: JobOptions, suffix: str) -> str:
        """Send a file and return the place of its job."""
        fields = options.model_copy(update={"container": Container(suffix.removeprefix("."))}).model_dump(
            mode="json", exclude_none=True
        )
        with source.open("rb") as file:
            accepted = self._http.post("/v1/jobs", files={"file": (source.name, file)}, data=fields)
        assert accepted.status_code == 202, accepted.text
        return str(accepted.headers["Location"])

    def finished(self, place: str) -> dict[str, Any]:
        """Wait for the end of a job."""
        wait_for("the job's end", lambda: self._http.get(place).json()["status"] not in ("queued", "running"))
        job: dict[str, Any] = self._http.get(place).json()
        return job

    def result(self, place: str) -> bytes:
        assert self.finished(place)["error"] is None
        return self._http.get(f"{place}/result").content

    def report(self, place: str) -> dict[str, Any]:
        report: dict[str, Any] = self._http.get(f"{place}/report").json()
        return report


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """One `vsr serve` with the pixel repeater loaded and short segments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "VSR_STORAGE_DIR": str(folder / "data"),
        "VSR_METRICS_PORT": "0",
        "VSR_ENABLE_TEST_PRESETS": "true",
        "VSR_SEGMENT_FRAMES": str(SEGMENT_FRAMES),
    }
    environment.pop("VSR_REDIS_URL", None)
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--preset", "repeat-pixels"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as http:
            service = Service(http)
            wait_for("a live worker", service.has_a_worker)
            yield service
    finally:
        process.terminate()
        process.wait(60)
