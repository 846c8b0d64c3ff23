"""The thread beside a task renews the lease while there is progress, and ends the process where there can be none."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.worker.lifecycle.conftest import Desk
from worker.exit_codes import ExitCode
from worker.task_watch import JobCanceledError, TaskGivenBackError, TaskWatch


class FakeLease:
    """A claim that the test takes away."""

    def __init__(self) -> None:
        self.renewals = 0
        self.held = True

    def renew(self) -> None:
        self.renewals += 1

    def is_held(self) -> bool:
        return self.held


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes that this process would have ended with. As after a real exit, the caller does not go on."""
    codes: list[int] = []

    def note(code: int) -> None:
        codes.append(code)
        if threading.current_thread() is threading.main_thread():
            raise SystemExit(code)
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", note)
    return codes


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


MakeWatch = Callable[..., TaskWatch]


@pytest.fixture
def make_watch(desk: Desk) -> Iterator[MakeWatch]:
    """Watches whose threads are at work until the test ends."""
    made: list[TaskWatch] = []

    def make(lease: FakeLease, stall_seconds: float = 60.0) -> TaskWatch:
        watch = TaskWatch(lease, desk.registry, lambda: None, lease_seconds=0.3, stall_seconds=stall_seconds)
        watch.start()
        made.append(watch)
        return watch

    yield make
    for watch in made:
        watch.stop()


def test_a_lease_is_renewed_only_while_there_is_a_task(desk: Desk, exits: list[int], make_watch: MakeWatch) -> None:
    lease = FakeLease()
    watch = make_watch(lease)
    with watch.over(desk.accept()):
        wait_for(lambda: lease.renewals >= 2)
    assert exits == []


def test_a_canceled_job_ends_its_task_at_the_next_check(desk: Desk, exits: list[int], make_watch: MakeWatch) -> None:
    watch = make_watch(FakeLease())
    job_id = desk.accept()

    def work() -> None:
        with watch.over(job_id):
            desk.registry.cancel(job_id)
            while True:
                watch.check()
                time.sleep(0.01)

    with pytest.raises(JobCanceledError):
        work()
    assert exits == []


def test_a_task_that_does_not_check_is_ended_with_its_process(
    desk: Desk, exits: list[int], make_watch: MakeWatch
) -> None:
    watch = make_watch(FakeLease())
    job_id = desk.accept()
    with watch.over(job_id):
        desk.registry.cancel(job_id)
        wait_for(lambda: exits)
    assert exits[0] == ExitCode.CANCELED


def test_a_task_without_progress_is_ended_with_its_process(desk: Desk, exits: list[int], make_watch: MakeWatch) -> None:
    lease = FakeLease()
    watch = make_watch(lease, stall_seconds=1.0)
    with watch.over(desk.accept()):
        # While there is progress, all is well
        for _ in range(15):
            watch.note_progress()
            time.sleep(0.1)
        assert exits == []

        # When there is none any more
        wait_for(lambda: exits)
    assert exits[0] == ExitCode.STALLED


def test_a_process_that_lost_its_lease_ends_before_it_can_publish(desk: Desk, exits: list[int]) -> None:
    lease = FakeLease()
    watch = TaskWatch(lease, desk.registry, lambda: None, lease_seconds=60, stall_seconds=60)
    with watch.over(desk.accept()):
        watch.demand_lease()
        lease.held = False
        with pytest.raises(SystemExit):
            watch.demand_lease()
    assert exits == [ExitCode.LEASE_LOST]


def test_a_draining_process_begins_nothing_new(desk: Desk) -> None:
    watch = TaskWatch(FakeLease(), desk.registry, lambda: None, lease_seconds=60, stall_seconds=60)
    watch.drain()
    with pytest.raises(TaskGivenBackError), watch.over(desk.accept()):
        pytest.fail("must not be reached")


def test_a_stopped_watch_ends_no_process(desk: Desk, exits: list[int]) -> None:
    # Given a thread amid a question to a Redis
    asked, gone = threading.Event(), threading.Event()

    def ask() -> bool:
        asked.set()
        gone.wait(10)
        raise ConnectionError

    watch = TaskWatch(FakeLease(), desk.registry, lambda: None, lease_seconds=0.3, stall_seconds=60)
    with watch.over(desk.accept(), ask):
        others = set(threading.enumerate())
        watch.start()
        [thread] = set(threading.enumerate()) - others
        asked.wait(10)
        # When the watch is stopped, and that Redis goes
        watch.stop()
        gone.set()
        # Then the thread ends, and nothing else
        thread.join(10)
    assert not thread.is_alive()
    assert exits == []
