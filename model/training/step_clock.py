"""Where the time of training goes."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of some steps, and which share of them went into each phase."""

    seconds: float
    shares: dict[str, float]


class StepClock:
    """Sums up the time between marks by phase, as the computing device sees it.

    A CPU does one thing after the other, so its time is read off at once. A GPU works behind the program: each mark is
    an event in its queue, and between the last event of a step and the first of the next it had nothing to do.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """What follows belongs to `phase`; None: to no phase, and is not counted."""
        self._marks.append((phase, self._now()))

    def spent(self) -> TimeSpent:
        """The time since the last call."""
        last_phase = self._marks[-1][0] if self._marks else None
        self.mark(last_phase)
        if self._on_cuda:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (phase, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                totals[phase] = totals.get(phase, 0.0) + _seconds_between(began, ended)
        self._marks = self._marks[-1:]
        seconds = sum(totals.values())
        return TimeSpent(seconds, {phase: total / seconds if seconds else 0.0 for phase, total in totals.items()})

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _seconds_between(began: float | torch.cuda.Event, ended: float | torch.cuda.Event) -> float:
    if isinstance(began, torch.cuda.Event):
        assert isinstance(ended, torch.cuda.Event)
        milliseconds: float = began.elapsed_time(ended)
        return milliseconds / 1000
    assert isinstance(ended, float)
    return ended - began
