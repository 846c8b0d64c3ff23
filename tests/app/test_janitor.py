"""The janitor removes what has expired and what nobody owns, when it is time, and never anything else."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from app.expiry_clock import ExpiryClock
from app.janitor import Janitor
from app.metrics import REMOVED_KINDS, GatewayMetrics
from app.settings import GatewaySettings
from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway, wait_until
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, JobRecord, JobStatus, PartialResult, ResultInfo, new_job_id
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage, folder_locked, process_mark

UPLOADS, RESULTS, FAILED, JOBS = 8_000.0, 10_000.0, 5_000.0, 20_000.0
ABANDONED = 3_600.0
SETTINGS = GatewaySettings(
    upload_retention_seconds=UPLOADS,
    result_retention_seconds=RESULTS,
    failed_retention_seconds=FAILED,
    job_retention_seconds=JOBS,
)
DEAD_PID = 2**22 + 1  # above the largest that there is


class House:
    """A storage folder, things of any age in it, and a janitor whose clocks run as far ahead as a test says."""

    def __init__(self, redis: Redis, root: Path, settings: GatewaySettings = SETTINGS) -> None:
        self.storage = JobStorage(root)
        self.storage.prepare()
        self.registry = JobRegistry(redis, self.storage)
        self.metrics = GatewayMetrics(redis, self.registry, self.storage)
        self.ahead_seconds = 0.0
        self.set_forward_seconds = 0.0
        clock = ExpiryClock(
            redis,
            lambda: time.time() + self.ahead_seconds + self.set_forward_seconds,
            lambda: time.monotonic() + self.ahead_seconds,
            lambda: "this boot",
        )
        queue = TaskQueue(redis)
        self.janitor = Janitor(settings, redis, self.storage, self.registry, queue, self.metrics, clock)
        self.locked: list[BinaryIO] = []
        assert clock.look() is False

    def add_job(self, status: JobStatus, ended_ago: float = 0.0, written_ago: float = 0.0, **fields: object) -> str:
        """A job with all the files that one can have."""
        succeeded = status is JobStatus.SUCCEEDED
        result = ResultInfo(container=Container.MP4, width=2, height=2, frames=1, size_bytes=6, sha256="0" * 64)
        moment = datetime.fromtimestamp(time.time() - ended_ago, UTC)
        record = JobRecord(
            id=new_job_id(),
            status=status,
            created_at=moment,
            started_at=moment,
            finished_at=moment if status.is_final else None,
            options=JobOptions(),
            source_name="clip.mp4",
            source_size_bytes=3,
            source_sha256="0" * 64,
            result=result if succeeded else None,
        ).model_copy(update=fields)
        self.registry.add(record)
        folder = self.storage.folder(record.id)
        folder.make_segments()
        folder.make_live()
        shown = (folder.live_facts, folder.stream_header, folder.stream_segment(0), folder.still("00000", "result"))
        for path in (folder.source, folder.pictures, folder.plan, folder.report, folder.segment(0, ".mp4"), *shown):
            path.write_bytes(b"media")
        if succeeded:
            folder.result(Container.MP4).write_bytes(b"result")
        set_age(folder.record, written_ago)
        return record.id

    def lock(self, path: Path) -> None:
        """As one who writes it does."""
        file = path.open("rb")
        fcntl.flock(file, fcntl.LOCK_EX)
        self.locked.append(file)

    def files(self) -> set[str]:
        found = (path for path in self.storage.root.rglob("*") if path.is_symlink() or path.is_file())
        return {str(path.relative_to(self.storage.root)) for path in found}

    def removed(self) -> dict[str, float]:
        counted = {
            kind: self.metrics.prometheus.get_sample_value("vsr_janitor_removed_total", {"kind": kind}) or 0.0
            for kind in REMOVED_KINDS
        }
        return {kind: number for kind, number in counted.items() if number}


def set_age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


@contextmanager
def a_house(redis: Redis, root: Path) -> Iterator[House]:
    redis.flushall()
    house = House(redis, root)
    try:
        yield house
    finally:
        for file in house.locked:
            file.close()


@pytest.fixture
def house(redis: Redis, tmp_path: Path) -> Iterator[House]:
    with a_house(redis, tmp_path / "storage") as house:
        yield house


# --- never anything else ----------------------------------------------------------------------------------------------

# Each makes one thing of a given age and says which of its files shall be there after a round, and which shall not.
Fate = dict[Path, bool]


def foreign_things(house: House, name: str, age: float, other_age: float) -> Fate:
    """What users, operators, other programs and later versions of this one may put there."""
    storage, fate = house.storage, {}
    names = ("README", f"{name}.part", f"{'0' * 32}.PART", f"{'a' * 64}.txt", f"{'g' * 32}.part", ".hidden", "job.json")
    for folder in (storage.root, storage.uploads, storage.jobs, storage.deleted, storage.root / "redis"):
        folder.mkdir(exist_ok=True)
        for one in names:
            fate[folder / one] = True
        for one in ("x", "lost+found", f"{'0' * 19}", f"{'0' * 20}.BACKUP"):
            fate[folder / one / "file"] = True
    for path in fate:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"foreign")
        set_age(path, age)
        if path.parent.parent != storage.root.parent:
            set_age(path.parent, age)
    # Links named as ours lead to what lies elsewhere, and are themselves somebody's.
    elsewhere = storage.root.parent / "elsewhere"
    (elsewhere / "segments").mkdir(parents=True, exist_ok=True)
    (elsewhere / "source").write_bytes(b"foreign")
    for link in (
        storage.jobs / new_job_id(),
        storage.deleted / f"{new_job_id()}.{'0' * 8}",
        storage.uploads / f"{os.urandom(16).hex()}.part",
    ):
        link.symlink_to(elsewhere)
        fate[link] = True
    return fate


def an_upload(house: House, name: str, age: float, other_age: float) -> Fate:
    owner = "0123456789ab-" if other_age > age else ""
    fate = {}
    for suffix in ("1" * 64, "tus"):
        path = house.storage.uploads / f"{owner}{name}.{suffix}"
        path.write_bytes(b"whole")
        set_age(path, age)
        fate[path] = age <= UPLOADS
    return fate


def a_living_upload(house: House, name: str, age: float, other_age: float) -> Fate:
    paths = [house.storage.uploads / f"{name[:32]}.part", house.storage.uploads / f"{name}.tus"]
    for path in paths:
        path.write_bytes(b"half")
        set_age(path, age)
        house.lock(path)
    return dict.fromkeys(paths, True)


def a_dead_upload(house: House, name: str, age: float, other_age: float) -> Fate:
    path = house.storage.uploads / f"{name[:32]}.part"
    path.write_bytes(b"half")
    set_age(path, age)
    return {path: False}


def an_acceptance(house: House, name: str, age: float, other_age: float) -> Fate:
    folder = house.storage.make_folder(new_job_id())
    folder.source.write_bytes(b"source")
    set_age(folder.source, age)
    set_age(folder.path, other_age)
    return {folder.source: min(age, other_age) <= ABANDONED}


def a_job_under_way(house: House, name: str, age: float, other_age: float) -> Fate:
    status = JobStatus.QUEUED if age < other_age else JobStatus.RUNNING
    return _while_a_worker_is_at_it(house, house.add_job(status, age, age), age)


def a_canceled_job_of_which_a_part_is_being_made(house: House, name: str, age: float, other_age: float) -> Fate:
    job = house.add_job(JobStatus.CANCELED, age, other_age, partial_result=PartialResult.BEING_MADE)
    return _while_a_worker_is_at_it(house, job, age)


def _while_a_worker_is_at_it(house: House, job_id: str, age: float) -> Fate:
    folder = house.storage.folder(job_id)
    fate = {path: True for path in folder.path.rglob("*") if path.is_file()}
    for parent in (folder.path, folder.segments, folder.live):
        for mark in (process_mark(os.getpid()), f"another-host.{DEAD_PID}", f"x{os.getpid()}"):
            fate[parent / f"00001.mp4.{mark}.{'0' * 8}.part"] = True
        fate[parent / f"00002.mp4.{process_mark(DEAD_PID)}.{'0' * 8}.part"] = age <= ABANDONED
    for path in fate:
        if path.suffix == ".part":
            path.write_bytes(b"half")
        set_age(path, age)
    return fate


def a_finished_job(house: House, name: str, age: float, other_age: float) -> Fate:
    folder = house.storage.folder(house.add_job(JobStatus.SUCCEEDED, age, other_age))
    partial = folder.path / f"result.mp4.another-host.1.{'0' * 8}.part"
    partial.write_bytes(b"half")
    set_age(partial, age)
    ended_ago = min(age, other_age)
    fate = {path: ended_ago <= RESULTS for path in folder.path.rglob("*") if path.is_file()}
    fate[folder.segment(0, ".mp4")] = ended_ago <= ABANDONED
    fate[partial] = ended_ago <= ABANDONED
    return fate | {folder.record: True, folder.report: True}


def a_failed_job(house: House, name: str, age: float, other_age: float) -> Fate:
    folder = house.storage.folder(house.add_job(JobStatus.FAILED, age, other_age))
    fate = {path: min(age, other_age) <= FAILED for path in folder.path.rglob("*") if path.is_file()}
    return fate | {folder.record: True, folder.report: True}


def a_remembered_job(house: House, name: str, age: float, other_age: float) -> Fate:
    removed_at = datetime.fromtimestamp(time.time() - age, UTC)
    folder = house.storage.folder(house.add_job(JobStatus.SUCCEEDED, 10**6, other_age, media_removed_at=removed_at))
    fate = {path: False for path in folder.path.rglob("*") if path.is_file()}
    return fate | dict.fromkeys((folder.record, folder.report), min(age, other_age) <= JOBS)


def a_damaged_record(house: House, name: str, age: float, other_age: float) -> Fate:
    folder = house.storage.folder(house.add_job(JobStatus.FAILED, age, age))
    folder.record.write_bytes(b"{")
    set_age(folder.record, age)
    return {path: True for path in folder.path.rglob("*") if path.is_file()}


def a_half_deleted_job(house: House, name: str, age: float, other_age: float) -> Fate:
    path = house.storage.deleted / f"{new_job_id()}.{name[:8]}" / "segments" / "00000.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"segment")
    return {path: False}


MAKERS: list[Callable[[House, str, float, float], Fate]] = [
    foreign_things,
    an_upload,
    a_living_upload,
    a_dead_upload,
    an_acceptance,
    a_job_under_way,
    a_canceled_job_of_which_a_part_is_being_made,
    a_finished_job,
    a_failed_job,
    a_remembered_job,
    a_damaged_record,
    a_half_deleted_job,
]
AGES = st.sampled_from([-500.0, 0.0, 3_000.0, 4_000.0, 6_000.0, 9_000.0, 12_000.0, 50_000.0])


@given(things=st.lists(st.tuples(st.sampled_from(MAKERS), AGES, AGES), max_size=10))
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_lies_in_the_storage_only_what_expired_and_what_nobody_owns_goes(
    redis: Redis, tmp_path_factory: pytest.TempPathFactory, things: list[tuple[Callable[..., Fate], float, float]]
) -> None:
    with a_house(redis, tmp_path_factory.mktemp("house") / "storage") as house:
        # Given things of every kind and age, told by two clocks; some of them alive, some not ours
        fate: Fate = {}
        for maker, age, other_age in things:
            fate |= maker(house, os.urandom(32).hex(), age, other_age)

        # When
        assert house.janitor.clean()
        house.janitor.clean()

        # Then every file met its fate, and the lists hold exactly the jobs that are left
        expected = {str(path.relative_to(house.storage.root)) for path, stays in fate.items() if stays}
        assert house.files() == expected
        readable = {path.parent.name for path in fate if path.name == "job.json" and path.exists()} & set(
            house.storage.job_ids()
        )
        assert house.registry.indexed_ids() == readable


# --- in its own time --------------------------------------------------------------------------------------------------


def test_the_first_round_after_the_machines_start_trusts_no_clock(redis: Redis, tmp_path: Path) -> None:
    # Given
    with a_house(redis, tmp_path / "storage") as house:
        job = house.add_job(JobStatus.SUCCEEDED, 10**9, 10**9)
        redis.delete("vsr:expiry-clock")

        # When
        first = (house.janitor.clean(), house.storage.folder(job).source.exists())
        second = (house.janitor.clean(), house.storage.folder(job).source.exists())

        # Then
        assert (first, second) == ((True, True), (True, False))


def test_a_clock_set_forward_removes_nothing_early_and_time_that_goes_by_does(house: House) -> None:
    # Given everything that can expire
    job, failed = house.add_job(JobStatus.SUCCEEDED), house.add_job(JobStatus.CANCELED)
    folder = house.storage.make_folder(new_job_id())
    (house.storage.uploads / f"{'1' * 64}.{'2' * 64}").write_bytes(b"upload")
    house.janitor.clean()
    before = house.files()

    # When the clock is set ten years forward
    house.set_forward_seconds = 10 * 365 * 24 * 3600.0
    house.janitor.clean()
    house.janitor.clean()

    # Then all is there; and when the time has really gone by, it is not
    assert house.files() == before
    house.ahead_seconds = RESULTS + 1000
    house.janitor.clean()
    assert house.files() == {f"jobs/{one}/{name}" for one in (job, failed) for name in ("job.json", "report.json")}
    assert not folder.path.exists()


def test_a_job_lives_and_is_forgotten_as_the_settings_say(house: House, redis: Redis) -> None:
    # Given a finished job
    job = house.add_job(JobStatus.SUCCEEDED)
    folder = house.storage.folder(job)

    # When time goes by (while what is written now bears the time of now)
    seen = []
    for passed_seconds in (1, RESULTS - 100, 200, JOBS - RESULTS - 1000, 2000):
        house.ahead_seconds += passed_seconds
        house.janitor.clean()
        record = house.registry.get(job)
        seen.append((folder.result(Container.MP4).exists(), record is not None))

    # Then first its files go, then it is forgotten, also by Redis
    assert seen == [(True, True), (True, True), (False, True), (False, True), (False, False)]
    assert not folder.path.exists()
    assert not [key for key in redis.scan_iter() if job in key.decode()]
    assert house.removed() == {"segments": 1, "media": 1, "job": 1}


def test_a_disk_that_is_full_to_the_last_byte_is_made_room_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk on which not even a record can be written while the media of an expired job are there
    job = house.add_job(JobStatus.SUCCEEDED, RESULTS + 1, RESULTS + 1)
    folder = house.storage.folder(job)
    write_record = house.storage.write_record

    def write_if_there_is_room(record: JobRecord) -> None:
        if folder.source.exists():
            raise JobFailureError(FailureCode.OUT_OF_DISK, "the disk is full")
        write_record(record)

    monkeypatch.setattr(house.storage, "write_record", write_if_there_is_room)

    # When
    house.janitor.clean()

    # Then
    assert house.files() == {f"jobs/{job}/job.json", f"jobs/{job}/report.json"}
    record = house.storage.read_record(job)
    assert record is not None
    assert record.media_removed_at is not None


def test_a_job_that_a_frozen_process_holds_keeps_no_other_from_its_turn(house: House) -> None:
    # Given two expired jobs, the first held by a process that froze
    held, other = (house.add_job(JobStatus.SUCCEEDED, RESULTS + 1, RESULTS + 1) for _ in range(2))

    # When
    with folder_locked(house.storage.folder(held).path, 0):
        assert house.janitor.clean()

    # Then the other has expired durably
    record = house.storage.read_record(other)
    assert record is not None
    assert record.media_removed_at is not None


def test_a_kill_between_the_note_and_the_files_is_made_good_in_the_next_round(house: House) -> None:
    # Given a job whose expiry was decided in Redis, and not yet written or done
    job = house.add_job(JobStatus.FAILED, FAILED + 1, FAILED + 1)
    record = house.storage.read_record(job)
    assert record is not None
    house.registry.index(record.model_copy(update={"media_removed_at": datetime.now(UTC)}))

    # When
    house.janitor.clean()

    # Then
    assert house.files() == {f"jobs/{job}/job.json", f"jobs/{job}/report.json"}
    assert house.storage.read_record(job) == house.registry.get(job)


def test_with_zero_everything_is_kept_for_ever(redis: Redis, tmp_path: Path) -> None:
    # Given
    never = SETTINGS.model_copy(
        update=dict.fromkeys(("result_retention_seconds", "failed_retention_seconds", "job_retention_seconds"), 0.0)
    )
    house = House(redis, tmp_path / "storage", never)
    jobs = [house.add_job(status) for status in (JobStatus.SUCCEEDED, JobStatus.FAILED)]
    old = house.add_job(JobStatus.FAILED, media_removed_at=datetime.now(UTC))

    # When
    house.ahead_seconds = 10**9
    house.janitor.clean()

    # Then
    assert all(house.storage.folder(job).source.exists() for job in jobs)
    assert house.registry.get(old) is not None


def test_of_two_janitors_one_at_a_time_is_at_it(house: House, redis: Redis) -> None:
    with redis.lock("vsr:lock:janitor", timeout=60):
        assert house.janitor.clean() is False
    assert house.janitor.clean() is True


def test_an_acceptance_that_ends_while_its_folder_is_taken_for_abandoned_is_not_lost(house: House) -> None:
    # Given a folder without a record, and a record that is written just when it is judged
    job = house.add_job(JobStatus.QUEUED)

    # When
    removed = house.storage.delete_unrecorded(job)

    # Then
    assert removed is False
    assert house.storage.job_ids() == [job]
    assert list(house.storage.deleted.iterdir()) == []


# --- as clients see it ------------------------------------------------------------------------------------------------


def test_a_result_says_when_it_expires_and_then_is_gone_for_good(start_gateway: StartGateway) -> None:
    # Given a gateway whose janitor is quick, and a finished job
    gateway = start_gateway(result_retention_seconds=0.3, janitor_seconds=0.05, job_retention_seconds=0)
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")
    told = gateway.http.get(f"/v1/jobs/{job.id}").json()

    # When its time is over
    wait_until(lambda: gateway.http.get(told["result"]["url"]).status_code == 410)

    # Then the job is still there and says so, its report too, and its files are not
    problem = gateway.http.get(told["result"]["url"]).json()
    again = gateway.http.get(f"/v1/jobs/{job.id}").json()
    lived = datetime.fromisoformat(told["result"]["expires_at"]) - datetime.fromisoformat(told["finished_at"])
    assert lived.total_seconds() == pytest.approx(0.3)
    assert problem["code"] == "result_expired"
    assert (again["status"], again["result"]["expires_at"]) == ("succeeded", told["result"]["expires_at"])
    assert gateway.http.get(f"/v1/jobs/{job.id}/report").status_code == 200
    wait_until(lambda: gateway.files() == [f"jobs/{job.id}/job.json", f"jobs/{job.id}/report.json"])
    assert "vsr_janitor_rounds_total" in gateway.http.get("/metrics").text


def test_what_was_kept_of_a_canceled_job_expires_as_a_result(start_gateway: StartGateway) -> None:
    # Given a gateway that keeps results for a moment, and jobs without one for ever
    gateway = start_gateway(result_retention_seconds=0.3, janitor_seconds=0.05, failed_retention_seconds=0)
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)
    gateway.keep_partial_result(job.id, b"the beginning")

    # When its time is over
    wait_until(lambda: gateway.http.get(f"/v1/jobs/{job.id}/result").status_code == 410)

    # Then
    assert gateway.http.post(f"/v1/jobs/{job.id}/retry").json()["code"] == "result_expired"
    wait_until(lambda: gateway.files() == [f"jobs/{job.id}/job.json", f"jobs/{job.id}/report.json"])


def test_results_that_never_expire_say_so(start_gateway: StartGateway) -> None:
    gateway = start_gateway(result_retention_seconds=0)
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")

    assert gateway.http.get(f"/v1/jobs/{job.id}").json()["result"]["expires_at"] is None


def test_a_job_that_is_deleted_while_a_worker_writes_leaves_no_file_behind(gateway: RunningGateway) -> None:
    # Given a job, and a process that publishes its segments again and again and does not hear of anything
    job = gateway.add_job()
    gateway.registry.start(job.id, SOURCE_INFO)
    worker = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(gateway.storage.root), job.id], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == "writing\n"

        # When the job is deleted in the middle of it, and the process still tries for a while
        answer = gateway.http.delete(f"/v1/jobs/{job.id}")
        tries = [worker.stdout.readline() for _ in range(200)]
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()

    # Then
    assert answer.status_code == 204
    assert "gone\n" in tries
    assert gateway.files() == []
    assert list(gateway.storage.jobs.iterdir()) == list(gateway.storage.deleted.iterdir()) == []


_WRITER = """
import sys
from pathlib import Path
from worker.contract.storage import JobStorage, publishing

