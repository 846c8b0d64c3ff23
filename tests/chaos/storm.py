"""Jobs come in all the time while faults fall on the cluster, one after the other; then everything is counted.

In the words of Jepsen's total-queue checker, where a job is what is queued:

attempted     submissions that were begun            acknowledged  those that were answered with 202
ok            acknowledged, and succeeded with the bytes of an undisturbed run
recovered     never acknowledged (the gateway died first), and yet succeeded with the right bytes
lost          acknowledged, and never ended          failed        ended without a result
duplicated    ended more than once, or a segment that was published more than once
"""

import math
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from app.client import Client, ServiceUnreachableError, TryLaterResponseError
from tests.chaos.cluster import Cluster, NeverHappenedError, Repetition, wait_for
from tests.chaos.faults import FAULTS, FAULTS_OF_ALL, Chaos
from worker.contract.job import JobOptions, JobStatus, ResultInfo

OPTIONS = JobOptions(preset="tiny-random", encoder_preset="ultrafast")
_JOBS_AT_A_TIME = 4
_END_SECONDS = 180.0


@dataclass
class FaultCount:
    tries: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    """Of those that were recovered from in time."""
    segments_redone: list[int] = field(default_factory=list)


@dataclass
class Outcome:
    """See above."""

    attempted: int = 0
    acknowledged: int = 0
    ok: int = 0
    recovered: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong_bytes: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    """Partial files that nobody removed."""
    not_recovered: list[str] = field(default_factory=list)
    """Faults after which what was waited for did not come in time."""

    @property
    def troubles(self) -> dict[str, object]:
        """What must not be: empty where all went well."""
        names = ("lost", "failed", "duplicated", "wrong_bytes", "left_behind", "not_recovered")
        return {name: trouble for name in names if (trouble := getattr(self, name))}

    faults: dict[str, FaultCount] = field(default_factory=dict)

    def table(self) -> str:
        lines = [
            f"attempted {self.attempted}, acknowledged {self.acknowledged}, ok {self.ok}, recovered {self.recovered}, "
            f"lost {len(self.lost)}, failed {len(self.failed)}, duplicated {len(self.duplicated)}, "
            f"wrong bytes {len(self.wrong_bytes)}, left behind {len(self.left_behind)}, "
            f"not recovered {len(self.not_recovered)}",
            "",
            "| fault | tries | recovery median s | max s | segments redone, most per fault |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, count in self.faults.items():
            seconds = count.recovery_seconds or [math.nan]
            lines.append(
                f"| {name} | {count.tries} | {statistics.median(seconds):.2f} | {max(seconds):.2f} "
                f"| {max(count.segments_redone, default=0)} |"
            )
        return "\n".join(lines)


class FallenFault(NamedTuple):
    """When it began, and when it was recovered from; moments of `time.monotonic`."""

    name: str
    since: float
    until: float


class Traffic:
    """Clients that send videos, a few jobs at a time, and note what they were told."""

    def __init__(self, cluster: Cluster, videos: list[Path], seed: int) -> None:
        self._cluster = cluster
        self._videos = videos
        self._chance = random.Random(seed)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.attempted = 0
        self.acknowledged: dict[str, Path] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.05):
            if self._unfinished() < _JOBS_AT_A_TIME:
                video = self._chance.choice(self._videos)
                self.attempted += 1
                with (
                    suppress(ServiceUnreachableError, TryLaterResponseError),
                    Client(self._cluster.url, timeout_seconds=10) as client,
                ):
                    options = OPTIONS.model_dump(include={"preset", "encoder_preset"})
                    job = client.jobs.create(video, self._slowly, **options)
                    self.acknowledged[job.id] = video

    def _client(self) -> Client:
        return Client(self._cluster.url, timeout_seconds=10)

    def _slowly(self, sent: int, total: int) -> None:
        """An upload over a network: long enough for a gateway to be killed in it."""
        time.sleep(0.1)

    def _unfinished(self) -> int:
        record = self._cluster.storage.read_record
        return sum(not (job := record(job_id)) or not job.status.is_final for job_id in list(self.acknowledged))


