"""What the supervisor makes of deaths and of trouble. Its processes are of the test's own; nothing else is played."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.worker.conftest import write_video
from tests.worker.lifecycle.conftest import Desk, make_worker, start_task
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions, JobStatus
from worker.exit_codes import ExitCode
from worker.oom_kills import OomWatch
from worker.plan import Plan, make_plan
from worker.rendering import Rendering, agreed_rendering, read_rendering
from worker.settings import VideoLimits, WorkerSettings
from worker.supervisor import Dead, Slot, Supervisor
from worker.supervisor_metrics import SupervisorMetrics


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[SupervisorMetrics]:
    (tmp_path / "metrics").mkdir()
    metrics = SupervisorMetrics(tmp_path / "metrics", "127.0.0.1", 0)
    yield metrics
    metrics.close()


@pytest.fixture
def supervisor(desk: Desk, redis: Redis, metrics: SupervisorMetrics) -> Supervisor:
    return Supervisor(redis, desk.storage, metrics, [Slot({})], WorkerSettings(), {})


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Ten segments, of which four may be under way."""
    video = write_video(tmp_path / "clip.mp4", frames=60, width=320, height=180)
    plan = make_plan(video, JobOptions(), VideoLimits(), segment_frames=6)
    return plan.model_copy(update={"segments_in_flight": 4})


@pytest.fixture
def die_of_memory(desk: Desk, supervisor: Supervisor, plan: Plan) -> Callable[[str, int], None]:
    """Workers that begin a segment each, and are then found killed by the kernel, all at the same moment."""

    def die(job_id: str, workers: int) -> None:
        for number in range(workers):
            start_task(make_worker(desk.queue, f"worker-{number}"), desk.queue)
        for number in range(workers):
            supervisor._dead.append(
                Dead(f"worker-{number}", 2**22 + number, time.monotonic(), count_attempt=True, out_of_memory=True)
            )

    return die


def start_job(desk: Desk, plan: Plan, batch_frames: int = 1) -> str:
    job_id = desk.start(plan)
    agreed_rendering(desk.storage.folder(job_id), Rendering(batch_frames=batch_frames))
    desk.queue.enqueue_first_segments(job_id, len(plan.segments), plan.segments_in_flight)
    return job_id


# --- memory that is too small -----------------------------------------------------------------------------------------


def test_all_whom_one_shortage_of_memory_ends_take_one_step_together(
    desk: Desk, supervisor: Supervisor, plan: Plan, die_of_memory: Callable[[str, int], None]
) -> None:
    # Given four workers at one job, all killed at once
    job_id = start_job(desk, plan)
    die_of_memory(job_id, 4)

    # When they are found
    supervisor._recover_the_dead()

    # Then the job goes on a single step smaller, and none of its tasks has lost an attempt
    assert read_rendering(desk.storage.folder(job_id)) == Rendering(batch_frames=1, tile_px=256, backoffs=1)
    assert desk.registry.get(job_id).status is JobStatus.RUNNING  # type: ignore[union-attr]
    assert [task.retries_left for task in desk.queue.rq.jobs] == [3] * 4


def test_a_second_shortage_takes_a_second_step(
    desk: Desk, supervisor: Supervisor, plan: Plan, die_of_memory: Callable[[str, int], None]
) -> None:
    job_id = start_job(desk, plan)
    for _ in range(2):
        die_of_memory(job_id, 2)
        supervisor._recover_the_dead()
    assert read_rendering(desk.storage.folder(job_id)) == Rendering(batch_frames=1, tile_px=128, backoffs=2)


