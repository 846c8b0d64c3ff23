"""What the whole service logs: JSON lines that lead from a request to all that was done for it; or text for people."""

import json
from pathlib import Path
from typing import Any

import httpx2

from tests.end_to_end.conftest import PRESET, wait_for, write_moving_video
from tests.end_to_end.test_serve import serving
from tests.end_to_end.test_watching import kill_the_worker_in_mid_work


def test_every_line_is_json_and_those_about_a_job_name_it_and_the_request_that_made_it(tmp_path: Path) -> None:
    # Given a service with a job whose worker is killed, one that fails, and a request that is refused
    video = write_moving_video(tmp_path / "clip.mp4", frames=120)
    data = {"preset": PRESET}
    with serving(tmp_path / "data") as (url, process):
        posted = httpx2.post(f"{url}/v1/jobs", files={"file": ("clip.mp4", video.read_bytes())}, data=data)
        job = url + posted.headers["Location"]
        wait_for("a finished segment", lambda: httpx2.get(job).json()["progress"]["segments_done"] >= 1)
        kill_the_worker_in_mid_work(tmp_path / "data")
        failing = httpx2.post(f"{url}/v1/jobs", files={"file": ("no.mp4", b"no video" * 999)}, data=data)
        failing_job = url + failing.headers["Location"]
        wait_for("both ends", lambda: {status_of(job), status_of(failing_job)} == {"succeeded", "failed"})
        httpx2.post(f"{url}/v1/jobs", json={"upload_id": "nobody"})
        process.terminate()
        process.wait(60)

    # Then every line of every process is JSON, and says what, where, when and how bad
    lines = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines()]
    assert all({"event", "logger", "timestamp", "level"} <= set(line) for line in lines)
    assert {"supervisor_started", "courier_started", "worker_process_started"} <= {line["event"] for line in lines}

    # And all that was done about a job can be found by its id, and what the worker did by the request's too
    for answer, expected in (
        (posted, {"job accepted", "job_started", "task_requeued", "segment_finished", "job_succeeded"}),
        (failing, {"job accepted", "job_failed"}),
    ):
        about = lines_with(lines, "job_id", answer.json()["id"])
        assert expected | {"request"} <= {line["event"] for line in about}
        by_workers = [line for line in about if line["logger"].startswith("worker.tasks")]
        assert by_workers
        assert {line["request_id"] for line in by_workers} == {answer.headers["X-Request-ID"]}
        of_request = lines_with(lines, "request_id", answer.headers["X-Request-ID"])
        assert {"job accepted", "request", *(line["event"] for line in by_workers)} <= {
            line["event"] for line in of_request
        }


def test_people_get_text_of_every_process_where_they_ask_for_it(tmp_path: Path) -> None:
    # Given nobody's terminal
    with serving(tmp_path / "data", "--log-format", "console") as (_, process):
        process.terminate()
        process.wait(60)

    # Then no line of any process is JSON
    text = (tmp_path / "serve.log").read_text()
    for event in ("twostep-vsr is listening at", "supervisor_started", "courier_started", "model_loaded"):
        assert event in text
    assert '{"' not in text


def status_of(job: str) -> str:
    status: str = httpx2.get(job).json()["status"]
    return status


def lines_with(lines: list[dict[str, Any]], name: str, value: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get(name) == value]
