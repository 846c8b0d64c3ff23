"""A process with everything imported, of which worker processes are forked: in milliseconds, instead of seconds.

    supervisor ── [name, environment] ──────────▶ template ── fork ──▶ worker process
               ◀── ["ready"], ["forked", pid], ──          (worker.process, both)
                   ["ended", pid, returncode]

Nearly all of a start is the import of torch. CUDA does not survive a fork, but importing torch does not touch it: every
worker process does so by itself. They are the template's children, which tells how they end; they end when it does.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from worker.contract.processes import ending_with_parent

_FORK_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class TemplateLostError(Exception):
    """It ended, or does not answer: a new one is needed."""


@dataclass
class WorkerProcess:
    """One that was forked, as `Popen` would show it."""

    template: "ProcessTemplate"
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended; None while it lives."""
        self.template.listen()
        return self.returncode

    def wait(self, timeout_seconds: float) -> int:
        """Raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while (returncode := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_LOOK_SECONDS)
        return returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # dead, and the template is about to say so
                os.kill(self.pid, number)


class ProcessTemplate:
    """The supervisor's end. Started at once; worker processes can be had as soon as it is ready."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.is_ready = False
        self._processes: dict[int, WorkerProcess] = {}
        self._heard = bytearray()
        self._forked: list[int] = []
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "worker.process", str(theirs.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C in a terminal is for the supervisor, which stops its processes in order.
                start_new_session=True,
                # Without their supervisor nobody would give the tasks back, and there would be twins with the next one.
                preexec_fn=ending_with_parent(signal.SIGKILL),
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        """How it ended; None while it lives."""
        self.listen()
        return self._popen.poll()

    def fork(self, name: str, environment: Mapping[str, str]) -> WorkerProcess:
        """Start a worker process. Raises `TemplateLostError`."""
        try:
            self._channel.sendall(json.dumps([name, environment]).encode() + b"\n")
        except OSError as error:
            raise TemplateLostError from error
        deadline = time.monotonic() + _FORK_SECONDS
        while not self._forked:
            select.select([self._channel], [], [], _LOOK_SECONDS)
            self.listen()
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise TemplateLostError
        return self._processes[self._forked.pop()]

    def listen(self) -> None:
        """Take in what it has said. To be called often."""
        if self._channel.fileno() < 0:  # closed
            return
        with suppress(BlockingIOError, ConnectionResetError):
            while said := self._channel.recv(65536):
                self._heard += said
        *lines, rest = bytes(self._heard).split(b"\n")
        self._heard = bytearray(rest)
        for line in lines:
            self._take_in(*json.loads(line))
        if self._processes and self._popen.poll() is not None:
            self._end_all()

    def close(self) -> None:
        """End it, and what it has forked."""
        self._popen.kill()
        self._popen.wait()
        self._end_all()
        self._channel.close()

    def _take_in(self, word: str, *numbers: int) -> None:
        if word == "ready":
            self.is_ready = True
        elif word == "forked":
            [pid] = numbers
            self._processes[pid] = WorkerProcess(self, pid)
            self._forked.append(pid)
        else:
            pid, returncode = numbers
            self._processes.pop(pid).returncode = returncode

    def _end_all(self) -> None:
        """They die with it; where the system does not see to that, here."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.returncode = -signal.SIGHUP  # not SIGKILL, which may mean that its memory was short
        self._processes.clear()