def storm(
    cluster: Cluster,
    videos: dict[Path, bytes],
    faults: Iterable[str],
    *,
    seed: int,
    lease_seconds: float,
    pause_seconds: float = 1.0,
) -> Outcome:
    """Let `faults` fall, by their names in `FAULTS`; `videos` with the bytes that each must come to."""
    outcome = Outcome()
    chaos = Chaos(cluster, random.Random(seed), lease_seconds)
    traffic = Traffic(cluster, list(videos), seed)
    traffic.start()
    fallen: list[FallenFault] = []
    for name in faults:
        since = time.monotonic()
        count = outcome.faults.setdefault(name, FaultCount())
        count.tries += 1
        try:
            count.recovery_seconds.append(FAULTS[name](chaos))
        except NeverHappenedError as error:
            outcome.not_recovered.append(f"{name}: {error}")
        fallen.append(FallenFault(name, since, time.monotonic()))
        time.sleep(chaos.chance.uniform(0, pause_seconds))
    traffic.stop()
    _wait_for_the_end(cluster, traffic)
    found_finished = Counter(
        f"{event['job_id']}-segment-{event['index']:05d}"
        for event in cluster.events()
        if event["event"] == "segment_existing"
    )
    redone = Counter(
        _cause(repetition, fallen, chaos.hit_at, lease_seconds)
        for repetition in cluster.watched.repetitions(found_finished)
    )
    for fault in fallen:
        outcome.faults[fault.name].segments_redone.append(redone[fault])
    _count(outcome, cluster, traffic, videos)
    return outcome


def _cause(
    repetition: Repetition, fallen: list[FallenFault], hit_at: list[tuple[str, float]], lease_seconds: float
) -> FallenFault:
    """For which fault a segment was begun again.

    That is the one that took its worker. A segment that nothing had hit was lost with Redis, where Redis came back no
    more than two leases ago; else the fault of that moment answers for it.
    """
    # A task may be hit before it is first seen to be under way.
    before, again = repetition.before - 0.1, repetition.again
    took_its_worker = [at for task, at in hit_at if task == repetition.task and before <= at < again]
    moment = max(took_its_worker, default=again)
    of_that_moment = max((fault for fault in fallen if fault.since <= moment), key=lambda fault: fault.since)
    if took_its_worker:
        return of_that_moment
    of_redis = [f for f in fallen if f.name in FAULTS_OF_ALL and f.since < again < f.until + 2 * lease_seconds]
    return max(of_redis, key=lambda fault: fault.since, default=of_that_moment)


def _wait_for_the_end(cluster: Cluster, traffic: Traffic) -> None:
    read = cluster.storage.read_record

    def all_ended() -> bool:
        with suppress(RedisError):
            return all((job := read(job_id)) and job.status.is_final for job_id in cluster.storage.job_ids())
        return False

    with suppress(NeverHappenedError):  # those that did not end are counted as lost
        wait_for("the end of all jobs", all_ended, _END_SECONDS)


def _count(outcome: Outcome, cluster: Cluster, traffic: Traffic, videos: dict[Path, bytes]) -> None:
    outcome.attempted, outcome.acknowledged = traffic.attempted, len(traffic.acknowledged)
    by_size = {video.stat().st_size: expected for video, expected in videos.items()}
    stored = set(cluster.storage.job_ids())
    outcome.lost = sorted(set(traffic.acknowledged) - stored)
    for job_id in stored:
        record = cluster.storage.read_record(job_id)
        assert record is not None
        if not record.status.is_final:
            outcome.lost.append(job_id)
        elif record.status is not JobStatus.SUCCEEDED or record.result is None:
            outcome.failed[job_id] = f"{record.error.code}: {record.error.message}" if record.error else record.status
        elif _result(cluster, job_id, record.result) != by_size[record.source_size_bytes]:
            outcome.wrong_bytes.append(job_id)
        elif job_id in traffic.acknowledged:
            outcome.ok += 1
        else:
            outcome.recovered += 1
    ended: Counter[str] = Counter()
    for event in cluster.events():
        if event["event"] == "job_succeeded":
            ended[f"{event['job_id']}"] += 1
        elif event["event"] == "segment_finished":
            ended[f"{event['job_id']} segment {event['index']}"] += 1
    outcome.duplicated = [name for name, times in ended.items() if times > 1]
    with suppress(NeverHappenedError):
        wait_for("tidiness", lambda: not _partial_files(cluster), 10)
    outcome.left_behind = _partial_files(cluster)


def _result(cluster: Cluster, job_id: str, result: ResultInfo) -> bytes:
    return cluster.storage.folder(job_id).result(result.container).read_bytes()


def _partial_files(cluster: Cluster) -> list[str]:
    return [str(path.relative_to(cluster.storage.root)) for path in cluster.storage.root.rglob("*.part")]
