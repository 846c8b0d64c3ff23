"""Every row of the matrix through `vsr upscale`'s own code, and through the service."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fidelity import colour, containers, geometry, streams, times
from tests.fidelity.comparison import assert_kept
from tests.fidelity.product import REPOSITORY, Service, output_suffix, upscale
from tests.fidelity.row import SEGMENT_FRAMES, Row, Upscaled

MATRIX = (*times.ROWS, *streams.ROWS, *geometry.ROWS, *colour.ROWS, *containers.ROWS)


@dataclass
class Run:
    """One row's video on its way through both doors."""

    upscaled: Upscaled
    place: str
    """Of the service's job."""


Runner = Callable[[Row], Run]

# Both tests of a row follow each other: at most one row is made twice where processes share the tests.
every_row = pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id, scope="module")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Runner:
    """Write and upscale a row's video when it is first asked for; meanwhile the service is at work on it, too."""
    done: dict[str, Run] = {}

    def run_once(row: Row) -> Run:
        if row.id not in done:
            folder = tmp_path_factory.mktemp(row.id)
            source = row.write(folder)
            place = service.submit(source, row.options, output_suffix(row, source))
            done[row.id] = Run(upscale(row, source, folder), place)
        return done[row.id]

    return run_once


@every_row
def test_the_command_keeps(row: Row, run: Runner) -> None:
    upscaled = run(row).upscaled
    assert_kept(row, upscaled)
    row.check(upscaled)


@every_row
def test_the_service_makes_the_same_file(row: Row, run: Runner, service: Service) -> None:
    ran = run(row)
    assert service.result(ran.place) == ran.upscaled.result.path.read_bytes()
    assert service.report(ran.place)["result"] == ran.upscaled.report["result"]


def test_no_two_rows_have_one_name() -> None:
    names = [row.id for row in MATRIX]
    assert sorted(set(names)) == sorted(names)


def test_the_command_line_makes_the_same_file(run: Runner, tmp_path: Path) -> None:
    """As people type it; the rows above call what it calls."""
    upscaled = run(next(row for row in MATRIX if row.id == "h264_in_mp4")).upscaled
    output, report = tmp_path / "typed.mp4", tmp_path / "report.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "app.cli", "upscale", str(upscaled.source.path), str(output)),
            *("--preset", "repeat-pixels", "--encoder-preset", "ultrafast", "--quality", "lossless"),
            *("--device", "cpu", "--report", str(report)),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "VSR_SEGMENT_FRAMES": str(SEGMENT_FRAMES)},
        check=True,
    )
    assert output.read_bytes() == upscaled.result.path.read_bytes()
    assert json.loads(report.read_text())["result"] == upscaled.report["result"]
