"""Every row of the matrix through `vsr upscale`'s own code, and through the service."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fidelity import colour, containers, geometry, streams, times
from tests.fidelity.comparison import assert_kept
from tests.fidelity.product import REPOSITORY, Service, upscale
from tests.fidelity.row import SEGMENT_FRAMES, Row, Upscaled

MATRIX = (*times.ROWS, *streams.ROWS, *geometry.ROWS, *colour.ROWS, *containers.ROWS)
Upscale = Callable[[Row], Upscaled]


@pytest.fixture(scope="module")
def upscaled_once(tmp_path_factory: pytest.TempPathFactory) -> Upscale:
    """Write and upscale a row's video when it is first asked for."""
    done: dict[str, Upscaled] = {}

    def upscale_once(row: Row) -> Upscaled:
        if row.id not in done:
            folder = tmp_path_factory.mktemp(row.id)
            done[row.id] = upscale(row, row.write(folder), folder)
        return done[row.id]

    return upscale_once


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_the_command_keeps(row: Row, upscaled_once: Upscale) -> None:
    upscaled = upscaled_once(row)
    assert_kept(row, upscaled)
    row.check(upscaled)


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_the_service_makes_the_same_file(row: Row, upscaled_once: Upscale, service: Service) -> None:
    upscaled = upscaled_once(row)
    result = upscaled.result.path
    assert service.result_of(upscaled.source.path, row.options, result.suffix) == result.read_bytes()


def test_no_two_rows_have_one_name() -> None:
    names = [row.id for row in MATRIX]
    assert sorted(set(names)) == sorted(names)


def test_the_command_line_makes_the_same_file(upscaled_once: Upscale, tmp_path: Path) -> None:
    """As people type it; the rows above call what it calls."""
    upscaled = upscaled_once(next(row for row in MATRIX if row.id == "h264_in_mp4"))
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
