"""What an operator sees: a real Prometheus reads the whole service, and no panel and no alert of ours is blind.

Jobs succeed, fail and are refused meanwhile, and a worker process is killed. What is played is the GPU, as the machine
that runs this may have none, and Grafana, of which Debian has no package: Prometheus is asked what it would ask.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from redis import Redis

from tests.end_to_end.conftest import PRESET, wait_for, write_moving_video
from tests.end_to_end.test_serve import REPOSITORY, serving

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs Debian's prometheus, as .ci/run has it"
)

PROMETHEUS = REPOSITORY / "deploy/prometheus"
DASHBOARD = REPOSITORY / "deploy/grafana/dashboards/twostep-vsr.json"
# Stands before the real one in the path of the service's processes.
ONE_GPU = """
from types import SimpleNamespace
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return "GPU-0"
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(used=3 * 2**30, total=8 * 2**30)
def nvmlDeviceGetUtilizationRates(handle): return SimpleNamespace(gpu=50)
"""
# As Grafana sends them: all workers, all presets, and a look back that holds several scrapes.
VARIABLES = {"$instance": ".*", "$preset": ".*", "$__rate_interval": "5m"}


class Watcher:
    """Prometheus, as the compose file runs it but for the addresses."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, expression: str) -> list[float]:
        """The values of all series that it has for this; an expression that it does not understand fails."""
        return [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]

    def get(self, call: str, **parameters: str) -> dict[str, Any]:
        answer = httpx2.get(f"{self.url}/api/v1/{call}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        data: dict[str, Any] = answer.json()["data"]
        return data

    def is_blind(self, expression: str) -> bool:
        """Whether there is no series, or none with a number."""
        return not any(value == value for value in self.ask(expression))


@contextmanager
def watching(folder: Path, ports: dict[str, int]) -> Iterator[Watcher]:
    """Our configuration, with this machine's ports for the services of the compose file, and less patience."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / files) for files in config["rule_files"]]
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    [port] = free_ports(1)
    command = [
        *("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    watcher = Watcher(f"http://127.0.0.1:{port}")
    try:
        wait_for("Prometheus", lambda: answers(f"{watcher.url}/-/ready"))
        yield watcher
    finally:
        process.terminate()
        process.wait(30)


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.RequestError:
        return False


def panel_expressions() -> dict[str, str]:
    """Expression by panel and letter, with the variables at their defaults."""
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    expressions = {}
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            expressions[f"{panel['title']} {target['refId']}"] = expression
    return expressions


def alert_expressions() -> dict[str, str]:
    """By name, without thresholds: what is compared must be there, whether it is too much or not."""
    groups = yaml.safe_load((PROMETHEUS / "rules/alerts.yml").read_text())["groups"]
    return {rule["alert"]: without_thresholds(rule["expr"]) for group in groups for rule in group["rules"]}


def without_thresholds(expression: str) -> str:
    return re.sub(r"\s(==|!=|[<>]=?)\s[0-9.]+( \* [0-9]+ \^ [0-9]+)?", "", expression)


def job_status(job: str) -> str:
    status: str = httpx2.get(job).json()["status"]
    return status


def kill_the_worker_in_mid_work(storage: Path) -> None:
    with Redis(unix_socket_path=str(storage / "redis" / "redis.sock")) as redis:
        [name] = redis.smembers("rq:workers:vsr")
        wait_for("a task under way", lambda: redis.hget(name, "state") == b"busy")  # not so between two tasks
        os.kill(int(redis.hget(name, "pid") or 0), signal.SIGKILL)


def test_no_panel_and_no_alert_is_blind_after_jobs_that_succeed_and_fail_and_a_killed_worker(tmp_path: Path) -> None:
    # Given the service with all its targets, and a Prometheus that sees it before its first job
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "pynvml.py").write_text(ONE_GPU)
    *ports_of_ours, nobodys_port = free_ports(4)
    ports = dict(zip(("vsr-gateway", "vsr-courier", "vsr-worker"), ports_of_ours, strict=True))
    video = write_moving_video(tmp_path / "clip.mp4", frames=120)
    settings = {
        "VSR_GATEWAY_METRICS_PORT": str(ports["vsr-gateway"]),
        "VSR_COURIER_METRICS_PORT": str(ports["vsr-courier"]),
        "VSR_METRICS_PORT": str(ports["vsr-worker"]),
        "VSR_JANITOR_SECONDS": "1",
        "VSR_WEBHOOK_SECRET": "a secret of more than twenty-four letters",
        "VSR_ALLOW_LOOPBACK_TARGETS": "true",
        "VSR_CPU_THREADS": "1",
        "PYTHONPATH": f"{tmp_path / 'driver'}:{REPOSITORY}",
    }
    with serving(tmp_path / "data", **settings) as (url, _), watching(tmp_path / "prometheus", ports) as prometheus:
        wait_for("the first scrape of all", lambda: prometheus.ask('count(up{job=~"vsr-.*"} == 1)') == [3.0])
        wait_for("the worker's first figures", lambda: prometheus.ask("vsr_frames_total") == [0.0])

        # When a job succeeds though its worker is killed, one fails and nobody hears of it, and one is refused
        def submit(content: bytes, preset: str = PRESET, **options: str) -> str:
            options |= {"preset": preset}
            posted = httpx2.post(f"{url}/v1/jobs", files={"file": ("clip.mp4", content)}, data=options)
            return url + posted.headers["Location"] if posted.status_code == 202 else posted.json()["code"]

        job = submit(video.read_bytes())
        wait_for("a finished segment", lambda: httpx2.get(job).json()["progress"]["segments_done"] >= 1)
        kill_the_worker_in_mid_work(tmp_path / "data")
        webhook_url = f"http://127.0.0.1:{nobodys_port}/"
        failing = submit(b"this is a text, and not a short one at all" * 99, webhook_url=webhook_url)
        assert submit(b"x", preset="no-such-preset") == "unknown_preset"
        wait_for("the ends", lambda: {job_status(job), job_status(failing)} == {"succeeded", "failed"})

        # Then every panel and every alert has something to go by
        expressions = panel_expressions() | alert_expressions()
        blind: dict[str, str] = {}

        def all_see() -> bool:
            blind.clear()
            blind.update({name: text for name, text in expressions.items() if prometheus.is_blind(text)})
            return not blind

        try:
            wait_for("every panel and alert to see something", all_see, seconds=20)
        except pytest.fail.Exception:
            pytest.fail(f"blind: {json.dumps(blind, indent=2)}")
        # (for whoever wants to see them: pytest keeps the folder)
        counts = [f"{len(prometheus.ask(expression)):3d}  {name}\n" for name, expression in expressions.items()]
        (tmp_path / "series-by-panel-and-alert.txt").write_text("".join(counts))

        # And what the killed process had counted is not lost: no counter has ever fallen
        assert prometheus.ask('sum(increase(vsr_worker_deaths_total{reason="signal"}[5m]))')[0] > 0
        for counter in ("vsr_frames_total", "vsr_segments_total", "vsr_stage_duration_seconds_count"):
            assert set(prometheus.ask(f"resets({counter}[5m])")) == {0.0}, counter
        assert sum(prometheus.ask("vsr_frames_total")) >= 120
        assert prometheus.ask('sum(vsr_jobs_finished_total{status="succeeded"})') == [1.0]
        # And every rule was understood
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert {rule["name"] for rule in rules} == set(alert_expressions())

        # And every page is as Prometheus wants it
        for name, port in ports.items():
            page = httpx2.get(f"http://127.0.0.1:{port}/metrics").content
            checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
            assert (checked.returncode, checked.stderr) == (0, b""), f"{name}: {checked.stderr.decode()}"


def test_an_expression_without_its_thresholds_is_what_was_compared() -> None:
    assert without_thresholds("max(a) > 600\nand on () (sum(b[10m]) or vector(0)) == 0") == (
        "max(a)\nand on () (sum(b[10m]) or vector(0))"
    )
    assert without_thresholds("min(a) < 10 * 1024 ^ 3") == "min(a)"
    assert without_thresholds('a{b="c > 1"} / b >= 0.05') == 'a{b="c"} / b'
