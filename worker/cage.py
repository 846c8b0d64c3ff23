"""The door to strangers' videos: they are read by a process of its own, which can do no harm, and may be killed.

    worker process                      caged process (worker.caged_process), one per job
    networks, encoder  ◀── frames ──    decoder          shared memory, a ring of a few frames
    queue, Redis       ◀── results ──   plan, assemble   JSON, checked as if a stranger had sent it

FFmpeg's parsers meet every byte of the source there, under the kernel's limits and without network
(worker.confinement). In here, where the networks and the passwords are, arrive arrays of a known shape and values of
known types. What reads a source can write nothing; what makes a file of it does so in an empty folder of its own, from
where it is taken when the process has ended. Whatever happens to the process has a name:

    memory, CPU time, no progress            SOURCE_TOO_DEMANDING
    a signal (a crash of the decoder)        DECODER_CRASHED
    killed from outside                      done again by a new process, twice at most
"""

import contextlib
import json
import mmap
import os
import pickle
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

import structlog
from pydantic import TypeAdapter

from worker import caged_process, metrics
from worker.caged_process import LENGTH, PROGRESS_EVERY_SECONDS, SLOT, Call, Place, RingShape
from worker.confinement import PROTECTIONS, YES
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.storage import partial_folder, remove_partial
from worker.settings import CageMode, VideoLimits, WorkerSettings
from worker.video.decode import decode_frames
from worker.video.frames import Frame
from worker.video.values import Picture, Survey

log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")

_RING_SLOTS = 3
_LOOK_SECONDS = 0.1
_SEND_SECONDS = 60.0
_END_SECONDS = 5.0
# Of a plan's JSON: the longest numbers that a frame can have in all its columns come to 110 bytes, and the rest, of a
# thousand streams, to half a megabyte.
_MESSAGE_BYTES_PER_FRAME = 128
_MESSAGE_BYTES = 16 * 1024**2
_MAX_LAST_WORDS_BYTES = 16 * 1024
_TRIES = 3
# However much progress it says that it makes. The longest source allowed takes a quarter of that to decode.
_MAX_WAIT_SECONDS = 24 * 3600.0
# For what nothing is heard of, moving a finished file's index to its front and bringing it to the disk: slower than any
# disk that is in use.
_SILENT_BYTES_PER_SECOND = 10_000_000
# A task may take so much at once, and for every sign of progress a little more: nothing gets stuck unseen, and a long
# video may take long. Twenty times what decoding a frame of 4096x2304 takes.
_CPU_SECONDS_AT_ONCE = 120
_CPU_SECONDS_PER_SIGN = 1
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "HOME")


class CagedBugError(Exception):
    """A mistake of ours in the caged process; the message is its traceback."""


class _KilledError(Exception):
    """The process was killed by somebody else: the system short of memory, or a test."""


class Decoding(Protocol):
    """Reading one job's source: in a cage, or without one where the user wants none."""

    def call(
        self,
        function: Callable[..., _Result],
        *args: Any,  # noqa: ANN401
        returns: type[_Result],
        on_progress: Callable[[], None],
        **kwargs: Any,  # noqa: ANN401
    ) -> _Result:
        """Return what `function`, a module's own, returns. It gets `on_progress` beside its arguments."""

    def frames(
        self,
        source: Path,
        survey: Survey,
        first: int,
        stop: int,
        *,
        max_pixels: int,
        on_progress: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Frame]:
        """As `worker.video.decode.decode_frames`. `check` is called while waiting, and stops it by raising."""

    def making(self, target: Path) -> "AbstractContextManager[tuple[Decoding, Path]]":
        """Give a `Decoding` whose calls can write one file, and the path for that: it becomes `target` at the end.

        On leaving with an error there is none. Raises `JobFailureError`.
        """

    def missing(self) -> dict[str, str]:
        """What of `worker.confinement.PROTECTIONS` is not in force though it is wanted, and why."""

    def close(self) -> None: ...


