"""TensorBoard's curves, written without its thread: a full disk must stop the run, with one line that says so."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]


class Curves:
    """Scalars in a TensorBoard event file of their own in `folder`.

    `steps_before` is where the run goes on: what an earlier start recorded after that step no longer counts.
    """

    def __init__(self, folder: Path, steps_before: int) -> None:
        # Here, not above: serving never needs tensorboard and does not install it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # Named as TensorBoard names them, so that later files are read later; nanoseconds part starts of one second.
        nanoseconds = time.time_ns()
        self._path = folder / f"events.out.tfevents.{nanoseconds // 10**9:010d}.{socket.gethostname()}.{nanoseconds}"
        self._write(Event(file_version="brain.Event:2"))
        if steps_before:
            self._write(Event(step=steps_before + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def _write(self, event: "Event") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        event.wall_time = time.time()
        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