def test_one_death_is_one_step_however_often_redis_fails_meanwhile(
    desk: Desk,
    supervisor: Supervisor,
    plan: Plan,
    die_of_memory: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a Redis that goes away whenever the dead worker's task is to be given back
    job_id = start_job(desk, plan)
    die_of_memory(job_id, 1)
    reap = supervisor._recovery.reap

    def away(*args: object, **kwargs: object) -> Any:  # noqa: ANN401
        raise RedisConnectionError("away for a moment")

    monkeypatch.setattr(supervisor._recovery, "reap", away)
    for _ in range(3):
        supervisor._recover_the_dead()
    assert len(supervisor._dead) == 1

    # When it is back
    monkeypatch.setattr(supervisor._recovery, "reap", reap)
    supervisor._recover_the_dead()

    # Then
    assert supervisor._dead == []
    assert read_rendering(desk.storage.folder(job_id)) == Rendering(batch_frames=1, tile_px=256, backoffs=1)


def test_a_canceled_job_takes_no_step_and_keeps_what_it_had_finished(
    desk: Desk, supervisor: Supervisor, plan: Plan, die_of_memory: Callable[[str, int], None]
) -> None:
    # Given a job with a segment, canceled with the wish to keep it, whose worker is then killed for want of memory
    job_id = start_job(desk, plan)
    folder = desk.storage.folder(job_id)
    segment = plan.segment_file(folder, 0)
    segment.write_bytes(b"a segment")
    die_of_memory(job_id, 1)
    desk.registry.cancel(job_id, keep_partial=True)

    # When
    supervisor._recover_the_dead()

    # Then
    assert segment.exists()
    assert read_rendering(folder) == Rendering(batch_frames=1)


# --- who died of memory -----------------------------------------------------------------------------------------------


class KilledProcess:
    """A process that somebody ended by SIGKILL."""

    pid = 2**22

    def poll(self) -> int:
        return -signal.SIGKILL


def find_killed(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let a worker process be found killed; whether the supervisor puts it down to memory."""
    monkeypatch.setattr(supervisor, "_look_after_template", lambda: None)
    [slot] = supervisor._slots
    slot.process = KilledProcess()  # type: ignore[assignment]
    supervisor._look_after_processes()
    return supervisor._dead.pop().out_of_memory


def test_kills_of_other_programs_are_no_explanation_for_a_later_death(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a machine on which three other programs have been killed for want of memory, a while ago
    kills = [0]
    watch = supervisor._oom_watch = OomWatch(lambda: kills[0])
    kills[0] = 3
    watch.look()
    deadline = time.monotonic() + 5
    while watch._unexplained and time.monotonic() < deadline:
        watch.look()

    # When workers are killed by somebody; then that is what it is
    assert [find_killed(supervisor, monkeypatch) for _ in range(2)] == [False, False]

    # And when the kernel kills one, then only that one is told of
    kills[0] += 1
    assert [find_killed(supervisor, monkeypatch) for _ in range(2)] == [True, False]


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_wiped_redis_beside_a_full_disk_does_not_end_the_supervisor(
    desk: Desk, redis: Redis, supervisor: Supervisor, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    desk.start(plan)
    redis.flushall()

    def full(*args: object) -> None:
        raise JobFailureError(FailureCode.OUT_OF_DISK, "the disk is full")

    monkeypatch.setattr(supervisor._storage, "write_record", full)
    rounds: list[float] = []

    def stop_after_three(seconds: float) -> bool:
        rounds.append(seconds)
        return len(rounds) > 3

    monkeypatch.setattr(supervisor._stopping, "wait", stop_after_three)

    # When it reconciles and looks, again and again; then it goes on
    supervisor._reconcile_now_and_then()
    supervisor._look_after_tasks()


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(5, "Input/output error"),
        JobFailureError(FailureCode.OUT_OF_DISK, "the disk is full"),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_a_dead_worker_whose_task_cannot_be_given_back_does_not_keep_the_others_waiting(
    desk: Desk, supervisor: Supervisor, plan: Plan, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two dead workers, of whom the first makes trouble
    start_job(desk, plan)
    for number in range(2):
        start_task(make_worker(desk.queue, f"worker-{number}"), desk.queue)
        supervisor._dead.append(Dead(f"worker-{number}", 2**22 + number, time.monotonic(), count_attempt=True))
    reap = supervisor._recovery.reap

    def reap_all_but_the_first(worker_name: str, **kwargs: bool) -> dict[str, bool]:
        if worker_name == "worker-0":
            raise trouble
        return reap(worker_name, **kwargs)

    monkeypatch.setattr(supervisor._recovery, "reap", reap_all_but_the_first)

    # When
    supervisor._recover_the_dead()

    # Then the second's task is back, and the first is asked for later
    assert [dead.name for dead in supervisor._dead] == ["worker-0"]
    assert supervisor._dead[0].try_at > time.monotonic()


# --- starting ---------------------------------------------------------------------------------------------------------


def test_a_template_that_dies_takes_its_processes_along_and_is_replaced(
    desk: Desk, redis_url: str, supervisor: Supervisor
) -> None:
    # Given a template with a worker process that is at work
    environment = os.environ | {"VSR_REDIS_URL": redis_url, "VSR_STORAGE_DIR": str(desk.storage.root)}
    supervisor._environment = environment | {"VSR_PRESET": "repeat-pixels", "VSR_DEVICE": "cpu", "VSR_CAGE": "off"}
    [slot] = supervisor._slots
    look_until(supervisor, lambda: slot.process is not None)
    first, template = slot.process, supervisor._template
    assert first is not None
    assert template is not None
    look_until(supervisor, lambda: supervisor._recovery.is_registered(slot.name))

    # When the template is killed
    os.kill(template.pid, signal.SIGKILL)

    # Then its worker is gone and buried, and both are replaced
    look_until(supervisor, lambda: slot.process not in (None, first))
    assert first.returncode == -signal.SIGHUP
    assert is_gone(first.pid)
    assert len(supervisor._dead) == 1
    supervisor._drain()
    assert slot.process is None


def test_a_process_that_cannot_start_ends_the_supervisor_with_its_reason(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KilledProcess, "poll", lambda self: ExitCode.WEIGHTS)
    supervisor._slots[0].process = KilledProcess()  # type: ignore[assignment]
    assert supervisor._look_after_processes() is ExitCode.WEIGHTS


def test_a_process_that_cannot_even_be_killed_does_not_keep_the_others_tasks(
    desk: Desk, supervisor: Supervisor, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker at a task, whose end nobody tells
    start_job(desk, plan)
    start_task(make_worker(desk.queue, "worker-0"), desk.queue)

    class Stuck(KilledProcess):
        def wait(self, timeout_seconds: float) -> int:
            raise TimeoutError

        def terminate(self) -> None: ...

        def kill(self) -> None: ...

    [slot] = supervisor._slots
    slot.process, slot.name = Stuck(), "worker-0"  # type: ignore[assignment]

    # When the supervisor is asked to stop
    supervisor._drain()

    # Then its task is back, with all its attempts
    assert [task.retries_left for task in desk.queue.rq.jobs] == [3] * 4


def look_until(supervisor: Supervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        assert supervisor._look_after_processes() is ExitCode.OK
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Dead; its parent, which is not ours, may not have noted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