def memory_limit_bytes(settings: WorkerSettings, limits: VideoLimits) -> int:
    """Return the most address space of a caged process: `VSR_CAGE_MEMORY_BYTES`, or what the largest source needs.

    Decoders hold up to 16 frames for reference and more in each of four threads, of up to 8 bytes per pixel. At
    4096x2304 with ten bits of 4:4:4 all of it came to 1.9 GiB, half of that for 8 bits of 4:2:0.
    """
    return settings.cage_memory_bytes or 1024**3 + 32 * 8 * limits.max_pixels


class Uncaged:
    """VSR_CAGE=off: everything in this very process."""

    def call(
        self,
        function: Callable[..., _Result],
        *args: Any,  # noqa: ANN401
        returns: type[_Result],
        on_progress: Callable[[], None],
        **kwargs: Any,  # noqa: ANN401
    ) -> _Result:
        return function(*args, on_progress=on_progress, **kwargs)

    @staticmethod
    def frames(
        source: Path,
        survey: Survey,
        first: int,
        stop: int,
        *,
        max_pixels: int,
        on_progress: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Frame]:
        """Nothing is waited for here: `check` is not called."""
        return decode_frames(source, survey, first, stop, max_pixels=max_pixels, on_progress=on_progress)

    @contextmanager
    def making(self, target: Path) -> Iterator[tuple[Decoding, Path]]:
        yield self, target

    def missing(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass


class Cage:
    """Caged processes for one place, one at a time: started at once, told its place when it is first needed.

    To be used by one thread at a time. `check` is called while waiting, ten times per second, and stops the work by
    raising.
    """

    def __init__(
        self,
        place: Place,
        mode: CageMode,
        limits: VideoLimits,
        *,
        stall_seconds: float,
        check: Callable[[], None] = lambda: None,
        start: "Callable[[], CagedProcess] | None" = None,
    ) -> None:
        """`start` gives a process that has no place yet."""
        self.place = place
        self._mode = mode
        self._limits = limits
        self._stall_seconds = stall_seconds
        self._check = check
        self._check_of_call: Callable[[], None] = lambda: None
        self._start = start or (lambda: CagedProcess(largest_ring_bytes(limits)))
        self._process: CagedProcess | None = self._start()
        self._confined = False
        self._in_force: dict[str, str] = {}
        self._waited_seconds = 0.0
        self._looked_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_confined(self) -> bool:
        """Whether there is a process, in its place and with nothing more to load."""
        return self._confined

    def in_force(self) -> dict[str, str]:
        """Return what protects us, by `worker.confinement.PROTECTIONS`: "yes", or why not."""
        for tries_left in reversed(range(_TRIES)):
            try:
                self._confined_process()
                break
            except _KilledError:
                _give_up_unless(tries_left)
        return self._in_force

    def missing(self) -> dict[str, str]:
        return {name: found for name, found in self.in_force().items() if found != YES}

    def call(
        self,
        function: Callable[..., _Result],
        *args: Any,  # noqa: ANN401
        returns: type[_Result],
        on_progress: Callable[[], None],
        **kwargs: Any,  # noqa: ANN401
    ) -> _Result:
        """Raises `JobFailureError` and `CagedBugError`; what is returned has been checked to be of that type."""
        result: TypeAdapter[_Result] = TypeAdapter(returns)
        for tries_left in reversed(range(_TRIES)):
            try:
                self._begin(Call(function, args, kwargs, returns))
                word, content = self._answer(on_progress)
                if word != caged_process.RESULT:
                    self._protest()
                return result.validate_json(content)
            except _KilledError:
                _give_up_unless(tries_left)
            except BaseException:
                self.close()
                raise
        raise AssertionError("unreachable")

    def frames(
        self,
        source: Path,
        survey: Survey,
        first: int,
        stop: int,
        *,
        max_pixels: int,
        on_progress: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Frame]:
        """As `worker.video.decode.decode_frames`, a few frames ahead of whoever takes them. Frames are copies.

        `check` is called as the cage's own is.
        """
        shape = _ring_shape(survey.picture, max_pixels)
        position, tries_left = first, _TRIES - 1
        while position < stop:
            call = Call(
                decode_frames, (source, survey, position, stop), {"max_pixels": max_pixels}, returns=None, ring=shape
            )
            finished = False
            self._check_of_call = check
            try:
                for frame in self._ring_frames(call, shape, on_progress):
                    if position == stop:
                        self._protest()
                    yield frame
                    position += 1
                finished = position == stop
                if not finished:
                    self._protest()
            except _KilledError:
                _give_up_unless(tries_left)
                tries_left -= 1
                finished = True
            finally:
                self._check_of_call = lambda: None
                if not finished:  # nobody wants the rest, or it cannot be had
                    self.close()

    @contextmanager
    def making(self, target: Path) -> Iterator[tuple[Decoding, Path]]:
        """By a process of its own, for which a partial folder beside `target` is the only place to write."""
        with (
            partial_folder(target.parent, "caged") as folder,
            Cage(
                replace(self.place, writes=(folder,)),
                self._mode,
                self._limits,
                stall_seconds=self._stall_seconds,
                check=self._check,
                start=self._start,
            ) as cage,
        ):
            made = folder / target.name
            yield cage, made
            cage.close()  # it may hold the file open, and change it
            if not stat.S_ISREG(made.lstat().st_mode):
                cage._protest()  # a link leads anywhere
            made.rename(target)

    def close(self) -> None:
        """End the process; the next call starts another."""
        process, self._process, self._confined = self._process, None, False
        if process:
            process.kill()

    # --- one call -----------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        process = self._confined_process()
        process.allow_more_cpu_time(_CPU_SECONDS_AT_ONCE)
        self._waited_seconds = 0.0
        try:
            process.send(pickle.dumps(call))
        except (BrokenPipeError, ConnectionResetError):
            self._explain_death()
        except TimeoutError:
            self._protest()

    def _ring_frames(self, call: Call, shape: RingShape, on_progress: Callable[[], None]) -> Iterator[Frame]:
        if self._process and self._process.ring_bytes < shape.total_bytes:  # the limits were larger at its planning
            self.close()
            self._start = lambda: CagedProcess(shape.total_bytes)
        process = self._confined_process()
        memory = mmap.mmap(process.ring, shape.total_bytes)
        self._begin(call)
        while True:
            word, content = self._answer(on_progress)
            if word == caged_process.RESULT:
                return
            if len(content) != SLOT.size or (slot := SLOT.unpack(content)[0]) >= shape.slots:
                self._protest()
            seen = shape.frame_in(memory, slot)
            frame = Frame(seen.rgb.copy(), None if seen.alpha is None else seen.alpha.copy())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; the next answer says how
                process.send_byte()
            process.allow_more_cpu_time(_CPU_SECONDS_PER_SIGN)
            yield frame

    def _answer(self, on_progress: Callable[[], None]) -> tuple[bytes, bytes]:
        """Wait for the result or a frame, passing progress on. Raises what the process says went wrong."""
        assert self._process is not None
        while True:
            word, content = self._next_message(on_progress)
            if word == caged_process.PROGRESS:
                self._process.note_progress()
                on_progress()
            elif word == caged_process.FAILURE:
                code, message = TypeAdapter(tuple[FailureCode, str]).validate_json(content)
                if code is FailureCode.SOURCE_TOO_DEMANDING:
                    _count("too_demanding")
                raise JobFailureError(code, message)
            elif word == caged_process.BUG:
                raise CagedBugError(content.decode(errors="replace"))
            else:
                return word, content

    def _next_message(self, on_progress: Callable[[], None] = lambda: None) -> tuple[bytes, bytes]:
        began = time.monotonic()
        try:
            head = self._exactly(1 + LENGTH.size, began, on_progress)
            word, (size,) = head[:1], LENGTH.unpack(head[1:])
            if size > self._largest_message_bytes(word):
                self._protest()
            return word, self._exactly(size, began, on_progress)
        finally:
            self._waited_seconds += time.monotonic() - began

    def _largest_message_bytes(self, word: bytes) -> int:
        if word == caged_process.RESULT:
            return _MESSAGE_BYTES + _MESSAGE_BYTES_PER_FRAME * self._limits.max_frames
        return caged_process.MAX_TEXT_BYTES.get(word, 0)

    def _exactly(self, size: int, began: float, on_progress: Callable[[], None]) -> bytes:
        """The next so many bytes, of a message that is waited for since `began`."""
        assert self._process is not None
        content = bytearray(size)
        view = memoryview(content)
        while view:
            try:
                count = self._process.channel.recv_into(view)
            except TimeoutError:
                count = -1
            except ConnectionResetError:
                count = 0
            if count == 0:
                self._explain_death()
            view = view[max(count, 0) :]
            # Whatever it says: who talks without an end is looked at as often as who is silent.
            if (now := time.monotonic()) - self._looked_at >= _LOOK_SECONDS:
                self._looked_at = now
                self._process.note_last_words()
                self._check()
                self._check_of_call()
                self._check_patience(now - began, on_progress)
        return bytes(content)

    def _check_patience(self, waited_seconds: float, on_progress: Callable[[], None]) -> None:
        silent_seconds = sum(map(_bytes_in, self.place.writes)) / _SILENT_BYTES_PER_SECOND
        if waited_seconds > self._stall_seconds + silent_seconds:
            self.close()
            _count("too_demanding")
            raise JobFailureError(
                FailureCode.SOURCE_TOO_DEMANDING,
                f"reading the file made no progress for {waited_seconds:.0f} s: convert it first",
            )
        if self._waited_seconds + waited_seconds > _MAX_WAIT_SECONDS:
            self.close()
            _count("too_demanding")
            raise JobFailureError(
                FailureCode.SOURCE_TOO_DEMANDING,
                "reading the file takes far more time than it should: convert it first",
            )
        if waited_seconds < silent_seconds:
            on_progress()

    # --- the process --------------------------------------------------------------------------------------------

    def _confined_process(self) -> "CagedProcess":
        if self._process and self._process.ends:
            self.close()
        if self._process is None:
            self._process = self._start()
        if not self._confined:
            for folder in self.place.writes:
                _empty(folder)  # of what one before it left
            self._process.file_size_limit(None if self.place.writes else 0)
            try:
                self._process.send(pickle.dumps(self.place))
            except (BrokenPipeError, ConnectionResetError):
                self._explain_death()
            word, content = self._next_message()
            if word != caged_process.RESULT:
                self.close()
                raise CagedBugError(content.decode(errors="replace"))
            self._in_force = json.loads(content)
            missing = {name: self._in_force[name] for name in PROTECTIONS if self._in_force[name] != YES}
            if self._mode == "required" and missing:
                self.close()
                reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
                raise JobFailureError(
                    FailureCode.CAGE_UNAVAILABLE,
                    f"VSR_CAGE=required, but this system does not give all of it ({reasons})",
                )
            self._confined = True
        return self._process

    def _explain_death(self) -> NoReturn:
        assert self._process is not None
        returncode, last_words = self._process.wait(), self._process.last_words()
        self.close()
        if returncode is None:
            log.error("caged_process_left", last_words=last_words)
            self._protest()
        if returncode == -signal.SIGKILL:
            _count("killed")
            raise _KilledError
        if returncode == -signal.SIGXCPU:
            _count("too_demanding")
            raise JobFailureError(
                FailureCode.SOURCE_TOO_DEMANDING,
                "reading the file takes far more time than it should: convert it first",
            )
        if returncode < 0:
            _count("crashed")
            name = signal.Signals(-returncode).name
            log.error("decoder_crashed", signal=name, last_words=last_words)
            raise JobFailureError(
                FailureCode.DECODER_CRASHED,
                f"the decoder crashed ({name}): the file is damaged in an unusual way; convert it first",
            )
        raise CagedBugError(f"exit code {returncode}: {last_words}")

    def _protest(self) -> NoReturn:
        """It says what it cannot say: a mistake of ours, or it is no longer ours."""
        self.close()
        _count("astray")
        raise JobFailureError(FailureCode.DECODER_CRASHED, "the decoder went astray: convert the file first")


class CagedProcess:
    """One started process, its channel and its ring. Linux counts the ring to nobody's files: it is memory."""

    def __init__(self, ring_bytes: int) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(_LOOK_SECONDS)
        self.ring = _new_ring(ring_bytes)
        self.ring_bytes = ring_bytes
        self._last_words = b""
        self._words, their_stderr = os.pipe()
        os.set_blocking(self._words, False)
        os.set_blocking(their_stderr, False)  # what nobody reads must not stop it
        with theirs:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", caged_process.__name__),
                    *(str(theirs.fileno()), str(self.ring), str(os.getpid())),
                ],
                env=_environment(),
                cwd=Path(__file__).parents[1],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=their_stderr,
                pass_fds=(theirs.fileno(), self.ring),
                start_new_session=True,
            )
        os.close(their_stderr)
        self.pid = self._popen.pid
        self._started_by = threading.current_thread()
        self._cpu_seconds = 0
        self._progress_at = 0.0

    @property
    def ends(self) -> bool:
        """Whether the kernel ends it, as the thread has ended that started it: what dies with us dies with that."""
        return not self._started_by.is_alive()

    def send(self, content: bytes) -> None:
        self.channel.settimeout(_SEND_SECONDS)
        try:
            self.channel.sendall(LENGTH.pack(len(content)) + content)
        finally:
            self.channel.settimeout(_LOOK_SECONDS)

    def send_byte(self) -> None:
        self.channel.sendall(b"\0")

    def allow_more_cpu_time(self, seconds: int) -> None:
        """The kernel ends it when it has used what it was allowed so far."""
        self._cpu_seconds += seconds
        self._limit(resource.RLIMIT_CPU, self._cpu_seconds)

    def note_progress(self) -> None:
        """It says so at most so often, if it is honest: more signs than that earn nothing."""
        if (now := time.monotonic()) - self._progress_at >= PROGRESS_EVERY_SECONDS / 2:
            self._progress_at = now
            self.allow_more_cpu_time(_CPU_SECONDS_PER_SIGN)

    def file_size_limit(self, limit_bytes: int | None) -> None:
        """None: as large as this process's own files may be."""
        self._limit(resource.RLIMIT_FSIZE, limit_bytes)

    def _limit(self, what: int, soft: int | None) -> None:
        # Only the soft limit: what an ordinary user has lowered for good can never be raised again.
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):
                hard = resource.prlimit(self.pid, what)[1]
                wanted = hard if soft is None or (hard != resource.RLIM_INFINITY and hard < soft) else soft
                resource.prlimit(self.pid, what, (wanted, hard))

    def wait(self) -> int | None:
        """The exit status; None if it closed its channel and lives on."""
        try:
            return self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def note_last_words(self) -> None:
        """Now and then: what does not fit into the pipe is lost."""
        with contextlib.suppress(BlockingIOError):
            while words := os.read(self._words, _MAX_LAST_WORDS_BYTES):
                self._last_words = (self._last_words + words)[-_MAX_LAST_WORDS_BYTES:]

    def last_words(self) -> str:
        """What it said last on standard error."""
        self.note_last_words()
        return self._last_words.decode(errors="replace")

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self.channel.close()
        os.close(self.ring)
        os.close(self._words)


