"""What tests have a caged process do. Modules of its own: the process imports it by name."""

import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.frames import Frame

Progress = Callable[[], None]


def add(one: int, other: int, *, on_progress: Progress) -> int:
    on_progress()
    return one + other


def read(path: Path, *, on_progress: Progress) -> str:
    """The content, or why not."""
    try:
        return path.read_text()
    except OSError as error:
        return type(error).__name__


def write(path: Path, size: int, *, on_progress: Progress) -> str:
    try:
        path.write_bytes(b"x" * size)
    except OSError as error:
        return type(error).__name__
    return "written"


def replace(made: Path, place: Path, *, on_progress: Progress) -> str:
    """Make a file and put it in the place of another."""
    made.write_bytes(b"forged")
    try:
        made.replace(place)
    except OSError as error:
        return type(error).__name__
    return "replaced"


def try_everything(unix_socket: str, parent: int, *, on_progress: Progress) -> dict[str, str]:
    """What became of each attempt to get out."""

    def raise_limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (10**6, resource.RLIM_INFINITY))

    attempts: dict[str, Callable[[], object]] = {
        "tcp": lambda: socket.create_connection(("127.0.0.1", 1), timeout=1),
        "unix": lambda: socket.socket(socket.AF_UNIX).connect(unix_socket),
        "program": lambda: os.execv("/bin/true", ["true"]),
        "process": os.fork,
        "signal": lambda: os.kill(parent, 0),
        "memory": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
        "environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "limits": raise_limit,
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, ValueError) as error:
            found[name] = type(error).__name__
        else:
            found[name] = "done"
    return found


def environment(*, on_progress: Progress) -> dict[str, str]:
    return dict(os.environ)


def descriptors(*, on_progress: Progress) -> list[int]:
    def is_open(number: int) -> bool:
        try:
            os.fstat(number)
        except OSError:
            return False
        return True

    return [number for number in range(200) if is_open(number)]


def threads_run(*, on_progress: Progress) -> int:
    """Decoders need them."""
    done: list[int] = []
    threads = [threading.Thread(target=done.append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)


def crash(*, on_progress: Progress) -> None:
    ctypes.string_at(0)


def take_memory(*, on_progress: Progress) -> int:
    """All that there is."""
    return len(bytearray(10**12))


def hang(*, on_progress: Progress) -> None:
    while True:
        time.sleep(0.05)


def work_on(*, on_progress: Progress) -> None:
    while True:
        time.sleep(0.01)
        on_progress()


def burn(*, on_progress: Progress) -> None:
    while True:
        pass


def blunder(*, on_progress: Progress) -> None:
    raise ZeroDivisionError("of ours")


def fail(*, on_progress: Progress) -> None:
    raise JobFailureError(FailureCode.NO_FRAMES, "as expected")


def lie(*, on_progress: Progress) -> str:
    return "not a number"


def frames_of_numbers(
    source: Path, survey: object, first: int, stop: int, *, max_pixels: int, on_progress: Progress
) -> Iterator[Frame]:
    """64x48, each frame all of its number: no decoder in the way."""
    for number in range(first, stop):
        yield Frame(np.full((48, 64, 3), number % 251, np.uint8))


def open_video(path: Path, *, on_progress: Progress) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
