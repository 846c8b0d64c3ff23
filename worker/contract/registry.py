"""What Redis knows about jobs: an index over storage, and the live figures. Losing it loses no job.

vsr:job:{id}             hash   record (JSON), as in job.json; its revision; change (a name of the last one alone)
vsr:jobs:unwritten       set    ids of jobs that were changed here, and perhaps not yet in storage
vsr:jobs:checked         string the server process (run_id) whose whole index was compared with storage
vsr:progress:{id}        hash   frames_total, segments_total, frames_done (of finished segments),
                                frames_before, rendering_since, rendered_until (for the rate),
                                batch_frames, tile_px (0: whole frames),
                                segment:{index} (frames done of a segment under way)
vsr:segments:{id}        set    indexes of the finished segments
vsr:jobs, vsr:jobs:{status}     sorted sets of ids by time of creation
vsr:owner:{owner}:jobs, ...     the same of one API key's jobs alone
vsr:jobs:partial         set    ids of canceled jobs of which a worker still has to put together what was finished
vsr:results:{owner}:{sha256}    set    ids of the jobs with a result of this source; `-` for jobs without an owner
vsr:owner:{owner}:source-bytes  hash   bytes of each of its jobs' sources, as far as they are kept
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast
from uuid import uuid4

from pydantic import ValidationError
from redis import Redis
from redis.client import Pipeline

from worker.contract.errands import expect_errands, forget_errands
from worker.contract.idempotency import remember_reservation
from worker.contract.job import JobError, JobRecord, JobStatus, PartialResult, Progress, ResultInfo, SourceInfo, now
from worker.contract.storage import JobStorage

_PARTIAL_KEY = "vsr:jobs:partial"
_UNWRITTEN_KEY = "vsr:jobs:unwritten"
_CHECKED_KEY = "vsr:jobs:checked"

# Finishing a segment twice (a retry after a crash in between) must count once, and exactly one caller must learn that
# the last one is done: hence one atomic script. Returns 1 when every segment is done.
_FINISH_SEGMENT = """
redis.call('HDEL', KEYS[1], 'segment:' .. ARGV[1])
if redis.call('SADD', KEYS[2], ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'frames_done', ARGV[2])
end
if redis.call('SCARD', KEYS[2]) < tonumber(ARGV[3]) then return 0 end
redis.call('HSETNX', KEYS[1], 'rendered_until', ARGV[4])
return 1
"""

# A worker that has not yet heard that its job was deleted must not leave a key behind.
_NOTE_PROGRESS = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""

# ARGV: job id, the revision that storage has now. 0: Redis has a later one by now, which is still to be written.
_NOTE_WRITTEN = """
if tonumber(redis.call('HGET', KEYS[2], 'revision') or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('SREM', KEYS[1], ARGV[1])
return 1
"""

# KEYS: the index of waiting jobs, then of each job its record and its progress; ARGV: the jobs' ids.
_MARKS = """
local marks = {}
for n, id in ipairs(ARGV) do
  local place = redis.call('ZRANK', KEYS[1], id)
  local revision = redis.call('HGET', KEYS[2 * n], 'revision')
  local progress = redis.call('HGETALL', KEYS[2 * n + 1])
  marks[n] = table.concat({tostring(place), tostring(revision), unpack(progress)}, ' ')
end
return marks
"""


class JobRegistry:
    """Reads and changes jobs. Every change of status goes through `change`, which decides races once."""

    def __init__(self, redis: Redis, storage: JobStorage) -> None:
        self._redis = redis
        self._storage = storage
        self._finish_segment = redis.register_script(_FINISH_SEGMENT)
        self._note_progress = redis.register_script(_NOTE_PROGRESS)
        self._note_written = redis.register_script(_NOTE_WRITTEN)
        self._marks = redis.register_script(_MARKS)

    # --- the record ---------------------------------------------------------------------------------------------

    def add(self, record: JobRecord) -> None:
        """Accept a job. Durable on disk first, then indexed; adding it again is harmless."""
        self._storage.write_record(record)
        self.index(record)

    def index(self, record: JobRecord) -> None:
        """Put a record into Redis as it is (acceptance, or rebuilding from storage)."""
        with self._redis.pipeline() as pipe:
            self._index_in(pipe, record)
            pipe.execute()

    def expect_errands(self, record: JobRecord) -> None:
        """Make sure that the courier knows what this job needs of it. Harmless at any time."""
        with self._redis.pipeline() as pipe:
            expect_errands(pipe, record)
            pipe.execute()

    def get(self, job_id: str) -> JobRecord | None:
        """The job, from Redis or, where Redis has forgotten it, from storage. None: no such job."""
        return self._known(job_id) or self._storage.read_record(job_id)

    def get_all(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Those of these jobs that there are, in this order; as `get`, with one question to Redis."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(_job_key(job_id), "record")
            contents = pipe.execute()
        found = (
            JobRecord.model_validate_json(content) if content else self._storage.read_record(job_id)
            for job_id, content in zip(job_ids, contents, strict=True)
        )
        return [record for record in found if record]

    def change(self, job_id: str, change: Callable[[JobRecord], JobRecord | None]) -> JobRecord | None:
        """Apply `change` to the record atomically, then make it durable.

        `change` sees the current record, which is the later of Redis's and storage's, and returns the new one, or None
        to leave it (it may run more than once). Returns the new record, or None if nothing was changed or there is no
        such job. Where storage fails (`JobFailureError(OUT_OF_DISK)`, `StorageBusyError`) the change has been made, but
        is not durable before the reconciler's next pass.
        """
        key = _job_key(job_id)
        mark = uuid4().hex
        changed: JobRecord | None = None
        is_written = True

        def apply(pipe: Pipeline) -> None:
            nonlocal changed, is_written
            content, last_change = cast(list[bytes | None], pipe.hmget(key, "record", "change"))
            if content and last_change == mark.encode():
                # Redis did what we asked, and its answer was lost: redis-py runs this again.
                pipe.multi()
                return
            known = JobRecord.model_validate_json(content) if content else None
            stored = self._stored(job_id, known)
            current = _latest(stored, known)
            changed = change(current) if current else None
            if current and changed and changed != current:
                changed = changed.model_copy(update={"revision": current.revision + 1})
            pipe.multi()
            if current and changed:
                self._index_in(pipe, changed, has_just_ended=changed.status.is_final and not current.status.is_final)
                pipe.hset(key, "change", mark)
                # Together with the change: so nobody can die, or fail, between telling Redis and telling storage
                # without the reconciler hearing of it.
                is_written = changed == stored
                if is_written:
                    pipe.srem(_UNWRITTEN_KEY, job_id)
                else:
                    pipe.sadd(_UNWRITTEN_KEY, job_id)

        self._redis.transaction(apply, key)
        if changed and not is_written:
            self._write_down(changed)
        return changed

    def settle(self, job_id: str) -> JobRecord | None:
        """Where Redis and storage disagree, make both know the later of the two. Returns it; None: no such job."""
        with self._redis.pipeline() as pipe:
            pipe.hget(_job_key(job_id), "record")
            pipe.sismember(_UNWRITTEN_KEY, job_id)
            content, is_unwritten = pipe.execute()
        if content and not is_unwritten:
            known = JobRecord.model_validate_json(content)
            if known == self._stored(job_id, known):
                return known
        return self.change(job_id, lambda current: current)

    def remove(self, job_id: str) -> None:
        """Forget the job: storage first, so that nothing can rebuild it from there."""
        with self._storage.locked(job_id):
            record = self.get(job_id)
            self._storage.delete_job(job_id)
            with self._redis.pipeline() as pipe:
                pipe.delete(_job_key(job_id), _progress_key(job_id), _segments_key(job_id))
                for key in _all_indexes(record.owner if record else None):
                    pipe.zrem(key, job_id)
                pipe.srem(_PARTIAL_KEY, job_id)
                pipe.srem(_UNWRITTEN_KEY, job_id)
                if record:
                    pipe.srem(_results_key(record.owner, record.source_sha256), job_id)
                if record and record.owner:
                    pipe.hdel(_source_bytes_key(record.owner), job_id)
                forget_errands(pipe, job_id)
                pipe.execute()

    # --- its life -----------------------------------------------------------------------------------------------

    def start(self, job_id: str, source: SourceInfo) -> JobRecord | None:
        """Queued to running, with what `plan` found. A second planning (after a crash) only repeats it."""
        return self.change(
            job_id,
            lambda job: (
                None
                if job.status.is_final
                else job.model_copy(
                    update={"status": JobStatus.RUNNING, "started_at": job.started_at or now(), "source": source}
                )
            ),
        )

    def succeed(self, job_id: str, result: ResultInfo) -> JobRecord | None:
        return self._finish(job_id, JobStatus.SUCCEEDED, result=result)

    def fail(self, job_id: str, error: JobError) -> JobRecord | None:
        return self._finish(job_id, JobStatus.FAILED, error=error)

    def cancel(self, job_id: str, *, keep_partial: bool = False) -> JobRecord | None:
        """`keep_partial`: a worker has to put together what was finished; enqueue `assemble` for that."""
        wish = {"partial_result": PartialResult.BEING_MADE} if keep_partial else {}
        return self._finish(job_id, JobStatus.CANCELED, **wish)

    def end_partial_result(
        self, job_id: str, outcome: PartialResult, result: ResultInfo | None = None
    ) -> JobRecord | None:
        """What came of the wish to keep what was finished. None: nobody wants it any more, or it is there."""
        return self.change(
            job_id,
            lambda job: (
                job.model_copy(update={"partial_result": outcome, "result": result})
                if job.wants_partial_result
                else None
            ),
        )

    def retry(self, job_id: str) -> JobRecord | None:
        """Failed or canceled to queued, as if new but for what storage has of it. None: it is not in such a state.

        Nor where its source has been removed.
        """
        fresh = {"status": JobStatus.QUEUED, "started_at": None, "finished_at": None, "error": None}
        fresh |= {"result": None, "partial_result": None}
        return self.change(
            job_id,
            lambda job: (
                job.model_copy(update=fresh)
                if job.status in (JobStatus.FAILED, JobStatus.CANCELED) and job.media_removed_at is None
                else None
            ),
        )

    def is_final(self, job_id: str) -> bool:
        """True also for a job that is gone. Workers ask between batches: one small read."""
        record = self.get(job_id)
        return record is None or record.status.is_final

    def wants_partial_result(self, job_id: str) -> bool:
        """Whether something of this canceled job is still to be put together. Not if it is gone, or was tried again."""
        record = self.get(job_id)
        return record is not None and record.wants_partial_result

    def _finish(
        self, job_id: str, status: JobStatus, **outcome: ResultInfo | JobError | PartialResult
    ) -> JobRecord | None:
        """The first to finish a job wins; None for everyone after."""
        return self.change(
            job_id,
            lambda job: (
                None
                if job.status.is_final
                else job.model_copy(update={"status": status, "finished_at": now(), **outcome})
            ),
        )

    # --- listing ------------------------------------------------------------------------------------------------

    def newest(
        self, limit: int, status: JobStatus | None = None, before: str | None = None, owner: str | None = None
    ) -> list[JobRecord]:
        """At most `limit` jobs, newest first; `before` is the id of the last job of the previous page.

        `owner`: only jobs of this API key; None for all jobs, whosever they are.
        """
        # All ids sort by time of creation, so scores are equal and the index is ordered by the ids themselves.
        newest_first = self._redis.zrevrangebylex(
            _index_key(status, owner), f"({before}" if before else "+", "-", start=0, num=limit
        )
        return self.get_all(_texts(newest_first))

    def count(self, status: JobStatus, owner: str | None = None) -> int:
        """`owner`: only jobs of this API key."""
        return int(self._redis.zcard(_index_key(status, owner)))

    def source_bytes(self, owner: str) -> int:
        """What the sources of this API key's jobs take on the disk."""
        return sum(int(size) for size in cast(list[bytes], self._redis.hvals(_source_bytes_key(owner))))

    def with_result_of(self, source_sha256: str, owner: str | None) -> list[JobRecord]:
        """Jobs of this owner that have a result of this source, newest first."""
        found = sorted(_texts(self._redis.smembers(_results_key(owner, source_sha256))), reverse=True)
        return [record for job_id in found if (record := self.get(job_id))]

    def unfinished_ids(self) -> list[str]:
        return [
            job_id
            for status in (JobStatus.QUEUED, JobStatus.RUNNING)
            for job_id in _texts(self._redis.zrange(_index_key(status), 0, -1))
        ]

    def partial_ids(self) -> list[str]:
        """Canceled jobs of which a worker still has to put together what was finished."""
        return sorted(_texts(self._redis.smembers(_PARTIAL_KEY)))

    def unwritten_ids(self) -> list[str]:
        """Jobs that were changed, and perhaps not yet in storage: whoever did it is at it, died, or failed at it."""
        return sorted(_texts(self._redis.smembers(_UNWRITTEN_KEY)))

    def is_checked(self) -> bool:
        """Whether the index was compared with storage since Redis started: what it read then may be from before."""
        return cast(bytes | None, self._redis.get(_CHECKED_KEY)) == self._server_run_id()

    def note_checked(self) -> None:
        self._redis.set(_CHECKED_KEY, self._server_run_id())

    def indexed_ids(self) -> set[str]:
        """Every job that Redis knows."""
        return set(_texts(self._redis.zrange(_index_key(None), 0, -1)))

    def queue_position(self, job_id: str) -> int | None:
        """1 for the next job to start; None once it has started."""
        [place] = self.queue_positions([job_id])
        return place

    def queue_positions(self, job_ids: Sequence[str]) -> list[int | None]:
        """Of each, with one question to Redis."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.zrank(_index_key(JobStatus.QUEUED), job_id)
            ranks = pipe.execute()
        return [None if rank is None else rank + 1 for rank in ranks]

    def marks(self, job_ids: Sequence[str]) -> list[bytes]:
        """Of each job something that is another after every change of its record, progress or place in the queue."""
        keys = [key for job_id in job_ids for key in (_job_key(job_id), _progress_key(job_id))]
        return cast(list[bytes], self._marks(keys=[_index_key(JobStatus.QUEUED), *keys], args=job_ids))

    # --- progress -----------------------------------------------------------------------------------------------

    def start_rendering(
        self, job_id: str, frames_total: int, segments_total: int, finished_segments: Mapping[int, int]
    ) -> None:
        """Reset the live figures to what storage holds.

        `finished_segments`: index to frames of every segment already published, e.g. before a crash.
        """
        frames_done = sum(finished_segments.values())
        with self._redis.pipeline() as pipe:
            pipe.delete(_progress_key(job_id), _segments_key(job_id))
            pipe.hset(
                _progress_key(job_id),
                mapping={
                    "frames_total": frames_total,
                    "segments_total": segments_total,
                    "frames_done": frames_done,
                    "frames_before": frames_done,
                    "rendering_since": time.time(),
                },
            )
            if finished_segments:
                pipe.sadd(_segments_key(job_id), *finished_segments)
            pipe.execute()

    def note_segment_progress(self, job_id: str, index: int, frames_done: int) -> None:
        """Live figures of a segment under way; nothing for a job that is not being rendered (any more)."""
        self._note_progress(keys=[_progress_key(job_id)], args=[f"segment:{index}", frames_done])

    def note_rendering(self, job_id: str, batch_frames: int, tile_px: int | None) -> None:
        """How the job's frames go through the networks; nothing for a job that is not being rendered (any more)."""
        for name, value in (("batch_frames", batch_frames), ("tile_px", tile_px or 0)):
            self._note_progress(keys=[_progress_key(job_id)], args=[name, value])

    def finish_segment(self, job_id: str, index: int, frames: int, segments_total: int) -> bool:
        """Count a segment as done, once. True when all are: the caller then enqueues `assemble`, whose id is unique."""
        keys = [_progress_key(job_id), _segments_key(job_id)]
        return bool(self._finish_segment(keys=keys, args=[index, frames, segments_total, time.time()]))

    def progress(self, job_id: str) -> Progress:
        """The live figures; all zero before rendering starts or after Redis was lost."""
        [progress] = self.progress_of([job_id])
        return progress

    def progress_of(self, job_ids: Sequence[str]) -> list[Progress]:
        """The live figures of each, with one question to Redis."""
        with self._redis.pipeline() as pipe:
            for job_id in job_ids:
                pipe.hgetall(_progress_key(job_id))
                pipe.scard(_segments_key(job_id))
            answers = pipe.execute()
        return [_progress(fields, done) for fields, done in zip(answers[::2], answers[1::2], strict=True)]

    # --- inside -------------------------------------------------------------------------------------------------

    def _index_in(self, pipe: Pipeline, record: JobRecord, *, has_just_ended: bool = False) -> None:
        pipe.hset(_job_key(record.id), mapping={"record": record.model_dump_json(), "revision": record.revision})
        expect_errands(pipe, record, has_just_ended=has_just_ended)
        remember_reservation(pipe, record)
        if record.owner and record.media_removed_at is None:
            pipe.hset(_source_bytes_key(record.owner), record.id, record.source_size_bytes)
        elif record.owner:
            pipe.hdel(_source_bytes_key(record.owner), record.id)
        results = _results_key(record.owner, record.source_sha256)
        if record.status is JobStatus.SUCCEEDED and record.media_removed_at is None:
            pipe.sadd(results, record.id)
        else:
            pipe.srem(results, record.id)
        if record.wants_partial_result:
            pipe.sadd(_PARTIAL_KEY, record.id)
        else:
            pipe.srem(_PARTIAL_KEY, record.id)
        holding = _indexes_holding(record)
        for key in _all_indexes(record.owner):
            if key in holding:
                pipe.zadd(key, {record.id: 0})
            else:
                pipe.zrem(key, record.id)

    def _known(self, job_id: str) -> JobRecord | None:
        content = cast(bytes | None, self._redis.hget(_job_key(job_id), "record"))
        return JobRecord.model_validate_json(content) if content else None

    def _stored(self, job_id: str, known: JobRecord | None) -> JobRecord | None:
        """A damaged file counts as none where Redis knows the record, and is replaced by that."""
        try:
            return self._storage.read_record(job_id)
        except ValidationError:
            if known is None:
                raise
            return None

    def _write_down(self, changed: JobRecord) -> None:
        """Write what Redis has now, or `changed` if it has lost that: so the last change is also the last write."""
        with self._storage.locked(changed.id):
            while self._storage.folder(changed.id).record.exists():  # else it was removed meanwhile
                known = self._known(changed.id)
                stored = self._stored(changed.id, known or changed)
                latest = _latest(known, changed, stored)
                assert latest
                if latest != stored:
                    self._storage.write_record(latest)
                # Looked at once more after the write: on a file system whose locks end at the host, two may write.
                if self._note_written(keys=[_UNWRITTEN_KEY, _job_key(changed.id)], args=[changed.id, latest.revision]):
                    return
        self._redis.srem(_UNWRITTEN_KEY, changed.id)

    def _server_run_id(self) -> bytes:
        return cast(dict[str, str], self._redis.info("server"))["run_id"].encode()


def _latest(*copies: JobRecord | None) -> JobRecord | None:
    """Of copies of one record; the first where they are of the same revision."""
    return max((copy for copy in copies if copy), key=lambda copy: copy.revision, default=None)


def _progress(fields: Mapping[bytes, bytes], segments_done: int) -> Progress:
    if b"rendering_since" not in fields:  # at most what a worker noted after Redis had lost the rest
        return Progress()
    figures = {name.decode(): float(value) for name, value in fields.items()}
    frames_done = int(figures["frames_done"] + sum(n for name, n in figures.items() if name.startswith("segment:")))
    seconds = (figures.get("rendered_until") or time.time()) - figures["rendering_since"]
    frames_since = frames_done - figures["frames_before"]
    return Progress(
        frames_done=frames_done,
        frames_total=int(figures["frames_total"]),
        segments_done=segments_done,
        segments_total=int(figures["segments_total"]),
        fps=frames_since / seconds if frames_since > 0 and seconds > 0 else None,
        batch_frames=int(figures["batch_frames"]) if "batch_frames" in figures else None,
        tile_px=int(figures.get("tile_px", 0)) or None,
    )


def _texts(reply: object) -> list[str]:
    return [item.decode() for item in cast(Iterable[bytes], reply)]


def _job_key(job_id: str) -> str:
    return f"vsr:job:{job_id}"


def _progress_key(job_id: str) -> str:
    return f"vsr:progress:{job_id}"


def _segments_key(job_id: str) -> str:
    return f"vsr:segments:{job_id}"


def _index_key(status: JobStatus | None, owner: str | None = None) -> str:
    jobs = f"vsr:owner:{owner}:jobs" if owner else "vsr:jobs"
    return f"{jobs}:{status}" if status else jobs


def _source_bytes_key(owner: str) -> str:
    return f"vsr:owner:{owner}:source-bytes"


def _results_key(owner: str | None, source_sha256: str) -> str:
    return f"vsr:results:{owner or '-'}:{source_sha256}"


def _all_indexes(owner: str | None) -> list[str]:
    """Every index in which a job of this owner may be."""
    return [_index_key(status, one) for one in {None, owner} for status in (None, *JobStatus)]


def _indexes_holding(record: JobRecord) -> list[str]:
    return [_index_key(status, one) for one in {None, record.owner} for status in (None, record.status)]