folder = JobStorage(Path(sys.argv[1])).folder(sys.argv[2])
for number in range(10**9):
    try:
        folder.make_segments()
        for target in (folder.segment(number % 7, ".mp4"), folder.plan):
            with publishing(target) as partial, partial.open("wb") as file:
                for _ in range(20):
                    file.write(b"segment" * 100)
        print("writing", flush=True)
    except FileNotFoundError:
        print("gone", flush=True)
"""


def test_what_a_killed_process_left_is_gone_after_the_next_start(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given a process that was killed in the middle of an upload
    storage = JobStorage(tmp_path / "storage")
    storage.prepare()
    partial = storage.uploads / f"{'0' * 32}.part"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
         "print('locked', flush=True); time.sleep(60)", str(partial)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    start_gateway()
    alive = partial.exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()

    # When
    start_gateway()

    # Then it was left alone while that lived
    assert (alive, partial.exists()) == (True, False)


def test_a_folder_that_a_caged_process_wrote_in_is_removed_when_nobody_writes_there_any_more(house: House) -> None:
    # Given a job that has ended, with such folders: left alone for long, and with a file that still grows
    folder = house.storage.folder(house.add_job(JobStatus.SUCCEEDED, 2 * ABANDONED, 2 * ABANDONED))
    left = {age: folder.path / f"caged.another-host.{age}.{'0' * 8}.part" for age in (2 * int(ABANDONED), 1)}
    for age, path in left.items():
        path.mkdir()
        (path / "result.mp4").write_bytes(b"half")
        set_age(path / "result.mp4", age)
        set_age(path, 2 * ABANDONED)
    # When the janitor makes its round
    house.janitor.clean()
    # Then only the first is gone
    assert [path.exists() for path in left.values()] == [False, True]
