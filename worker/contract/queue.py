"""The task queue: RQ with JSON messages on ONE queue (with two, RQ loses a task whose worker dies right after the pop).

A job's tasks form W parallel chains: `plan` enqueues segments 0 .. W-1, finishing segment i enqueues i + W, and whoever
finishes the last one enqueues `assemble`. The task ids are unique, so enqueuing twice is harmless and no state is kept.
W (`segments_in_flight`) is the job's own, from its plan: at each step the same, or chains would overlap or break off.
The gateway enqueues by name: it never imports the functions.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from redis import Redis
from rq import Queue, Retry, Worker
from rq.exceptions import DuplicateJobError
from rq.executions import ExecutionRegistry
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

QUEUE_NAME = "vsr"
# How often a task may be tried. RQ hands it out once more after that: the pick-up that finds all attempts used fails
# the job with the reason (worker.tasks), so that this too happens in one place, whatever ended the attempts.
MAX_ATTEMPTS = 3
# A stalled task is ended by the worker's lease, not by this; RQ only wants a finite number.
_TASK_TIMEOUT_SECONDS = 24 * 3600
_RESULT_TTL_SECONDS = 24 * 3600
_FAILURE_TTL_SECONDS = 7 * 24 * 3600
# How many tasks one call of the script below forgets: it keeps all others from Redis meanwhile.
_FORGOTTEN_AT_A_TIME = 500
_PREVIEW_BEGAN_KEY = "vsr:preview-began"
# Should the worker be lost with all that it was to begin next.
_PREVIEW_BEGAN_SECONDS = 600

# Forget tasks, all or only those that nobody waits for or is at. In one script: between a look and a removal a worker
# could begin. Nothing is read of a task itself: its hash may be what a worker has written since Redis lost the rest.
# KEYS: queue, handover, started, finished, failed, and of each task its hash, executions and results.
# ARGV: 1 to leave the living, then the tasks.
_FORGET = """
local living, executions = {}, {}
for place = 1, 2 do
  for _, task in ipairs(redis.call('LRANGE', KEYS[place], 0, -1)) do living[task] = true end
end
for _, execution in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  local task = string.match(execution, '^(.*):')
  living[task] = true
  executions[task] = executions[task] or {}
  table.insert(executions[task], execution)
end
for number = 2, #ARGV do
  local task = ARGV[number]
  if not (living[task] and ARGV[1] == '1') then
    if living[task] then
      redis.call('LREM', KEYS[1], 0, task)
      redis.call('LREM', KEYS[2], 0, task)
      for _, execution in ipairs(executions[task] or {}) do redis.call('ZREM', KEYS[3], execution) end
    end
    redis.call('ZREM', KEYS[4], task)
    redis.call('ZREM', KEYS[5], task)
    local first = 6 + 3 * (number - 2)
    redis.call('DEL', KEYS[first], KEYS[first + 1], KEYS[first + 2])
  end
