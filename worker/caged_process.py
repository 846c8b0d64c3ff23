"""The program inside a cage (worker.cage): reads strangers' videos for a worker that must not be harmed by them.

Started as `python -m worker.caged_process CHANNEL RING PARENT`: two descriptors and the parent's process id. With
everything imported it waits for its place; then it confines itself and does what it is told, one thing at a time:

    parent  ── Place ──▶            parent  ── Call(function, arguments) ──▶
            ◀── what is in force ──         ◀── progress, frames in the ring ... ──
                                            ◀── result | failure | bug ──

What comes from the parent is pickled. What goes back is never: a word of one byte, then JSON or plain text. So whoever
takes this process over gains no more than this process may do.
"""

import contextlib
import ctypes
import json
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

# Not needed here, but by the functions that will be called; when confined, importing takes longer, or fails.
import worker.assemble
import worker.plan
import worker.video.png_source  # noqa: F401
from worker.confinement import confine
from worker.contract.failure import FailureCode, JobFailureError
from worker.video.frames import Frame

PROGRESS, FRAME, RESULT, FAILURE, BUG = b"P", b"F", b"R", b"X", b"B"
"""The words, each followed by: nothing; a slot's number; JSON; JSON of code and message; a traceback."""

LENGTH = struct.Struct("=Q")
SLOT = struct.Struct("=I")
MAX_TEXT_BYTES = {PROGRESS: 0, FRAME: SLOT.size, FAILURE: 16 * 1024, BUG: 32 * 1024}
"""What follows each word but a result at most; the parent reads no more. Of a traceback the end says more."""
PROGRESS_EVERY_SECONDS = 0.05

_PR_SET_PDEATHSIG = 1
_OOM_SCORE_ABOVE_WORKER = 500
_MAX_MESSAGE_LETTERS = 1000
"""Of a failure: it may quote a file. JSON takes twelve bytes for a letter at most."""


@dataclass(frozen=True)
class Place:
    """What a cage may touch, until it ends."""

    reads: tuple[Path, ...]
    """The source, and what else the job has to read."""
    writes: tuple[Path, ...] = ()
    """Folders, with nothing in them that anybody else relies on: whoever takes the process over may do there all."""
    memory_bytes: int = 4 * 1024**3


class RingShape(NamedTuple):
    """Frames of one size in shared memory: each slot holds the colours, then the transparency if there is any."""

    slots: int
    height: int
    width: int
    bytes_per_sample: int
    has_alpha: bool

    @property
    def slot_bytes(self) -> int:
        return self.height * self.width * (4 if self.has_alpha else 3) * self.bytes_per_sample

    @property
    def total_bytes(self) -> int:
        return self.slots * self.slot_bytes

    def frame_in(self, memory: mmap.mmap, slot: int) -> Frame:
        """Views of one slot, not copies."""
        dtype: Any = np.uint8 if self.bytes_per_sample == 1 else np.uint16
        pixels, begin = self.height * self.width, slot * self.slot_bytes
        rgb = np.frombuffer(memory, dtype, pixels * 3, begin).reshape(self.height, self.width, 3)
        if not self.has_alpha:
            return Frame(rgb)
        behind = begin + pixels * 3 * self.bytes_per_sample
        return Frame(rgb, np.frombuffer(memory, dtype, pixels, behind).reshape(self.height, self.width))


@dataclass(frozen=True)
class Call:
    """One thing to do. `function` gets `on_progress` beside these arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    returns: Any = None
    """The type of the result, which is sent back as JSON; for frames None."""
    ring: RingShape | None = None
    """Given, the function yields frames, which go through the ring."""


def main() -> None:
    channel_number, ring_number, parent = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    _die_with(parent)
    _be_the_first_to_go()
    inside = _Inside(socket.socket(fileno=channel_number), ring_number)
    place: Place | None = inside.receive()
    if place is None:  # the parent had no use for this process
        return
    try:
        in_force = confine((*place.reads, *installation()), place.writes, place.memory_bytes)
    except OSError as error:
        inside.say(BUG, str(error).encode()[-MAX_TEXT_BYTES[BUG] :])
        return
    inside.say(RESULT, json.dumps(in_force).encode())
    while (call := inside.receive()) is not None:
        inside.do(call)


def installation() -> tuple[Path, ...]:
    """What Python and the libraries may still load when confined: never a folder that holds users' files."""
    own = Path(__file__).resolve().parent
    places = {own, Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix)}
    system = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/null")
    # The folder above ours is a checkout, which may hold anything.
    paths = {Path(entry) for entry in sys.path if entry} - {own.parent}
    return tuple(sorted(places | paths | {Path(name) for name in system}))


