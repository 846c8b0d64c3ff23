"""The task queue: RQ with JSON messages on ONE queue (with two, RQ loses a task whose worker dies right after the pop).

A job's tasks form W parallel chains: `plan` enqueues segments 0 .. W-1, finishing segment i enqueues i + W, and whoever
finishes the last one enqueues `assemble`. The task ids are unique, so enqueuing twice is harmless and no state is kept.
W (`segments_in_flight`) is the job's own, from its plan: at each step the same, or chains would overlap or break off.
The gateway enqueues by name: it never imports the functions.
"""

from enum import StrEnum

from redis import Redis
from rq import Queue, Retry, Worker
from rq.exceptions import DuplicateJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

QUEUE_NAME = "vsr"
# How often a task may be tried. RQ hands it out once more after that: the pick-up that finds all attempts used fails
# the job with the reason (worker.tasks), so that this too happens in one place, whatever ended the attempts.
MAX_ATTEMPTS = 3
# A stalled task is ended by the worker's lease, not by this; RQ only wants a finite number.
_TASK_TIMEOUT_SECONDS = 24 * 3600
_RESULT_TTL_SECONDS = 24 * 3600
_FAILURE_TTL_SECONDS = 7 * 24 * 3600


class TaskKind(StrEnum):
    PLAN = "plan"
    SEGMENT = "segment"
    ASSEMBLE = "assemble"


class TaskQueue:
    def __init__(self, redis: Redis) -> None:
        self.rq = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)

    def enqueue_plan(self, job_id: str) -> None:
        self._enqueue(TaskKind.PLAN, job_id)

    def fair_segments_in_flight(self) -> int:
        """How many tasks of one job may wait or run at a time, so that newcomers wait for few of them.

        One for each worker process there is, so that none is idle beside a job, and one that waits: two segments' time
        on one process. At least two, as workers may be on their way.
        """
        return max(2, Worker.count(queue=self.rq) + 1)

    def enqueue_first_segments(self, job_id: str, segments_total: int, segments_in_flight: int) -> None:
        for index in range(min(segments_in_flight, segments_total)):
            self._enqueue(TaskKind.SEGMENT, job_id, index)

    def enqueue_segment_after(self, job_id: str, index: int, segments_total: int, segments_in_flight: int) -> None:
        """The next link of this segment's chain, if there is one: at the tail, so that jobs take turns."""
        following = index + segments_in_flight
        if following < segments_total:
            self._enqueue(TaskKind.SEGMENT, job_id, following)

    def enqueue_assemble(self, job_id: str) -> None:
        self._enqueue(TaskKind.ASSEMBLE, job_id)

    def enqueue_again(self, kind: TaskKind, job_id: str, index: int | None = None) -> None:
        """As if for the first time, whatever is left of an earlier run: for tasks that nobody has."""
        if remains := Job.fetch_many([task_id(kind, job_id, index)], self.rq.connection, serializer=JSONSerializer)[0]:
            remains.delete()
        self._enqueue(kind, job_id, index)

    def forget_ended_tasks(self, job_id: str, segments_total: int) -> None:
        """Remove what RQ remembers of the job's tasks that nobody waits for or is at, so that they can be enqueued."""
        for task in self._tasks_of(job_id, segments_total):
            if task.get_status(refresh=False) not in (JobStatus.QUEUED, JobStatus.STARTED):
                task.delete()

    def waiting(self) -> int:
        return self.rq.count

    def _enqueue(self, kind: TaskKind, job_id: str, index: int | None = None) -> None:
        arguments = {"job_id": job_id} if index is None else {"job_id": job_id, "index": index}
        try:
            self.rq.enqueue_call(
                f"worker.tasks.{kind}",
                kwargs=arguments,
                job_id=task_id(kind, job_id, index),
                timeout=_TASK_TIMEOUT_SECONDS,
                result_ttl=_RESULT_TTL_SECONDS,
                failure_ttl=_FAILURE_TTL_SECONDS,
                retry=Retry(max=MAX_ATTEMPTS, enqueue_at_front=True),
                unique=True,
            )
        except DuplicateJobError:
            return

    def forget_tasks(self, job_id: str, segments_total: int) -> None:
        """Remove the job's tasks, so that none of a deleted job is left."""
        for task in self._tasks_of(job_id, segments_total):
            task.delete()

    def _tasks_of(self, job_id: str, segments_total: int) -> list[Job]:
        identifiers = [task_id(TaskKind.PLAN, job_id), task_id(TaskKind.ASSEMBLE, job_id)]
        identifiers += [task_id(TaskKind.SEGMENT, job_id, index) for index in range(segments_total)]
        known = Job.fetch_many(identifiers, self.rq.connection, serializer=JSONSerializer)
        return [task for task in known if task]


def task_id(kind: TaskKind, job_id: str, index: int | None = None) -> str:
    return f"{job_id}-{kind}" if index is None else f"{job_id}-{kind}-{index:05d}"


def job_id_of(task: str) -> str:
    """The job of a task id."""
    return task.partition("-")[0]
