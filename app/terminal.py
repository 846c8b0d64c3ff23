"""What the `vsr` command prints: one line per error, a bar for people, plain lines for logs, JSON for programs.

Results go to standard output, everything else to standard error.
"""

import json
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_PLAIN_LINE_EVERY_SECONDS = 5.0

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """One line: what is wrong, and what to do."""
    stderr.print(f"vsr: {' '.join(message.split())}", style="bold red", markup=False, soft_wrap=True)


def print_note(message: str) -> None:
    stderr.print(_harmless(message), markup=False, soft_wrap=True)


def print_result(message: str) -> None:
    stdout.print(_harmless(message), markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_harmless(cell)) for cell in row))
    stdout.print(table)


def _harmless(text: str) -> str:
    """Names and titles come from strangers' files: nothing in them may steer the terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _short(number: float) -> str:
    """Whole, where that says enough: frames always, megabytes from ten on."""
    return f"{number:.0f}" if number >= 10 or float(number).is_integer() else f"{number:.1f}"


class ProgressLine:
    """Progress of one thing that is counted, e.g. frames: a bar on a terminal, else a line every few seconds.

    `rate_unit` names what `done / second` is shown as; `quiet` shows nothing (for `--json`).
    """

    def __init__(self, label: str, rate_unit: str = "frames/s", *, quiet: bool = False) -> None:
        self._label = label
        self._rate_unit = rate_unit
        self._quiet = quiet
        self._began_at = time.monotonic()
        self._began_with: float | None = None
        self._last_line_at = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if stderr.is_terminal and not self._quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
                console=stderr,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None, count="", rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float, total: float | None, label: str | None = None) -> None:
        """`done` counts from the beginning of the whole work; the rate only from what this run began with."""
        if self._quiet:
            return
        if self._began_with is None:
            self._began_with, self._began_at = done, time.monotonic()
        seconds = time.monotonic() - self._began_at
        rate = (done - self._began_with) / seconds if seconds > 0 and done > self._began_with else None
        label = label or self._label
        if self._bar and self._task is not None:
            count = f"{_short(done)}/{_short(total)}" if total else ""  # nothing is to be counted in a queue
            text = f"{rate:.1f} {self._rate_unit}" if rate else ""
            self._bar.update(self._task, completed=done, total=total, description=label, count=count, rate=text)
        elif time.monotonic() - self._last_line_at >= _PLAIN_LINE_EVERY_SECONDS:
            self._last_line_at = time.monotonic()
            print_note(self._plain_line(label, done, total, rate))

    def _plain_line(self, label: str, done: float, total: float | None, rate: float | None) -> str:
        if not done and not total:
            return label  # it has not begun
        line = f"{label}: {_short(done)}" + (f" of {_short(total)}" if total else "")
        if rate:
            line += f", {rate:.1f} {self._rate_unit}"
            if total:
                line += f", {(total - done) / rate:.0f} s left"
        return line
