"""One service for all rows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

# Failed comparisons shall show both sides, also in modules that hold no tests. Before their first import.
pytest.register_assert_rewrite(
    *(f"tests.fidelity.{name}" for name in ("comparison", "times", "streams", "geometry", "colour", "containers"))
)

if TYPE_CHECKING:
    from tests.fidelity.product import Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Service"]:
    """`vsr serve`, started once: it takes seconds."""
    from tests.fidelity.product import serving

    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service