class Cages:
    """A worker's cages: one job's at a time, and a process that waits for the next, so that no job waits for it."""

    def __init__(self, settings: WorkerSettings, limits: VideoLimits, check: Callable[[], None] = lambda: None) -> None:
        """Starts nothing: a worker process in the place of a dead one has more urgent things to do."""
        self.check = check
        self._settings = settings
        self._limits = limits
        self._memory_bytes = memory_limit_bytes(settings, limits)
        self._current: Cage | None = None
        self._spare: CagedProcess | None = None

    def prepare(self) -> None:
        """Start a process that waits for the next job, unless there is one. Returns at once."""
        if self._spare is None and self._settings.cage != "off":
            self._spare = CagedProcess(largest_ring_bytes(self._limits))

    def of(self, folder: Path) -> Decoding:
        """The cage of the job in `folder`; that of another job ends."""
        if self._settings.cage == "off":
            return Uncaged()
        place = Place(reads=(folder,), memory_bytes=self._memory_bytes)
        if self._current is None or self._current.place != place:
            self.close()
            self._current = Cage(
                place,
                self._settings.cage,
                self._limits,
                stall_seconds=self._settings.cage_stall_seconds,
                check=lambda: self.check(),
                start=self._take_process,
            )
        elif self._current.is_confined:
            self.prepare()
        return self._current

    @property
    def spare_pid(self) -> int | None:
        return self._spare.pid if self._spare else None

    def close(self) -> None:
        """End the job's cage."""
        if self._current:
            self._current.close()
            self._current = None

    def shut(self) -> None:
        """End everything."""
        self.close()
        if self._spare:
            self._spare.kill()
            self._spare = None

    def _take_process(self) -> CagedProcess:
        self.prepare()
        process, self._spare = self._spare, None
        assert process is not None
        return process