class _Inside:
    """The end of the channel in here."""

    def __init__(self, channel: socket.socket, ring_number: int) -> None:
        self._channel = channel
        self._ring_number = ring_number
        self._said_progress_at = 0.0

    def say(self, word: bytes, content: bytes = b"") -> None:
        self._channel.sendall(word + LENGTH.pack(len(content)) + content)

    def receive(self) -> Any:  # noqa: ANN401
        """What the parent sends; None when it has gone."""
        header = self._exactly(LENGTH.size)
        if header is None:
            return None
        content = self._exactly(LENGTH.unpack(header)[0])
        return None if content is None else pickle.loads(content)  # noqa: S301  # the parent's, whom we serve

    def _exactly(self, size: int) -> bytes | None:
        content = bytearray(size)
        view = memoryview(content)
        while view:
            count = self._channel.recv_into(view)
            if count == 0:
                return None
            view = view[count:]
        return bytes(content)

    def do(self, call: Call) -> None:
        try:
            result = call.function(*call.args, on_progress=self.note_progress, **call.kwargs)
            if call.ring is not None:
                self._show(result, call.ring)
                self.say(RESULT, b"null")
            else:
                self.say(RESULT, TypeAdapter(call.returns).dump_json(result))
        except JobFailureError as failure:
            # PyAV's word for it is Python's too.
            self._fail(_too_much_memory() if isinstance(failure.__cause__, MemoryError) else failure)
        except MemoryError:
            self._fail(_too_much_memory())
        except Exception:  # noqa: BLE001  # the parent raises it again
            self.say(BUG, traceback.format_exc().encode(errors="replace")[-MAX_TEXT_BYTES[BUG] :])

    def _fail(self, failure: JobFailureError) -> None:
        message = failure.message
        if len(message) > _MAX_MESSAGE_LETTERS:
            message = f"{message[: _MAX_MESSAGE_LETTERS - 3]}..."
        self.say(FAILURE, json.dumps([failure.code, message]).encode())

    def note_progress(self) -> None:
        now = time.monotonic()
        if now - self._said_progress_at >= PROGRESS_EVERY_SECONDS:
            self._said_progress_at = now
            self.say(PROGRESS)

    def _show(self, frames: Iterator[Frame], ring: RingShape) -> None:
        """Put frames into the ring as slots get free: the parent sends a byte for each that it has emptied."""
        memory = mmap.mmap(self._ring_number, ring.total_bytes)
        free = ring.slots
        for number, frame in enumerate(frames):
            if free == 0:
                if self._exactly(1) is None:
                    return
                free += 1
            slot = number % ring.slots
            place = ring.frame_in(memory, slot)
            _copy(frame.rgb, place.rgb)
            if frame.alpha is not None and place.alpha is not None:
                _copy(frame.alpha, place.alpha)
            free -= 1
            self.say(FRAME, SLOT.pack(slot))
        while free < ring.slots and self._exactly(1) is not None:
            free += 1


def _copy(made: "np.ndarray[Any, Any]", place: "np.ndarray[Any, Any]") -> None:
    if (made.shape, made.dtype) != (place.shape, place.dtype):
        raise ValueError(f"a frame is {made.shape} of {made.dtype}, its place {place.shape} of {place.dtype}")
    np.copyto(place, made)


def _too_much_memory() -> JobFailureError:
    return JobFailureError(
        FailureCode.SOURCE_TOO_DEMANDING,
        "reading the file takes more memory than allowed: convert it first, or allow more (VSR_CAGE_MEMORY_BYTES)",
    )


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def _be_the_first_to_go() -> None:
    """Where memory is short the kernel shall end this process, which is started anew, and not the worker."""
    adjustment = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):  # not Linux, or no such file in this container
        adjustment.write_text(str(min(1000, int(adjustment.read_text()) + _OOM_SCORE_ABOVE_WORKER)))


if __name__ == "__main__":
    main()
