"""The door to strangers' videos: they are read by a process of its own, which can do no harm, and may be killed.

    worker process                      caged process (worker.caged_process), one per job
    networks, encoder  ◀── frames ──    decoder          shared memory, a ring of a few frames
    queue, Redis       ◀── results ──   plan, assemble   JSON, checked as if a stranger had sent it

FFmpeg's parsers meet every byte of the source there, under the kernel's limits and without network
(worker.confinement). In here, where the networks and the passwords are, arrive arrays of a known shape and values of
known types. Whatever happens to the process has a name:

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

import structlog
from pydantic import TypeAdapter

from worker import caged_process
from worker.caged_process import LENGTH, SLOT, Call, Place, RingShape
from worker.confinement import PROTECTIONS, YES
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.storage import PARTIAL_SUFFIX, process_mark
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
_MAX_MESSAGE_BYTES = 1024**3
_MAX_LAST_WORDS_BYTES = 16 * 1024
_TRIES = 3
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
    ) -> Iterator[Frame]:
        """As `worker.video.decode.decode_frames`."""

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

    def frames(
        self,
        source: Path,
        survey: Survey,
        first: int,
        stop: int,
        *,
        max_pixels: int,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Iterator[Frame]:
        return decode_frames(source, survey, first, stop, max_pixels=max_pixels, on_progress=on_progress)

    def close(self) -> None:
        pass


class Cage:
    """Caged processes for one place, one at a time: started at once, told its place when it is first needed.

    To be used by one thread. `check` is called while waiting, ten times per second, and stops the work by raising.
    """

    def __init__(
        self,
        place: Place,
        mode: CageMode,
        *,
        stall_seconds: float,
        check: Callable[[], None] = lambda: None,
        process: "CagedProcess | None" = None,
    ) -> None:
        """`process`: one that was started before there was a place for it."""
        self.place = place
        self._mode = mode
        self._stall_seconds = stall_seconds
        self._check = check
        self._process: CagedProcess | None = process or CagedProcess()
        self._confined = False
        self._in_force: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def in_force(self) -> dict[str, str]:
        """Return what protects us, by `worker.confinement.PROTECTIONS`: "yes", or why not."""
        self._confined_process(time.monotonic() + self._stall_seconds)
        return self._in_force

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
    ) -> Iterator[Frame]:
        """As `worker.video.decode.decode_frames`, a few frames ahead of whoever takes them. Frames are copies."""
        shape = _ring_shape(survey.picture, max_pixels)
        position, tries_left = first, _TRIES - 1
        while position < stop:
            call = Call(
                decode_frames, (source, survey, position, stop), {"max_pixels": max_pixels}, returns=None, ring=shape
            )
            finished = False
            try:
                for frame in self._ring_frames(call, shape, on_progress):
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
                if not finished:  # nobody wants the rest, or it cannot be had
                    self.close()

    def close(self) -> None:
        """End the process; the next call starts another."""
        process, self._process, self._confined = self._process, None, False
        if process:
            process.kill()
            self._remove_partial_files(process.pid)

    # --- one call -----------------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        process = self._confined_process(time.monotonic() + self._stall_seconds)
        process.file_size_limit(max((_free_bytes(folder) for folder in self.place.writes), default=0))
        process.allow_more_cpu_time(_CPU_SECONDS_AT_ONCE)
        try:
            process.send(pickle.dumps(call))
        except (BrokenPipeError, ConnectionResetError):
            self._explain_death()
        except TimeoutError:
            self._protest()

    def _ring_frames(self, call: Call, shape: RingShape, on_progress: Callable[[], None]) -> Iterator[Frame]:
        process = self._confined_process(time.monotonic() + self._stall_seconds)
        process.grow_ring(shape.total_bytes)
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
            word, content = self._next_message(time.monotonic() + self._stall_seconds)
            if word == caged_process.PROGRESS:
                self._process.allow_more_cpu_time(_CPU_SECONDS_PER_SIGN)
                on_progress()
            elif word == caged_process.FAILURE:
                code, message = TypeAdapter(tuple[FailureCode, str]).validate_json(content)
                raise JobFailureError(code, message)
            elif word == caged_process.BUG:
                raise CagedBugError(content.decode(errors="replace"))
            else:
                return word, content

    def _next_message(self, deadline: float) -> tuple[bytes, bytes]:
        head = self._exactly(1 + LENGTH.size, deadline)
        word, (size,) = head[:1], LENGTH.unpack(head[1:])
        if size > _MAX_MESSAGE_BYTES or word not in b"PFRXB":
            self._protest()
        return word, self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float) -> bytes:
        assert self._process is not None
        content = bytearray(size)
        view = memoryview(content)
        while view:
            try:
                count = self._process.channel.recv_into(view)
            except TimeoutError:
                self._check()
                if time.monotonic() > deadline:
                    self.close()
                    raise JobFailureError(
                        FailureCode.SOURCE_TOO_DEMANDING,
                        f"reading the file made no progress for {self._stall_seconds:.0f} s: convert it first",
                    ) from None
                continue
            except ConnectionResetError:
                count = 0
            if count == 0:
                self._explain_death()
            view = view[count:]
        return bytes(content)

    # --- the process --------------------------------------------------------------------------------------------

    def _confined_process(self, deadline: float) -> "CagedProcess":
        if self._process is None:
            self._process = CagedProcess()
        if not self._confined:
            try:
                self._process.send(pickle.dumps(self.place))
            except (BrokenPipeError, ConnectionResetError):
                self._explain_death()
            word, content = self._next_message(deadline)
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
            raise _KilledError
        if returncode == -signal.SIGXCPU:
            raise JobFailureError(
                FailureCode.SOURCE_TOO_DEMANDING,
                "reading the file takes far more time than it should: convert it first",
            )
        if returncode < 0:
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
        raise JobFailureError(FailureCode.DECODER_CRASHED, "the decoder went astray: convert the file first")

    def _remove_partial_files(self, pid: int) -> None:
        """What it was writing when it ended."""
        for folder in self.place.writes:
            for partial in folder.glob(f"*.{process_mark(pid)}.*{PARTIAL_SUFFIX}"):
                partial.unlink(missing_ok=True)


class CagedProcess:
    """One started process, its channel and its ring. Linux counts the ring to nobody's files: it is memory."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(_LOOK_SECONDS)
        self.ring = _new_ring()
        self._last_words, their_stderr = os.pipe()
        os.set_blocking(self._last_words, False)
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
        self._ring_bytes = 0
        self._cpu_seconds = 0

    def send(self, content: bytes) -> None:
        self.channel.settimeout(_SEND_SECONDS)
        try:
            self.channel.sendall(LENGTH.pack(len(content)) + content)
        finally:
            self.channel.settimeout(_LOOK_SECONDS)

    def send_byte(self) -> None:
        self.channel.sendall(b"\0")

    def grow_ring(self, total_bytes: int) -> None:
        if total_bytes > self._ring_bytes:
            os.ftruncate(self.ring, total_bytes)
            self._ring_bytes = total_bytes

    def allow_more_cpu_time(self, seconds: int) -> None:
        """The kernel ends it when it has used what it was allowed so far."""
        self._cpu_seconds += seconds
        self._limit(resource.RLIMIT_CPU, self._cpu_seconds)

    def file_size_limit(self, limit_bytes: int) -> None:
        self._limit(resource.RLIMIT_FSIZE, limit_bytes)

    def _limit(self, what: int, soft: int) -> None:
        # Only the soft limit: what an ordinary user has lowered for good can never be raised again.
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self.pid, what, (soft, resource.prlimit(self.pid, what)[1]))

    def wait(self) -> int | None:
        """The exit status; None if it closed its channel and lives on."""
        try:
            return self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str:
        """What it said last on standard error."""
        try:
            return os.read(self._last_words, _MAX_LAST_WORDS_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self.channel.close()
        os.close(self.ring)
        os.close(self._last_words)


class Cages:
    """A worker's cages: one job's at a time, and a process that waits for the next, so that no job waits for it."""

    def __init__(self, settings: WorkerSettings, limits: VideoLimits, check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self._settings = settings
        self._memory_bytes = memory_limit_bytes(settings, limits)
        self._current: Cage | None = None
        self._spare = None if settings.cage == "off" else CagedProcess()

    def of(self, folder: Path) -> Decoding:
        """The cage of the job in `folder`; that of another job ends."""
        if self._settings.cage == "off":
            return Uncaged()
        place = Place(reads=(folder,), writes=(folder,), memory_bytes=self._memory_bytes)
        if self._current is None or self._current.place != place:
            self.close()
            self._current = Cage(
                place,
                self._settings.cage,
                stall_seconds=self._settings.cage_stall_seconds,
                check=lambda: self.check(),
                process=self._spare,
            )
            self._spare = CagedProcess()
        return self._current

    @property
    def spare_pid(self) -> int | None:
        return self._spare.pid if self._spare else None

    def in_force(self) -> dict[str, str]:
        """Return what protects the next job's cage: tried with one that has nothing to read."""
        if self._settings.cage == "off":
            return dict.fromkeys(PROTECTIONS, "no (VSR_CAGE=off)")
        place = Place(reads=(), memory_bytes=self._memory_bytes)
        with Cage(place, "best-effort", stall_seconds=self._settings.cage_stall_seconds) as cage:
            return cage.in_force()

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


def open_decoding(
    settings: WorkerSettings, limits: VideoLimits, reads: tuple[Path, ...], writes: tuple[Path, ...]
) -> Decoding:
    """Return the way to read one source, as the settings say."""
    if settings.cage == "off":
        return Uncaged()
    place = Place(reads, writes, memory_limit_bytes(settings, limits))
    return Cage(place, settings.cage, stall_seconds=settings.cage_stall_seconds)


def _ring_shape(picture: Picture, max_pixels: int) -> RingShape:
    """The picture was described by the caged process: it must not make us take any amount of memory."""
    if not (0 < picture.width * picture.height <= max_pixels and picture.width > 0):
        raise JobFailureError(FailureCode.LIMIT_EXCEEDED, "the frames are larger than allowed")
    return RingShape(_RING_SLOTS, picture.height, picture.width, 1 if picture.bit_depth <= 8 else 2, picture.has_alpha)


def _new_ring() -> int:
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    import fcntl

    descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # Else whoever holds it could shrink it under our eyes, which would end us.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
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


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _give_up_unless(tries_left: int) -> None:
    log.warning("caged_process_killed", tries_left=tries_left)
    if tries_left <= 0:
        raise JobFailureError(
            FailureCode.SOURCE_TOO_DEMANDING,
            f"the process that reads the file was killed {_TRIES} times, most likely as it takes too much memory",
        )
