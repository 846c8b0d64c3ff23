"""One page for all processes of a host: the sum of the living and the dead."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from worker.contract.failure import FailureCode
from worker.supervisor_metrics import SupervisorMetrics

# What a worker process does, as far as the page is concerned. Killed as it stands, in the end.
_COUNT = """
import os, signal
from worker import metrics
metrics.start_at_zero()
metrics.start_preset_at_zero("compact")
metrics.FRAMES.labels("compact").inc(7)
metrics.JOB_WAIT_SECONDS.observe(3)
metrics.MODEL_LOAD_SECONDS.set(1.5)
print("counted", flush=True)
signal.pause()
"""
FRAMES = 'vsr_frames_total{preset="compact"}'
WAITS, WAITS_UP_TO_FIVE = "vsr_job_wait_seconds_count", 'vsr_job_wait_seconds_bucket{le="5.0"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics"


@pytest.fixture
def metrics(folder: Path) -> Iterator[SupervisorMetrics]:
    metrics = SupervisorMetrics(folder, "127.0.0.1", 0)
    yield metrics
    metrics.close()


def scrape(metrics: SupervisorMetrics) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def start_process(folder: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", _COUNT], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "counted\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_what_the_dead_have_counted_stays_counted_and_their_files_go(metrics: SupervisorMetrics, folder: Path) -> None:
    # Given three processes, and a job that had to be ended for one of them
    processes = [start_process(folder) for _ in range(3)]
    metrics.note_failed_job(FailureCode.WORKER_LOST)
    with_all = scrape(metrics)

    # When two are killed, and then the last
    for process in processes[:2]:
        kill(process)
        metrics.note_death(process.pid, "signal")
    with_one = scrape(metrics)
    kill(processes[2])
    metrics.note_death(processes[2].pid, "signal")
    with_none = scrape(metrics)

    # Then no count has fallen
    lost = 'vsr_jobs_finished_total{reason="worker_lost",status="failed"}'
    for page in (with_all, with_one, with_none):
        assert (page[FRAMES], page[WAITS], page[WAITS_UP_TO_FIVE], page[lost]) == (21, 3, 3, 1)
    counts = [{name for name in page if "_total" in name or "_bucket" in name} for page in (with_all, with_none)]
    assert counts[0] == counts[1]
    # And what held for the living holds no more, and nothing is left to be read at the next scrape
    assert (with_one["vsr_model_load_seconds"], with_none.get("vsr_model_load_seconds")) == (1.5, None)
    assert list(folder.iterdir()) == []


def test_no_scrape_sees_a_process_in_two_places(
    metrics: SupervisorMetrics, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that has died, and scrapes that come just when its files are being removed
    process = start_process(folder)
    kill(process)
    seen: list[float] = []
    scrapes: list[threading.Thread] = []
    remove = Path.unlink

    def remove_while_scraped(path: Path) -> None:
        scrapes.append(threading.Thread(target=lambda: seen.append(scrape(metrics)[FRAMES])))
        scrapes[-1].start()
        scrapes[-1].join(0.5)  # it may have to wait for us
        remove(path)

    monkeypatch.setattr(Path, "unlink", remove_while_scraped)

    # When it is buried
    metrics.note_death(process.pid, "signal")
    for thread in scrapes:
        thread.join()

    # Then they have seen it once
    assert seen == [7, 7]


def test_a_file_that_was_cut_off_is_given_up_and_the_rest_is_served(metrics: SupervisorMetrics, folder: Path) -> None:
    # Given a process whose file has lost its end
    whole, broken = start_process(folder), start_process(folder)
    kill(broken)
    file = folder / f"counter_{broken.pid}.db"
    file.write_bytes(file.read_bytes()[:1000])

    # When it is buried
    metrics.note_death(broken.pid, "signal")
    page = scrape(metrics)
    kill(whole)

    # Then the other's counts are there
    assert page[FRAMES] == 7
    assert page['vsr_worker_deaths_total{reason="signal"}'] == 1
