"""Ctrl-C and SIGTERM as a request: the step in hand is finished and saved first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While this is entered, the first signal sets `asked`; a second one does not wait and raises KeyboardInterrupt.

    Outside the main thread, where Python takes no signals, it is never asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: list[signal._HANDLER] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._ask) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=False):
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
