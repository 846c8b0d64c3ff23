"""What a stranger's file can do to us: nothing but end the process that reads it, under a name."""

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

import worker.cage
from tests.worker import cage_guests as guests
from worker import metrics
from worker.cage import (
    Cage,
    CagedBugError,
    CagedProcess,
    Cages,
    Decoding,
    Place,
    Uncaged,
    memory_limit_bytes,
    protections_in_force,
)
from worker.confinement import PROTECTIONS
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits, WorkerSettings
from worker.video.decode import decode_frames

GUESTS = Path(guests.__file__).parents[1]
LIMITS = VideoLimits()


def silent() -> None:
    pass


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


@pytest.fixture
def open_cage(job: Path) -> Iterator[Callable[..., Cage]]:
    """A cage for the job's folder, in which the guests can be met."""
    opened = []

    def open_one(
        memory_bytes: int = 4 * 1024**3, stall_seconds: float = 60.0, check: Callable[[], None] = silent
    ) -> Cage:
        place = Place((GUESTS, job), memory_bytes=memory_bytes)
        opened.append(Cage(place, "best-effort", LIMITS, stall_seconds=stall_seconds, check=check))
        return opened[-1]

    yield open_one
    for cage in opened:
        cage.close()


def failure_of(function: Callable[[], object]) -> FailureCode:
    with pytest.raises(JobFailureError) as caught:
        function()
    return caught.value.code


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], object], timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


# --- what it cannot do ------------------------------------------------------------------------------------------------


def test_a_caged_process_has_every_protection_that_this_system_gives(
    open_cage: Callable[..., Cage], tmp_path: Path
) -> None:
    # Given a cage, and what is said to protect it
    cage = open_cage()
    said = cage.in_force()
    assert tuple(said) == PROTECTIONS
    assert all(words == "yes" or words.startswith(("no (", "partly (")) for words in said.values()), said
    # When code in it tries whatever an attacker would
    (tmp_path / "neighbour").write_text("private")
    found = cage.call(
        guests.try_everything,
        tmp_path / "neighbour",
        "/nowhere.sock",
        1,
        os.getpid(),
        returns=dict[str, str],
        on_progress=silent,
    )
    # Then what is said holds
    stopped = set()
    stopped |= {"read", "write", "new file", "list"} if has(cage, "landlock") else set()
    stopped |= {"tcp", "unix socket", "program", "process", "signal", "own limits"} if has(cage, "seccomp") else set()
    assert {name for name in stopped if not found[name].startswith(("PermissionError", "ValueError"))} == set()
    assert all(has(cage, name) for name in ("memory_limit", "no_new_privileges", "seccomp"))  # any Linux has these


def has(cage: Cage, protection: str) -> bool:
    """Whether it is said to be in force here, at least in part: not every system that runs these tests gives all."""
    return not cage.in_force()[protection].startswith("no (")


def test_a_caged_process_reads_the_files_of_its_job_alone_and_writes_none(
    open_cage: Callable[..., Cage], job: Path, tmp_path: Path
) -> None:
    # Given a file of the job and one of its neighbour
    own, neighbour = job / "source", tmp_path / "neighbour"
    own.write_text("own")
    neighbour.write_text("private")
    (job / "link").symlink_to(neighbour)
    cage = open_cage()
    # Then only the first can be read, also around a corner
    assert read(cage, own) == "own"
    if not has(cage, "landlock"):
        assert write(cage, own) == "OSError"  # by the limit on the size of files
        return
    assert [read(cage, path) for path in (neighbour, job / "link", Path("/etc/passwd"))] == ["PermissionError"] * 3
    # And nothing be written
    targets = [own, job / "new", neighbour, tmp_path / "new"]
    assert [write(cage, path) for path in targets] == ["PermissionError"] * 4
    assert [own.read_text(), neighbour.read_text()] == ["own", "private"]