def open_decoding(settings: WorkerSettings, limits: VideoLimits, reads: tuple[Path, ...]) -> Decoding:
    """Return the way to read one source, as the settings say."""
    if settings.cage == "off":
        return Uncaged()
    place = Place(reads, memory_bytes=memory_limit_bytes(settings, limits))
    return Cage(place, settings.cage, limits, stall_seconds=settings.cage_stall_seconds)


def protections_in_force(settings: WorkerSettings, limits: VideoLimits) -> dict[str, str]:
    """Return what of `worker.confinement.PROTECTIONS` a cage has here: tried with one that has nothing to read."""
    if settings.cage == "off":
        return dict.fromkeys(PROTECTIONS, "no (VSR_CAGE=off)")
    place = Place(reads=(), memory_bytes=memory_limit_bytes(settings, limits))
    with Cage(place, "best-effort", limits, stall_seconds=settings.cage_stall_seconds) as cage:
        return cage.in_force()


def largest_ring_bytes(limits: VideoLimits) -> int:
    """For the largest frame: 216 MB for one of 4096x2304. Only what is used of it takes memory."""
    return RingShape(_RING_SLOTS, limits.max_pixels, 1, bytes_per_sample=2, has_alpha=True).total_bytes


def _ring_shape(picture: Picture, max_pixels: int) -> RingShape:
    """The picture was described by the caged process: it must not make us take any amount of memory."""
    if not (0 < picture.width * picture.height <= max_pixels and picture.width > 0):
        raise JobFailureError(FailureCode.LIMIT_EXCEEDED, "the frames are larger than allowed")
    return RingShape(_RING_SLOTS, picture.height, picture.width, 1 if picture.bit_depth <= 8 else 2, picture.has_alpha)


