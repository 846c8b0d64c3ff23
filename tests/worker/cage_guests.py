"""What tests have a caged process do. Modules of its own: the process imports it by name."""

import ctypes
import fcntl
import os
import platform
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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


def try_everything(
    neighbour: Path, unix_socket: str, port: int, parent: int, *, on_progress: Progress = lambda: None
) -> dict[str, str]:
    """What became of each attempt to get out, or at others. `port`: of a server on this machine."""
    libc = ctypes.CDLL(None, use_errno=True)

    def called(x86_64: int, aarch64: int, *arguments: object) -> int:
        words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
        result: int = libc.syscall(aarch64 if platform.machine() == "aarch64" else x86_64, *words)
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result

    def by_number(x86_64: int, aarch64: int, *arguments: object) -> Callable[[], int]:
        return lambda: called(x86_64, aarch64, *arguments)

    def use_queue() -> None:
        called(240, 180, b"vsr test", 0o102, 0o600, None)
        called(241, 181, b"vsr test")

    def raise_limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (10**6, resource.RLIM_INFINITY))

    def send_signals_by_pipe() -> None:
        fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, parent)

    def send_signals_by_file() -> None:
        fcntl.ioctl(os.open(__file__, os.O_RDONLY), 0x8901, struct.pack("=i", parent))

    def lock() -> None:
        fcntl.flock(os.open(__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)

    def lock_by_fcntl() -> None:
        fcntl.lockf(os.open(__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)

    queued = struct.pack("=iii", 0, 0, -1) + bytes(116)
    folder, name = str(neighbour.parent).encode(), str(neighbour).encode()
    attempts: dict[str, Callable[[], object]] = {
        "tcp": lambda: socket.create_connection(("127.0.0.1", port), timeout=1),
        "unix socket": lambda: socket.socket(socket.AF_UNIX).connect(unix_socket),
        "program": lambda: os.execv("/nowhere", ["nowhere"]),
        "process": _fork,
        "signal": lambda: os.kill(parent, 0),
        "queued signal": by_number(129, 138, parent, 0, queued),
        "queued signal to a thread": by_number(297, 240, parent, parent, 0, queued),
        "signals by a pipe": send_signals_by_pipe,
        "signals by a file": send_signals_by_file,
        "memory of the parent": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
        "environment of the parent": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "cores of the parent": lambda: os.sched_setaffinity(parent, os.sched_getaffinity(0)),
        "priority of the parent": lambda: os.setpriority(
            os.PRIO_PROCESS, parent, os.getpriority(os.PRIO_PROCESS, parent)
        ),
        "own limits": raise_limit,
        "outliving the parent": by_number(157, 167, 1, 0, 0, 0, 0),
        "being looked into": by_number(157, 167, 4, 1, 0, 0, 0),
        "read": lambda: neighbour.read_bytes(),
        "write": lambda: neighbour.open("r+b"),
        "new file": lambda: (neighbour.parent / "new").touch(),
        "empty": lambda: os.truncate(neighbour, 0),
        "list": lambda: list(neighbour.parent.iterdir()),
        "mode": lambda: neighbour.chmod(0o600),
        "owner": lambda: os.chown(neighbour, os.getuid(), os.getgid()),
        "times": lambda: os.utime(neighbour, (1, 1)),
        "attribute": by_number(188, 5, name, b"user.a", b"1", 1, 0),
        "inotify": by_number(294, 26, 0),
        "inotify watch": by_number(254, 27, -1, folder, 0x100),
        "fanotify": by_number(300, 262, 0, 0),
        "lock": lock,
        "lock by fcntl": lock_by_fcntl,
        "shared memory": lambda: called(31, 195, called(29, 194, 0, 4096, 0o1600), 0, None),
        "semaphores": lambda: called(66, 191, called(64, 190, 0, 1, 0o1600), 0, 0),
        "messages": lambda: called(71, 187, called(68, 186, 0, 0o1600), 0, None),
        "message queue": use_queue,
        "memory file": by_number(319, 279, b"a", 0),
    }
    found = {}
    for attempt, function in attempts.items():
        try:
            function()
        except (OSError, ValueError) as error:
            found[attempt] = f"{type(error).__name__}: {error}"
        else:
            found[attempt] = "done"
    return found


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


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


def fail_at_length(*, on_progress: Progress) -> None:
    raise JobFailureError(FailureCode.NO_FRAMES, "\U0001f3ac" * 10**6)


def blunder_at_length(*, on_progress: Progress) -> None:
    raise ValueError("y" * 10**6 + " is the end")


def say(content: bytes, *, on_progress: Progress) -> None:
    """What nothing of ours would, by the channel itself; then nothing more."""
    os.write(int(sys.argv[1]), content)
    time.sleep(3600)


def trickle(*, on_progress: Progress) -> None:
    """A message that never ends."""
    os.write(int(sys.argv[1]), b"R" + struct.pack("=Q", 1 << 20))
    while True:
        os.write(int(sys.argv[1]), b" ")
        time.sleep(0.02)


def flood(*, on_progress: Progress) -> None:
    """Progress, and nothing else."""
    while True:
        os.write(int(sys.argv[1]), b"P" + struct.pack("=Q", 0))
        time.sleep(0.001)


def complain(megabytes: int, *, on_progress: Progress) -> None:
    for _ in range(megabytes * 1024):
        with suppress(BlockingIOError):  # full: the parent reads now and then
            os.write(2, b"." * 1024)
        time.sleep(0.0005)
    time.sleep(0.3)
    os.write(2, b"the very last words")
    ctypes.string_at(0)


def write_in_silence(path: Path, size: int, seconds: float, *, on_progress: Progress) -> int:
    """As the steps at the end of a large file are."""
    path.write_bytes(b"x" * size)
    time.sleep(seconds)
    return size


def lie(*, on_progress: Progress) -> str:
    return "not a number"


def frames_of_numbers(
    source: Path, survey: object, first: int, stop: int, *, max_pixels: int, on_progress: Progress
) -> Iterator[Frame]:
    """64x48, each frame all of its number: no decoder in the way."""
    for number in range(first, stop):
        yield Frame(np.full((48, 64, 3), number % 251, np.uint8))


def no_frame_ever(
    source: Path, survey: object, first: int, stop: int, *, max_pixels: int, on_progress: Progress
) -> Iterator[Frame]:
    time.sleep(600)
    yield from ()


def one_frame_too_many(
    source: Path, survey: object, first: int, stop: int, *, max_pixels: int, on_progress: Progress
) -> Iterator[Frame]:
    return frames_of_numbers(source, survey, first, stop + 1, max_pixels=max_pixels, on_progress=on_progress)


def open_video(path: Path, *, on_progress: Progress) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
