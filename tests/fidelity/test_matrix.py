"""Every row of the matrix through `vsr upscale`'s own code, and through the service."""

from pathlib import Path

import pytest

from tests.fidelity import colour, containers, geometry, streams, times
from tests.fidelity.comparison import assert_kept
from tests.fidelity.product import Service, upscale
from tests.fidelity.row import Row

MATRIX = (*times.ROWS, *streams.ROWS, *geometry.ROWS, *colour.ROWS, *containers.ROWS)


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_the_command_keeps(row: Row, tmp_path: Path) -> None:
    upscaled = upscale(row, row.write(tmp_path), tmp_path)
    assert_kept(row, upscaled)
    row.check(upscaled)


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_the_service_makes_the_same_file(row: Row, tmp_path: Path, service: Service) -> None:
    source = row.write(tmp_path)
    upscaled = upscale(row, source, tmp_path)
    assert service.result_of(source, row.options, upscaled.result.path.suffix) == upscaled.result.path.read_bytes()