def test_a_process_that_makes_a_file_writes_nowhere_else(open_cage: Callable[..., Cage], job: Path) -> None:
    # Given a job with a record, a plan, and a segment that is being written
    (job / "segments").mkdir()
    own = [job / "job.json", job / "plan.json", job / "webhook.json", job / "segments" / "00000.mp4.host.1.abcd.part"]
    for path in own:
        path.write_text("own")
    # When a process makes the result, then it can touch nothing but that
    with open_cage().making(job / "result.mp4") as (writer, made):
        assert isinstance(writer, Cage)
        if has(writer, "landlock"):
            assert [write(writer, path) for path in (*own, job / "new")] == ["PermissionError"] * 5
            assert writer.call(guests.replace, made, own[-1], returns=str, on_progress=silent) == "PermissionError"
        assert write(writer, made) == "written"
        assert not (job / "result.mp4").exists()
    # And at the end that is in its place, alone
    assert (job / "result.mp4").read_text() == "x" * 10
    assert [path.read_text() for path in own] == ["own"] * 4
    assert sorted(path.name for path in job.iterdir()) == sorted(
        ["segments", "result.mp4", *(path.name for path in own[:3])]
    )


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_being_made_is_removed_where_it_fails(
    open_cage: Callable[..., Cage], job: Path, *, dies: bool
) -> None:
    def make() -> None:
        with open_cage().making(job / "result.mp4") as (writer, made):
            write(writer, made)
            if dies:
                writer.call(guests.crash, returns=int, on_progress=silent)
            raise ZeroDivisionError

    # When the making ends with an error, or its process in mid work
    with pytest.raises((ZeroDivisionError, JobFailureError)):
        make()
    # Then nothing is there
    assert list(job.iterdir()) == []


def test_a_killed_process_makes_its_file_anew(open_cage: Callable[..., Cage], job: Path) -> None:
    with open_cage().making(job / "result.mp4") as (writer, made):
        assert isinstance(writer, Cage)
        write(writer, made.with_name("half"))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        assert write(writer, made) == "written"
        assert [path.name for path in made.parent.iterdir()] == ["result.mp4"]
    assert (job / "result.mp4").is_file()


def test_a_link_is_no_file_that_was_made(open_cage: Callable[..., Cage], job: Path) -> None:
    # Given what a process could leave where Landlock is missing
    with (
        pytest.raises(JobFailureError, match="astray"),
        open_cage().making(job / "result.mp4") as (_, made),
    ):
        made.symlink_to("/etc/passwd")
    assert list(job.iterdir()) == []


def read(cage: Decoding, path: Path) -> str:
    return cage.call(guests.read, path, returns=str, on_progress=silent)


def write(cage: Decoding, path: Path, size: int = 10) -> str:
    return cage.call(guests.write, path, size, returns=str, on_progress=silent)


