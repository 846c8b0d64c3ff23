"""One story, told to the running containers: a video goes in, comes out at twice its size, and Prometheus counts it."""

import json
import re
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from .conftest import REPOSITORY, House, poll

pytestmark = pytest.mark.containers

FRAMES = 14
DASHBOARD = REPOSITORY / "deploy/grafana/dashboards/twostep-vsr.json"
# What a healthy house on a CPU has nothing to say about.
SILENT_WITHOUT_GPU_OR_TROUBLE = {"GPU memory", "GPU utilization", "Failures by reason", "Recovery of tasks"}


def test_a_video_posted_to_the_gateway_comes_back_at_twice_the_size(house: House, tmp_path: Path) -> None:
    # Given a Prometheus that has seen the worker before its first job: a rate needs a value to grow from
    seen = poll(lambda: query(house, "vsr_frames_total"), until=lambda values: values != [])
    assert seen == ["0"]
    # and a short video
    source = tmp_path / "square.mp4"
    write_moving_square(source, width=64, height=48)

    with httpx2.Client(base_url=house.gateway_url, trust_env=False) as client:
        # When it is posted as a job, waited for and downloaded
        with source.open("rb") as file:
            posted = client.post("/v1/jobs", files={"file": (source.name, file, "video/mp4")})
        assert posted.status_code == 202, posted.text

        def job() -> dict[str, Any]:
            found: dict[str, Any] = client.get(posted.headers["Location"]).json()
            return found

        ended = poll(job, until=lambda job: job["status"] not in ("queued", "running"), timeout_seconds=120)
        assert ended["status"] == "succeeded", f"{ended}\n{house.compose('logs', '--no-color', '--tail=40', 'worker')}"
        result = client.get(f"/v1/jobs/{ended['id']}/result")

    # Then it has twice the size and every frame
    assert result.status_code == 200
    with av.open(BytesIO(result.content)) as video:
        sizes = [(frame.width, frame.height) for frame in video.decode(video=0)]
    assert sizes == [(128, 96)] * FRAMES


def test_the_gateway_misses_nothing_and_warns_of_nothing(house: House) -> None:
    def readiness() -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{house.gateway_url}/readyz", trust_env=False).json()
        return found

    # The warnings would tell that Redis is not set up to keep its tasks; of the cage the engine and the kernel decide.
    expected = {"status": "ready", "missing": [], "warnings": [], "workers": 1}
    found = poll(readiness, until=lambda found: found["workers"] == 1)
    assert found | {"warnings": [one for one in found["warnings"] if "protection" not in one]} == expected


def test_redis_answers_nobody_without_the_password(house: House) -> None:
    words = house.compose("exec", "-T", "redis", "env", "-u", "REDISCLI_AUTH", "redis-cli", "ping")
    assert "NOAUTH" in words


def test_prometheus_has_counted_the_finished_job(house: House) -> None:
    # Given the job of the test above, when Prometheus has scraped the worker since, then it knows
    finished = 'sum(vsr_jobs_finished_total{status="succeeded"})'
    assert poll(lambda: query(house, finished), until=lambda values: values == ["1"]) == ["1"]


def test_every_panel_of_the_dashboard_has_something_to_show(house: House) -> None:
    # Given the expressions as Grafana would send them
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    expressions = {
        (panel["title"], as_grafana_sends(target["expr"])) for panel in panels for target in panel["targets"]
    }

    # When Prometheus is asked them all (one that it does not understand fails at once)
    def silent() -> set[tuple[str, str]]:
        return {
            (title, expression)
            for title, expression in expressions
            if set(query(house, expression)) <= {"NaN"}
            and title not in SILENT_WITHOUT_GPU_OR_TROUBLE
            and not expression.endswith("> 0")
        }

    # Then each answers with a number
    assert poll(silent, until=lambda silent: not silent) == set()


def test_prometheus_accepts_the_alert_rules_and_none_fires(house: House) -> None:
    alerts = get_json(house, "/api/v1/alerts")["alerts"]
    rules = [rule for group in get_json(house, "/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) == len(re.findall(r"- alert:", (REPOSITORY / "deploy/prometheus/rules/alerts.yml").read_text()))
    assert [alert for alert in alerts if alert["state"] == "firing"] == []


@pytest.mark.parametrize("service", ["gateway", "courier", "worker"])
def test_our_containers_run_unprivileged_on_a_read_only_system(house: House, service: str) -> None:
    status = house.compose("exec", "-T", service, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+10001\s+10001\s+10001\s+10001$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert house.inspect(service)["HostConfig"]["ReadonlyRootfs"] is True


def test_the_gateway_image_has_no_torch_and_no_av(house: House) -> None:
    found = house.compose(
        *("exec", "-T", "gateway", "python", "-c"),
        "from importlib.util import find_spec; print([name for name in ('torch', 'av', 'numpy') if find_spec(name)])",
    )
    assert found.strip() == "[]"


def test_a_stop_ends_gateway_courier_and_worker_of_their_own_accord(house: House) -> None:
    """Last in this file: it ends the house."""
    house.compose("stop", "gateway", "courier", "worker")
    for service in ("gateway", "courier", "worker"):
        # 137 would be the engine's SIGKILL at the end of the grace period.
        assert house.inspect(service)["State"]["ExitCode"] in (0, 143)


def as_grafana_sends(expression: str) -> str:
    """With every variable of the dashboard at its default, and ten minutes to look back."""
    return re.sub(r"\$(instance|preset)\b", ".*", expression).replace("$__rate_interval", "10m")


def query(house: House, expression: str) -> list[str]:
    """The values of an instant query; a PromQL error fails the test."""
    return [sample["value"][1] for sample in get_json(house, "/api/v1/query", query=expression)["result"]]


def get_json(house: House, path: str, **parameters: str) -> dict[str, Any]:
    answer = httpx2.get(house.prometheus_url + path, params=parameters, trust_env=False)
    assert answer.status_code == 200, f"{parameters}: {answer.text}"
    data: dict[str, Any] = answer.json()["data"]
    return data


def write_moving_square(path: Path, width: int, height: int) -> None:
    with av.open(path, "w") as video:
        stream = video.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((height, width, 3), 40, np.uint8)
            picture[8:24, 2 * index : 2 * index + 16] = 220
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        video.mux(stream.encode())