end
"""


class TaskKind(StrEnum):
    PLAN = "plan"
    SEGMENT = "segment"
    ASSEMBLE = "assemble"
    PREVIEW = "preview"
    """Belongs to no chain: nothing waits for it, and it changes nothing of its job."""


class TaskQueue:
    def __init__(self, redis: Redis) -> None:
        self.rq = Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer)
        self._forget = redis.register_script(_FORGET)

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

    def enqueue_preview(self, job_id: str, at_seconds: float) -> None:
        """Before everything else, whatever is left of an earlier one; nothing where one waits or runs.

        It takes as long as a short segment. At the tail where the last task to begin was a preview too: else those who
        ask again and again would keep everybody's jobs waiting.
        """
        self._forget_tasks([task_id(TaskKind.PREVIEW, job_id)], only_ended=True)
        arguments = {"job_id": job_id, "at_seconds": at_seconds}
        self._enqueue_call(
            TaskKind.PREVIEW,
            task_id(TaskKind.PREVIEW, job_id),
            arguments,
            at_front=not self.rq.connection.exists(_PREVIEW_BEGAN_KEY),
        )

    def note_begun(self, kind: TaskKind) -> None:
        """A worker begins a task of this kind: so previews and all else take turns."""
        if kind is TaskKind.PREVIEW:
            self.rq.connection.set(_PREVIEW_BEGAN_KEY, 1, ex=_PREVIEW_BEGAN_SECONDS)
        else:
            self.rq.connection.delete(_PREVIEW_BEGAN_KEY)

    def is_preview_under_way(self, job_id: str) -> bool:
        """Whether one waits or runs."""
        key = Job.key_for(task_id(TaskKind.PREVIEW, job_id))
        return self.rq.connection.hget(key, "status") in (b"queued", b"started")

    def enqueue_again(self, kind: TaskKind, job_id: str, index: int | None = None) -> None:
        """As if for the first time, whatever is left of an earlier run; nothing where somebody has it by now."""
        self._forget_tasks([task_id(kind, job_id, index)], only_ended=True)
        self._enqueue(kind, job_id, index)

    def forget_ended_tasks(self, job_id: str, segments_total: int) -> None:
        """Remove what RQ remembers of the job's tasks that nobody waits for or is at, so that they can be enqueued."""
        self._forget_tasks(_tasks_of(job_id, segments_total), only_ended=True)

    def forget_tasks(self, job_id: str, segments_total: int) -> None:
        """Remove the job's tasks, so that none of a deleted job is left."""
        self._forget_tasks(_tasks_of(job_id, segments_total), only_ended=False)

    def waiting(self) -> int:
        return self.rq.count

    def _enqueue(self, kind: TaskKind, job_id: str, index: int | None = None) -> None:
        arguments = {"job_id": job_id} if index is None else {"job_id": job_id, "index": index}
        self._enqueue_call(kind, task_id(kind, job_id, index), arguments)

    def _enqueue_call(
        self, kind: TaskKind, task: str, arguments: Mapping[str, object], *, at_front: bool = False
    ) -> None:
        try:
            self.rq.enqueue_call(
                f"worker.tasks.{kind}",
                kwargs=dict(arguments),
                job_id=task,
                timeout=_TASK_TIMEOUT_SECONDS,
                result_ttl=_RESULT_TTL_SECONDS,
                failure_ttl=_FAILURE_TTL_SECONDS,
                retry=Retry(max=MAX_ATTEMPTS, enqueue_at_front=True),
                at_front=at_front,
                unique=True,
            )
        except DuplicateJobError:
            return

    def _forget_tasks(self, tasks: Sequence[str], *, only_ended: bool) -> None:
        places = [
            self.rq.key,
            self.rq.intermediate_queue_key,
            self.rq.started_job_registry.key,
            FinishedJobRegistry(queue=self.rq).key,
            FailedJobRegistry(queue=self.rq).key,
        ]
        for first in range(0, len(tasks), _FORGOTTEN_AT_A_TIME):
            some = tasks[first : first + _FORGOTTEN_AT_A_TIME]
            keys = [key for task in some for key in _keys_of(task)]
            self._forget(keys=places + keys, args=[int(only_ended), *some])


def task_id(kind: TaskKind, job_id: str, index: int | None = None) -> str:
    return f"{job_id}-{kind}" if index is None else f"{job_id}-{kind}-{index:05d}"


def job_id_of(task: str) -> str:
    """The job of a task id."""
    return task.partition("-")[0]


def _tasks_of(job_id: str, segments_total: int) -> list[str]:
    segments = [task_id(TaskKind.SEGMENT, job_id, index) for index in range(segments_total)]
    others = [task_id(kind, job_id) for kind in (TaskKind.PLAN, TaskKind.ASSEMBLE, TaskKind.PREVIEW)]
    return [*others, *segments]


def _keys_of(task: str) -> tuple[str, str, str]:
    """All that RQ keeps of a task beside its place: its hash, its executions and its results."""
    return Job.key_for(task), ExecutionRegistry.key_template.format(task), f"rq:results:{task}"
