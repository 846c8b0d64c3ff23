"""Tracing costs nothing where it is not wanted, and stops nothing where it is not installed."""

import socket
import subprocess
import sys

import pytest

_DO_EVERYTHING = """
import sys
from worker.contract import tracing
from worker.contract.logs import configure_logging
{before}
configure_logging()
tracing.start_tracing("vsr-test")
with tracing.span("step", "00-5b8aa5a2d2c872e8321cf37308d69df2-051581bf3cb55c13-01", job_id="a"):
    tracing.note(segment=1)
    tracing.note_failure("internal")
    print(tracing.current_trace_parent())
tracing.stop_tracing()
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def run(before: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _DO_EVERYTHING.format(before=before)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_nothing_is_imported_where_no_collector_is_named(environment: dict[str, str]) -> None:
    done = run("", **environment)
    assert done.stdout.splitlines() == ["None", "[]"]
    assert done.stderr == ""


def test_a_missing_extra_is_said_once_and_everything_else_works() -> None:
    # Given a process without the SDK
    done = run("sys.modules['opentelemetry.sdk.trace'] = None", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")

    # Then
    assert done.stdout.splitlines()[0] == "None"
    assert done.stderr.count("tracing_unavailable") == 1
    assert "twostep-vsr[tracing]" in done.stderr


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_collector_that_is_away_holds_nothing_up(variable: str) -> None:
    done = run("", **{variable: "http://127.0.0.1:9"})
    # The step has the trace of its parent, and an id of its own.
    assert done.stdout.startswith("00-5b8aa5a2d2c872e8321cf37308d69df2-")
    assert "051581bf3cb55c13" not in done.stdout


def test_a_collector_that_never_answers_holds_no_stop_up() -> None:
    # Given one that takes connections and says nothing, and a client that would wait for a minute
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", _DO_EVERYTHING.format(before="")]
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}

        # When a process stops, then it does not wait
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=45)
    assert done.stdout.startswith("00-5b8aa5a2d2c872e8321cf37308d69df2-")