def test_a_caged_process_knows_no_secret_and_holds_no_foreign_descriptor(
    open_cage: Callable[..., Cage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given secrets in the environment, and a file that was opened carelessly
    monkeypatch.setenv("VSR_API_KEYS", "secret")
    monkeypatch.setenv("VSR_REDIS_URL", "redis://:secret@host")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        # When a process is caged
        cage = open_cage()
        environment = cage.call(guests.environment, returns=dict[str, str], on_progress=silent)
        # Then it sees none of it
        assert not [name for name in environment if name.startswith("VSR_")]
        # And has its three standard ones, the channel and the ring
        assert len(cage.call(guests.descriptors, returns=list[int], on_progress=silent)) == 5


def test_decoders_may_have_threads(open_cage: Callable[..., Cage]) -> None:
    assert open_cage().call(guests.threads_run, returns=int, on_progress=silent) == 4


def test_a_process_without_all_protections_is_none_where_they_are_required(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a system that lacks one
    monkeypatch.setattr("worker.cage.PROTECTIONS", (*PROTECTIONS, "moat"))
    cage = Cage(Place((GUESTS, job)), "required", LIMITS, stall_seconds=60)
    monkeypatch.setattr(
        Cage,
        "_next_message",
        lambda self: (b"R", b'{"moat": "no (dry)", %s}' % _all_in_force()),
        raising=True,
    )
    # Then nothing is read, and the reason is told
    with pytest.raises(JobFailureError, match="moat: no") as caught:
        cage.in_force()
    assert caught.value.code is FailureCode.CAGE_UNAVAILABLE


def _all_in_force() -> bytes:
    return b", ".join(f'"{name}": "yes"'.encode() for name in PROTECTIONS)


# --- what becomes of what it does -------------------------------------------------------------------------------------


def test_a_crash_a_blow_up_and_a_blunder_have_names_and_the_next_call_works(open_cage: Callable[..., Cage]) -> None:
    cage = open_cage()
    assert failure_of(lambda: cage.call(guests.crash, returns=int, on_progress=silent)) is FailureCode.DECODER_CRASHED
    too_much = failure_of(lambda: cage.call(guests.take_memory, returns=int, on_progress=silent))
    assert too_much is FailureCode.SOURCE_TOO_DEMANDING
    assert failure_of(lambda: cage.call(guests.fail, returns=int, on_progress=silent)) is FailureCode.NO_FRAMES
    with pytest.raises(CagedBugError, match="ZeroDivisionError: of ours"):
        cage.call(guests.blunder, returns=int, on_progress=silent)
    with pytest.raises(ValueError, match="valid integer"):
        cage.call(guests.lie, returns=int, on_progress=silent)
    assert cage.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3


def test_what_befalls_a_cage_is_counted_by_its_kind(open_cage: Callable[..., Cage]) -> None:
    # Given
    def counted() -> dict[str, float]:
        return {kind: metrics.CAGE_INCIDENTS_SEEN.labels(kind)._value.get() for kind in metrics.CAGE_INCIDENTS}

    before = counted()
    cage = open_cage()

    # When it is killed in mid work, crashes, takes too much, says what it cannot say, and refuses a file
    assert cage.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3
    assert cage.pid is not None
    os.kill(cage.pid, signal.SIGKILL)
    assert cage.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3
    for guest in (guests.crash, guests.take_memory, guests.fail):
        failure_of(lambda guest=guest: cage.call(guest, returns=int, on_progress=silent))
    failure_of(lambda: cage.call(guests.say, b"?" + struct.pack("=Q", 1), returns=int, on_progress=silent))

    # Then each is counted once under its name, and the refusal, which is no incident, under none
    assert {kind: counted()[kind] - before[kind] for kind in before} == dict.fromkeys(metrics.CAGE_INCIDENTS, 1)


def test_no_text_from_a_cage_is_long(open_cage: Callable[..., Cage]) -> None:
    # Given messages of megabytes
    cage = open_cage()
    with pytest.raises(JobFailureError) as caught:
        cage.call(guests.fail_at_length, returns=int, on_progress=silent)
    assert caught.value.code is FailureCode.NO_FRAMES
    assert len(caught.value.message) == 1000
    with pytest.raises(CagedBugError, match="is the end") as bug:
        cage.call(guests.blunder_at_length, returns=int, on_progress=silent)
    assert len(str(bug.value)) <= 32 * 1024


@pytest.mark.parametrize("word", [b"P", b"F", b"X", b"B", b"R", b"?"])
def test_who_announces_more_than_there_can_be_is_ended_before_it_says_it(
    open_cage: Callable[..., Cage], word: bytes
) -> None:
    cage = open_cage()
    size = 512 * 1024**2 if word == b"R" else 1024**2
    astray = failure_of(lambda: cage.call(guests.say, word + struct.pack("=Q", size), returns=int, on_progress=silent))
    assert astray is FailureCode.DECODER_CRASHED


def test_a_plan_of_the_longest_video_is_no_message_too_long(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path]
) -> None:
    # Given the longest numbers that a frame can have in all its columns
    plan = make_plan(make_video("clip.mp4", frames=3), JobOptions(), LIMITS)
    huge = (-(2**63),) * 1000
    some = (LIMITS.max_frames,) * 1000
    table = plan.survey.frames.model_copy(
        update={"pts": huge, "stamps": huge, "crc32": (2**32,) * 1000, "concealed": some, "progressive": some}
    )
    survey = plan.survey.model_copy(update={"frames": table, "cuts": some})
    long = plan.model_copy(update={"survey": survey})
    # Then their part of a message is less than its limit
    grown = len(long.model_dump_json()) - len(plan.model_dump_json())
    assert grown / 1000 < worker.cage._MESSAGE_BYTES_PER_FRAME


@pytest.mark.parametrize("work", [guests.trickle, guests.flood])
def test_who_talks_without_end_is_looked_at_and_ended_as_who_is_silent(
    open_cage: Callable[..., Cage], monkeypatch: pytest.MonkeyPatch, work: Callable[..., None]
) -> None:
    # Given a process that sends a byte now and then, or says that it makes progress, and nothing else
    monkeypatch.setattr("worker.cage._MAX_WAIT_SECONDS", 1.5)
    looks: list[None] = []
    cage = open_cage(stall_seconds=1.0, check=lambda: looks.append(None))
    cage.in_force()
    looks.clear()
    # Then it is ended, and was looked at meanwhile
    assert (
        failure_of(lambda: cage.call(work, returns=type(None), on_progress=silent)) is FailureCode.SOURCE_TOO_DEMANDING
    )
    assert len(looks) > 3


def test_a_large_file_may_be_finished_in_silence(open_cage: Callable[..., Cage], job: Path) -> None:
    # Given a process that writes 30 MB, then is not heard for three times as long as one may be
    heard: list[None] = []
    with open_cage(stall_seconds=1.0).making(job / "result.mp4") as (writer, made):
        made_bytes = writer.call(
            guests.write_in_silence, made, 30_000_000, 3.0, returns=int, on_progress=lambda: heard.append(None)
        )
    # Then it is let be, and the task is said to go on
    assert made_bytes == (job / "result.mp4").stat().st_size
    assert heard


def test_the_last_words_are_the_last_however_much_was_said(
    open_cage: Callable[..., Cage], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("worker.cage.log.error", lambda event, **facts: told.append(facts["last_words"]), raising=False)
    cage = open_cage()
    assert (
        failure_of(lambda: cage.call(guests.complain, 1, returns=int, on_progress=silent))
        is FailureCode.DECODER_CRASHED
    )
    assert told[0].endswith("the very last words")


def test_nobody_can_make_the_ring_larger_or_smaller() -> None:
    process = CagedProcess(8192)
    try:
        for size in (4096, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(process.ring, size)
    finally:
        process.kill()


def test_a_process_that_is_killed_before_its_place_is_known_is_replaced(open_cage: Callable[..., Cage]) -> None:
    cage = open_cage()
    assert cage.pid is not None
    os.kill(cage.pid, signal.SIGKILL)
    assert tuple(cage.in_force()) == PROTECTIONS


def test_a_hang_is_ended(open_cage: Callable[..., Cage]) -> None:
    cage = open_cage(stall_seconds=1.0)
    hung = failure_of(lambda: cage.call(guests.hang, returns=int, on_progress=silent))
    assert hung is FailureCode.SOURCE_TOO_DEMANDING


def test_time_that_leads_nowhere_is_ended(open_cage: Callable[..., Cage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.cage._CPU_SECONDS_AT_ONCE", 1)
    cage = open_cage()
    burnt = failure_of(lambda: cage.call(guests.burn, returns=int, on_progress=silent))
    assert burnt is FailureCode.SOURCE_TOO_DEMANDING


def test_a_cancel_ends_it_in_mid_work(open_cage: Callable[..., Cage]) -> None:
    # Given work that shows progress for ever, and one that shows none
    class CanceledError(Exception):
        pass

    def cancel() -> None:
        raise CanceledError

    for work, on_progress, check in ((guests.work_on, cancel, silent), (guests.hang, silent, cancel)):
        checks = [silent]
        cage = open_cage(check=lambda checks=checks: checks[-1]())
        cage.in_force()
        checks.append(check)
        pid = cage.pid
        # When the job is canceled, then the work stops and the process is gone
        with pytest.raises(CanceledError):
            cage.call(work, returns=int, on_progress=on_progress)
        assert pid is not None
        assert is_gone(pid)


def test_a_process_that_the_system_killed_is_replaced(open_cage: Callable[..., Cage]) -> None:
    # Given a cage whose process is killed while it idles
    cage = open_cage()
    cage.in_force()
    first = cage.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # Then what it is asked for is done by another
    assert cage.call(guests.add, 2, 2, returns=int, on_progress=silent) == 4
    assert cage.pid != first


def test_a_caged_process_dies_with_its_worker(job: Path) -> None:
    # Given a worker with a cage at work
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.worker import cage_guests as guests\n"
        "from worker.cage import Cage, Place\n"
        "from worker.settings import VideoLimits\n"
        "cage = Cage(Place((Path(sys.argv[1]),)), 'best-effort', VideoLimits(), stall_seconds=60)\n"
        "cage.in_force()\n"
        "print(cage.pid, flush=True)\n"
        "cage.call(guests.hang, returns=int, on_progress=lambda: None)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, GUESTS], stdout=subprocess.PIPE, cwd=GUESTS.parent, text=True
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        # When the worker is killed
        worker.kill()
    # Then the process is gone too
    wait_until(lambda: is_gone(pid))


# --- frames -----------------------------------------------------------------------------------------------------------


def caged_plan(cage: Cage, source: Path) -> Plan:
    return cage.call(
        make_plan, source, JobOptions(), LIMITS, source.suffix, segment_frames=8, returns=Plan, on_progress=silent
    )


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("plain.mp4", {}),
        ("odd.mkv", {"width": 65, "height": 49, "pixel_format": "yuv444p"}),
        ("deep.mkv", {"codec": "ffv1", "options": {}, "pixel_format": "yuv422p10le"}),
        ("alpha.mov", {"codec": "qtrle", "options": {}, "pixel_format": "argb"}),
    ],
)
def test_plans_and_frames_of_all_segments_come_out_as_without_a_cage(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path, name: str, properties: dict[str, object]
) -> None:
    # Given a video in the job's folder
    source = make_video(name, frames=20, **properties).rename(job / name)
    plain = make_plan(source, JobOptions(drop_unsupported=True), LIMITS, source.suffix, segment_frames=8)
    cage = open_cage()
    # When it is planned in a cage, then that is the same plan
    plan = cage.call(
        make_plan,
        source,
        JobOptions(drop_unsupported=True),
        LIMITS,
        source.suffix,
        segment_frames=8,
        returns=Plan,
        on_progress=silent,
    )
    assert plan.model_copy(update={"survey_seconds": 0.0}) == plain.model_copy(update={"survey_seconds": 0.0})
    # And when segments are decoded, one after another by the same process, then they are the same to the last bit
    cage.in_force()
    pid = cage.pid
    for segment in plan.segments:
        span = (segment.first, segment.stop)
        caged = list(cage.frames(source, plan.survey, *span, max_pixels=plan.max_pixels))
        direct = list(decode_frames(source, plan.survey, *span, max_pixels=plan.max_pixels))
        assert len(caged) == len(direct)
        for one, other in zip(caged, direct, strict=True):
            assert one.rgb.dtype == other.rgb.dtype
            np.testing.assert_array_equal(one.rgb, other.rgb)
            assert (one.alpha is None) == (other.alpha is None)
            if one.alpha is not None and other.alpha is not None:
                np.testing.assert_array_equal(one.alpha, other.alpha)
    assert cage.pid == pid


def test_frames_go_on_where_a_killed_process_stopped(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path
) -> None:
    # Given frames on their way
    source = make_video("clip.mp4", frames=20).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    frames = cage.frames(source, plan.survey, 0, 20, max_pixels=plan.max_pixels)
    seen = [next(frames)]
    # When the system kills the process
    assert cage.pid is not None
    os.kill(cage.pid, signal.SIGKILL)
    # Then none is missing, twice there or another one
    seen.extend(frames)
    direct = list(decode_frames(source, plan.survey, 0, 20, max_pixels=plan.max_pixels))
    assert [frame.rgb.tobytes() for frame in seen] == [frame.rgb.tobytes() for frame in direct]


def test_more_frames_than_there_are_is_going_astray(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video("clip.mp4", frames=4).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    monkeypatch.setattr("worker.cage.decode_frames", guests.one_frame_too_many)
    seen: list[object] = []
    code = failure_of(lambda: seen.extend(cage.frames(source, plan.survey, 0, 3, max_pixels=plan.max_pixels)))
    assert code is FailureCode.DECODER_CRASHED
    assert len(seen) == 3


def test_frames_that_nobody_wants_any_more_end_the_process(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path
) -> None:
    source = make_video("clip.mp4", frames=20).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    pid = cage.pid
    frames = cage.frames(source, plan.survey, 0, 20, max_pixels=plan.max_pixels)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert pid is not None
    assert is_gone(pid)
    assert len(list(cage.frames(source, plan.survey, 0, 20, max_pixels=plan.max_pixels))) == 20


def test_waiting_for_a_frame_can_be_stopped(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a decoder that never comes to a frame
    source = make_video("clip.mp4", frames=4).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    pid = cage.pid
    monkeypatch.setattr("worker.cage.decode_frames", guests.no_frame_ever)

    def stop() -> None:
        raise InterruptedError

    # When whoever waits for one is told to stop, then that is what happens, and the process ends
    with pytest.raises(InterruptedError):
        next(cage.frames(source, plan.survey, 0, 4, max_pixels=plan.max_pixels, check=stop))
    assert pid is not None
    assert is_gone(pid)
    # And nobody is asked any more when something else is waited for
    assert cage.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3


def test_a_process_that_ended_with_the_thread_that_started_it_is_replaced(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path
) -> None:
    # Given frames that a thread takes, which had to start another process for it
    source = make_video("clip.mp4", frames=4).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    cage.close()
    pids: list[int | None] = []

    def take() -> None:
        frames = list(cage.frames(source, plan.survey, 0, 4, max_pixels=plan.max_pixels))
        pids.extend(cage.pid for frame in frames)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    [pid] = set(pids)
    # When the cage is used after that thread's end, then by a new process, and nobody takes the old one for killed
    with capture_logs() as lines:
        assert cage.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3
    assert pid is not None
    assert is_gone(pid)
    assert cage.pid != pid
    assert [line["event"] for line in lines] == []


def test_memory_stays_flat_over_2000_frames(
    open_cage: Callable[..., Cage], make_video: Callable[..., Path], job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a source of endless frames
    source = make_video("clip.mp4", frames=4).rename(job / "clip.mp4")
    cage = open_cage()
    plan = caged_plan(cage, source)
    monkeypatch.setattr("worker.cage.decode_frames", guests.frames_of_numbers)

    def resident_bytes(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()

    # When 2,000 of them come through
    assert cage.pid is not None
    for number, frame in enumerate(cage.frames(source, plan.survey, 0, 2000, max_pixels=plan.max_pixels)):
        assert frame.rgb[0, 0, 0] == frame.rgb[-1, -1, -1] == number % 251
        if number == 100:
            before = resident_bytes(os.getpid()), resident_bytes(cage.pid)
    after = resident_bytes(os.getpid()), resident_bytes(cage.pid)
    # Then neither side has grown (all of them together would be 18 MB)
    assert after[0] - before[0] < 4 * 1024**2
    assert after[1] - before[1] < 4 * 1024**2


# --- hostile files ----------------------------------------------------------------------------------------------------


def bomb(unpacked_bytes: int) -> bytes:
    """A PNG picture of one pixel, and a text beside it that unpacks to a thousand times its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    text = b"Comment\0\0" + zlib.compress(bytes(unpacked_bytes), 9)
    animation = chunk(b"acTL", (1).to_bytes(4, "big") + bytes(4))
    control = chunk(
        b"fcTL", b"".join(n.to_bytes(4, "big") for n in (0, 1, 1, 0, 0)) + (1).to_bytes(2, "big") * 2 + bytes(2)
    )
    header = chunk(b"IHDR", (1).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0)))
    pixels = chunk(b"IDAT", zlib.compress(bytes(4)))
    return b"\x89PNG\r\n\x1a\n" + header + animation + chunk(b"zTXt", text) + control + pixels + chunk(b"IEND", b"")


def test_a_bomb_in_a_pictures_text_goes_off_in_the_cage_alone(open_cage: Callable[..., Cage], job: Path) -> None:
    # Given an animated PNG of a quarter of a megabyte whose comment is a quarter of a gigabyte long
    source = job / "source"
    source.write_bytes(bomb(256 * 1024**2))
    assert source.stat().st_size < 300_000
    cage = open_cage(memory_bytes=512 * 1024**2)
    cage.in_force()
    assert cage.pid is not None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # When it is planned, then it is refused or read within the limit
    found: list[FailureCode | int] = []
    try:
        found.append(caged_plan(cage, source).frames)
    except JobFailureError as failure:
        found.append(failure.code)
    assert found[0] in (1, FailureCode.SOURCE_TOO_DEMANDING, FailureCode.NOT_A_VIDEO, FailureCode.NO_FRAMES), found
    # And none of it has reached this process
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


# --- one worker's cages -----------------------------------------------------------------------------------------------


def test_a_worker_has_one_cage_per_job_and_the_next_is_ready(tmp_path: Path) -> None:
    # Given two jobs
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    cages = Cages(WorkerSettings(), LIMITS, silent)
    # When one after the other is worked on
    cage = cages.of(first)
    assert isinstance(cage, Cage)
    assert cages.of(first) is cage
    assert tuple(cage.in_force()) == PROTECTIONS
    pid = cage.pid
    assert cages.of(first) is cage  # once more, now that it has answered
    spare = cages.spare_pid
    other = cages.of(second)
    # Then they have nothing in common, and the first process is gone
    assert isinstance(other, Cage)
    assert pid is not None
    assert is_gone(pid)
    assert other.pid == spare != pid
    assert other.place.reads == (second,)
    other.in_force()
    cages.of(second)
    children = [other.pid, cages.spare_pid]
    cages.shut()
    assert all(child is not None and is_gone(child) for child in children)


def test_a_cage_can_be_turned_off(tmp_path: Path) -> None:
    cages = Cages(WorkerSettings(cage="off"), LIMITS, silent)
    uncaged = cages.of(tmp_path)
    assert isinstance(uncaged, Uncaged)
    assert uncaged.call(guests.add, 1, 2, returns=int, on_progress=silent) == 3
    assert set(protections_in_force(WorkerSettings(cage="off"), LIMITS).values()) == {"no (VSR_CAGE=off)"}
    cages.shut()


def test_the_memory_grows_with_the_largest_source_unless_it_is_set() -> None:
    small, large = VideoLimits(max_pixels=1000), VideoLimits()
    assert memory_limit_bytes(WorkerSettings(), small) < memory_limit_bytes(WorkerSettings(), large)
    assert memory_limit_bytes(WorkerSettings(cage_memory_bytes=10**9), large) == 10**9
