"""The clock of training says where the time went."""

import time
from collections.abc import Iterator

import pytest
import torch

from model.training.step_clock import StepClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StepClock:
    """Its marks are made at 0, 1, 3, 6, 10, 15, ... seconds."""

    def seconds() -> Iterator[float]:
        now = 0.0
        for step in range(100):
            now += step
            yield now

    times = seconds()
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    return StepClock(torch.device("cpu"))


def test_time_belongs_to_the_phase_it_was_spent_in(clock: StepClock) -> None:
    # given a second of waiting, two of forward, three of what does not count, and four more of waiting
    for phase in ("data_wait", "forward", None, "data_wait"):
        clock.mark(phase)

    spent = clock.spent()

    assert spent.seconds == 7
    assert spent.shares == {"data_wait": pytest.approx(5 / 7), "forward": pytest.approx(2 / 7)}


def test_a_phase_goes_on_over_a_report(clock: StepClock) -> None:
    clock.mark("data_wait")
    clock.spent()  # after one second
    clock.mark("forward")  # after two more

    assert clock.spent().shares == {"data_wait": pytest.approx(2 / 5), "forward": pytest.approx(3 / 5)}
