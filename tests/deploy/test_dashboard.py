"""The dashboard, as far as it can be judged without Grafana. tests/containers and
tests/end_to_end/test_watching.py ask a real Prometheus its queries."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from .conftest import series_in

Panel = dict[str, Any]


@pytest.fixture(scope="module")
def dashboard(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repository / "deploy/grafana/dashboards/twostep-vsr.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def panels(dashboard: dict[str, Any]) -> list[Panel]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_every_query_reads_only_series_that_our_processes_serve(panels: list[Panel], served_series: set[str]) -> None:
    read = {name for panel in panels for target in panel["targets"] for name in series_in(target["expr"])}
    assert read - served_series == set()
    assert len(read) > 20


def test_every_panel_says_what_it_shows_and_in_which_unit(panels: list[Panel]) -> None:
    for panel in panels:
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


def test_every_query_goes_to_the_data_source_that_the_reader_chose(
    dashboard: dict[str, Any], panels: list[Panel]
) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["datasource"] == variables["preset"]["datasource"] == chosen
    for panel in panels:
        assert panel["datasource"] == chosen, panel["title"]
        assert all(target["datasource"] == chosen for target in panel["targets"]), panel["title"]


def test_panels_have_ids_of_their_own_and_stand_side_by_side(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    for one, other in combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), f"{one['title']} and {other['title']}"


def test_the_rows_tell_the_story_from_the_outside_in(dashboard: dict[str, Any]) -> None:
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == [
        *("Overview", "Queue", "Jobs", "Pipeline by stage", "Workers", "GPU", "HTTP", "Storage and Redis"),
        "Other hosts",
    ]


def test_an_alert_that_a_panel_names_exists(repository: Path, panels: list[Panel]) -> None:
    named = {name for panel in panels for name in re.findall(r"\bVsr\w+", panel["description"])}
    rules = (repository / "deploy/prometheus/rules/alerts.yml").read_text()
    assert named - set(re.findall(r"- alert: (\w+)", rules)) == set()
    assert len(named) > 5


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )
