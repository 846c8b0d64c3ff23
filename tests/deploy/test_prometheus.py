"""The alerts' names and words. That they fire and stay silent as written, promtool proves: alerts_test.yml."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import CourierSettings, GatewaySettings
from worker.contract.failure import FailureCode
from worker.contract.settings import RedisSettings, StorageSettings
from worker.settings import VideoLimits, WorkerSettings

from .conftest import series_in


@pytest.fixture(scope="module")
def alerts(repository: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((repository / "deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_reads_only_series_that_our_processes_serve(
    alerts: list[dict[str, Any]], served_series: set[str]
) -> None:
    for alert in alerts:
        assert series_in(alert["expr"]), alert["alert"]
        assert series_in(alert["expr"]) - served_series == set(), alert["alert"]


def test_every_alert_says_what_is_wrong_how_bad_it_is_and_where_to_look(alerts: list[dict[str, Any]]) -> None:
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description", "dashboard", "runbook_url"}, alert["alert"]


def test_the_runbook_has_one_paragraph_for_every_alert_and_none_for_another(
    repository: Path, alerts: list[dict[str, Any]]
) -> None:
    runbook = (repository / "docs/runbook.md").read_text()
    paragraphs = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=\n\n|\Z)", runbook, re.MULTILINE | re.DOTALL))
    assert set(paragraphs) == {alert["alert"] for alert in alerts}
    assert min(map(len, paragraphs.values())) > 200
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"


def test_every_metric_of_ours_is_described_as_it_describes_itself(repository: Path, served_pages: list[str]) -> None:
    described = dict(
        re.findall(
            r"^\| `(vsr_\w+)` \| \w+ \|[^|]*\| (.+) \|$", (repository / "docs/metrics.md").read_text(), re.MULTILINE
        )
    )
    served = [family for page in served_pages for family in re.findall(r"^# HELP (vsr_\w+) (.+)$", page, re.MULTILINE)]
    assert set(described) == {name for name, _ in served if not name.endswith("_created")}
    assert set(described.values()) <= {words for _, words in served}
    assert len(described) > 40


def test_the_runbook_names_only_settings_and_panels_that_exist(repository: Path) -> None:
    runbook = (repository / "docs/runbook.md").read_text()
    groups = (GatewaySettings, CourierSettings, WorkerSettings, VideoLimits, StorageSettings, RedisSettings)
    known = {f"VSR_{name.upper()}" for group in groups for name in group.model_fields}
    assert set(re.findall(r"\bVSR_\w+", runbook)) - known == set()

    titles = re.findall(r'"title": "(.+)"', (repository / "deploy/grafana/dashboards/twostep-vsr.json").read_text())
    assert set(re.findall(r'"([A-Z][a-z ]+)"', runbook)) - set(titles) == set()


def test_every_alert_has_its_unit_test(alerts: list[dict[str, Any]]) -> None:
    cases = yaml.safe_load((Path(__file__).parent / "alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    fired = {check["alertname"] for check in checks if check.get("exp_alerts")}
    silent = {check["alertname"] for check in checks if not check.get("exp_alerts")}
    assert fired == silent == {alert["alert"] for alert in alerts}


def test_failures_are_counted_against_the_service_by_reasons_that_exist(alerts: list[dict[str, Any]]) -> None:
    reasons = {
        reason
        for alert in alerts
        for group in re.findall(r'reason=~"([^"]*)"', alert["expr"])
        for reason in group.split("|")
    }
    assert "worker_lost" in reasons
    assert reasons <= {str(code) for code in FailureCode}


def test_prometheus_asks_the_services_of_the_compose_file_at_the_ports_of_the_images(repository: Path) -> None:
    # Given
    compose = yaml.safe_load((repository / "docker-compose.yml").read_text())["services"]
    exposed = set(re.findall(r"^EXPOSE (\d+)$", (repository / "Dockerfile").read_text(), re.MULTILINE))
    config = yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())

    # When
    asked = set()
    for job in config["scrape_configs"]:
        asked |= {tuple(target.split(":")) for group in job.get("static_configs", []) for target in group["targets"]}
        asked |= {(name, str(dns["port"])) for dns in job.get("dns_sd_configs", []) for name in dns["names"]}

    # Then
    assert {name for name, _ in asked} == {"gateway", "courier", "workers"}
    assert all(compose[service]["networks"]["back"]["aliases"] == ["workers"] for service in ("worker", "worker-gpu"))
    assert {port for _, port in asked} == exposed - {"8000"}  # the API, where metrics need a key
