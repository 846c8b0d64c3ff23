"""How long each of the two steps takes, without making anybody wait for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Seconds by step, of one thread. A GPU works on while its caller goes on: there the driver notes the times."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._on_gpu: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timed(self, step: str, device: torch.device) -> Iterator[None]:
        """Count what is begun inside to `step`. What raises is not counted."""
        if device.type == "cuda":
            began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._on_gpu.append((step, began, ended))
        else:
            began_at = time.perf_counter()
            yield
            self._add(step, time.perf_counter() - began_at)

    def note_finished(self) -> None:
        """To be called when the results have been fetched, and so all is done: then asking a GPU costs nothing."""
        for step, began, ended in self._on_gpu:
            ended.synchronize()
            self._add(step, began.elapsed_time(ended) / 1000)
        self._on_gpu.clear()

    def take(self) -> dict[str, float]:
        """Return the seconds by step since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, step: str, seconds: float) -> None:
        self._seconds[step] = self._seconds.get(step, 0.0) + seconds
