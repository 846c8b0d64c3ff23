"""A gateway killed behind any step of an acceptance loses no upload and no job, and makes no second one.

The steps are those of `app.acceptance`. The gateway is a process of its own, and ends with `os._exit`.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from tests.app.conftest import RunningGateway, StartGateway, wait_until
from tests.app.test_submissions import let_locks_run_out, waiting_tasks

REPOSITORY = Path(__file__).parents[2]
CONTENT = b"a film" * 1000
KEY = {"Idempotency-Key": "once"}

# Behind which step the gateway ends: the function that takes it, and whose it is.
STEPS = {
    "the folder is made": ("worker.contract.storage", "JobStorage", "make_folder"),
    "1 the file is linked": ("os", None, "link"),
    "2 the record is written": ("worker.contract.storage", "JobStorage", "write_record"),
    "3 the task is enqueued": ("worker.contract.queue", "TaskQueue", "enqueue_plan"),
    "4 the record is indexed": ("worker.contract.registry", "JobRegistry", "change"),
    "5 the upload is removed": ("pathlib", "Path", "unlink"),
}
_DYING_GATEWAY = """
import os, sys
from importlib import import_module
from app.cli import main

module, owner, name = sys.argv[1:4]
place = getattr(import_module(module), owner) if owner else import_module(module)
step = getattr(place, name)

def step_and_die(*arguments, **named):
    step(*arguments, **named)
    # Of the many files that are removed only an upload.
    if name != "unlink" or len(arguments[0].name.partition(".")[2]) == 64:
        os._exit(9)

import app.acceptance, app.gateway
setattr(place, name, step_and_die)
sys.argv = ["vsr", "gateway", "--port", "0"]
main()
"""

StartDyingGateway = Callable[[tuple[str, str | None, str]], str]


@pytest.fixture
def start_dying_gateway(redis_url: str, tmp_path: Path) -> Iterator[StartDyingGateway]:
    """A gateway on the same storage and Redis that dies behind a step; gives its address."""
    started: list[subprocess.Popen[bytes]] = []
    log_path = tmp_path / "gateway.log"

    def address() -> str:
        return log_path.read_text().partition("listening at ")[2].split("\n")[0].split('"')[0].strip()

    def start(step: tuple[str, str | None, str]) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "VSR_REDIS_URL": redis_url,
            "VSR_STORAGE_DIR": str(tmp_path / "storage"),
            "VSR_MIN_FREE_BYTES": "0",
        }
        module, owner, name = step
        command = [sys.executable, "-c", _DYING_GATEWAY, module, owner or "", name]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        started.append(process)
        wait_until(lambda: address() or process.poll() is not None)
        assert process.poll() is None, log_path.read_text()
        return address()

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def assert_one_whole_job(gateway: RunningGateway, redis: Redis, job_id: str) -> None:
    assert gateway.storage.job_ids() == [job_id]
    assert gateway.files() == [f"jobs/{job_id}/job.json", f"jobs/{job_id}/source"]
    assert gateway.storage.folder(job_id).source.read_bytes() == CONTENT
    assert waiting_tasks(redis) == [f"{job_id}-plan"]
    assert gateway.registry.indexed_ids() == {job_id}


@pytest.mark.parametrize("step", STEPS)
def test_a_job_of_an_upload_is_accepted_once_wherever_the_gateway_was_killed(
    start_dying_gateway: StartDyingGateway, start_gateway: StartGateway, redis: Redis, step: str
) -> None:
    # Given an upload that had its 201, and a gateway that is killed while it makes a job of it
    address = start_dying_gateway(STEPS[step])
    assert httpx2.put(f"{address}/v1/uploads/film", content=CONTENT).status_code == 201
    with pytest.raises(httpx2.TransportError):
        httpx2.post(f"{address}/v1/jobs", json={"upload_id": "film"}, headers=KEY)

    # When the client tries again at the next gateway, and once more
    gateway = start_gateway()
    let_locks_run_out(redis)
    again, once_more = (gateway.http.post("/v1/jobs", json={"upload_id": "film"}, headers=KEY) for _ in range(2))

    # Then
    assert (again.status_code, once_more.status_code) == (202, 202)
    assert again.json()["id"] == once_more.json()["id"]
    assert_one_whole_job(gateway, redis, again.json()["id"])


@pytest.mark.parametrize("step", list(STEPS)[1:5])
def test_a_form_is_accepted_once_wherever_the_gateway_was_killed(
    start_dying_gateway: StartDyingGateway, start_gateway: StartGateway, redis: Redis, step: str
) -> None:
    # Given
    address = start_dying_gateway(STEPS[step])
    form = {"files": {"file": ("film.mp4", CONTENT)}, "headers": KEY}
    with pytest.raises(httpx2.TransportError):
        httpx2.post(f"{address}/v1/jobs", **form)

    # When
    gateway = start_gateway()
    let_locks_run_out(redis)
    again = gateway.http.post("/v1/jobs", **form)

    # Then
    assert again.status_code == 202
    assert_one_whole_job(gateway, redis, again.json()["id"])