def _new_ring(ring_bytes: int) -> int:
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            file.truncate(ring_bytes)
            return os.dup(file.fileno())
    import fcntl

    descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, ring_bytes)
    # Else whoever holds it could shrink it under our eyes, which would end us, or let it take all memory.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def _environment() -> dict[str, str]:
    """No setting and no password. One thread for arithmetic: others would stay unconfined."""
    environment = {name: value for name in _INHERITED if (value := os.environ.get(name)) is not None}
    return environment | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The C library reserves 64 MiB of address space for every thread else, which counts here.
        "MALLOC_ARENA_MAX": "2",
    }


def _bytes_in(folder: Path) -> int:
    """What is really there: a file of holes can be of any size."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            total += path.lstat().st_blocks * 512
    return total


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        remove_partial(path)


def _count(incident: str) -> None:
    """One of `metrics.CAGE_INCIDENTS`."""
    metrics.CAGE_INCIDENTS_SEEN.labels(incident).inc()


def _give_up_unless(tries_left: int) -> None:
    log.warning("caged_process_killed", tries_left=tries_left)
    if tries_left <= 0:
        raise JobFailureError(
            FailureCode.SOURCE_TOO_DEMANDING,
            f"the process that reads the file was killed {_TRIES} times, most likely as it takes too much memory",
        )
