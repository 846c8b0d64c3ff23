"""Give back to the queue what dead workers held. The part of reliability that knows RQ's keys.

A task is in exactly one of three places, and moves between them atomically:

    rq:queue:vsr ──BLMOVE──▶ rq:queue:vsr:intermediate ──ms later──▶ rq:wip:vsr, scored by the end of its lease

RQ's own maintenance does this too late (up to 13 minutes), lets two callers enqueue the same task twice, or keeps its
lock for 15 minutes if the holder dies. Here every move is one script that looks first: it may be asked for by several
supervisors at once, and again by a client that has not heard the answer.

No clock of another host counts: a lease has run out when nobody has renewed it for its whole length by our own clock.
"""

import time
from dataclasses import dataclass
from typing import cast

from redis import Redis
from rq import worker_registration
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import now, utcformat, utcparse
from rq.worker import BaseWorker
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from worker.contract.queue import TaskQueue

# The handover takes milliseconds. A task that is still in between after this belongs to nobody.
_HANDOVER_SECONDS = 5.0


# Give one execution's task back to the front of the queue. Only if it is still that execution's: so a second call does
# nothing. KEYS: started, queue, handover, the task's hash. ARGV: execution, task, the lease's end for which this holds
# (none: whichever), whether it costs an attempt, now.
# Returns 0: it is not that execution's any more, or has ended; 1: it is back; 2: it has no attempt left.
_GIVE_BACK = """
local lease_end = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease_end or (ARGV[3] ~= '' and tonumber(lease_end) ~= tonumber(ARGV[3])) then return 0 end
local status = redis.call('HGET', KEYS[4], 'status')
if redis.call('HEXISTS', KEYS[4], 'data') == 0 then
  -- Redis lost the task, and a worker wrote on: whoever reconciles enqueues it anew.
  redis.call('DEL', KEYS[4])
  status = 'lost'
elseif status == 'started' and ARGV[4] == '1' then
  if tonumber(redis.call('HGET', KEYS[4], 'retries_left') or 0) <= 0 then return 2 end
  redis.call('HINCRBY', KEYS[4], 'retries_left', -1)
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('LREM', KEYS[3], 0, ARGV[2])
if status ~= 'started' and status ~= 'queued' then return 0 end
redis.call('HSET', KEYS[4], 'status', 'queued', 'enqueued_at', ARGV[5])
redis.call('PERSIST', KEYS[4])
redis.call('LREM', KEYS[2], 0, ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
"""

# The same for a task that was taken from the queue and never started. KEYS: started, queue, handover. ARGV: the task.
_RETURN_FROM_HANDOVER = """
for _, execution in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.match(execution, '^(.*):') == ARGV[1] then return 0 end
end
if redis.call('LREM', KEYS[3], 0, ARGV[1]) == 0 then return 0 end
redis.call('LREM', KEYS[2], 0, ARGV[1])
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""
_BACK, _NO_ATTEMPT_LEFT = 1, 2
# A lease was looked at so often at least before it counts as expired: a longer pause between two looks is cut to this.
_LEAST_LOOKS = 5


class TaskRecovery:
    def __init__(self, redis: Redis, queue: TaskQueue, lease_seconds: float) -> None:
        """`lease_seconds`: how long a lease lives without being renewed; workers do so every third of it."""
        self._redis = redis
        self._rq = queue.rq
        self._wip = queue.rq.started_job_registry
        self._lease_seconds = lease_seconds
        self._leases: dict[str, _Lease] = {}
        self._leases_seen_at = 0.0
        self._handover_since: dict[str, float] = {}
        self._give_back = redis.register_script(_GIVE_BACK)
        self._return = redis.register_script(_RETURN_FROM_HANDOVER)

    def is_registered(self, worker_name: str) -> bool:
        """Whether this worker ever got as far as waiting for tasks."""
        return bool(self._redis.exists(_worker_key(worker_name)))

    def tasks_of(self, worker_name: str) -> list[str]:
        """The ids of the tasks that this worker is, or was, at."""
        return [_task_of(execution) for execution in self._executions_of(worker_name)]

    def began_at(self, task: str) -> float | None:
        """When a worker last began this task, in seconds since 1970. None: nobody ever did."""
        moment = cast(bytes | None, self._redis.hget(Job.key_for(task), "started_at"))
        return utcparse(moment.decode()).timestamp() if moment else None

    def reap(self, worker_name: str, *, count_attempt: bool = True) -> dict[str, bool]:
        """Give the dead worker's task back to the front of the queue.

        Returns the id of the task it was at, if any, and whether it went back now (else it had before, by its lease).
        `count_attempt`: False when we killed it ourselves for taking too long to stop, which is not the task's fault.
        """
        tasks = {}
        for execution in self._executions_of(worker_name):
            task = _task_of(execution)
            tasks[task] = self._gave_back(execution, count_attempt=count_attempt)
            self._return_from_handover(task)  # died between the handover and the start
        self._unregister(worker_name)
        return tasks

    def reap_expired_leases(self) -> list[str]:
        """Give back every task whose lease ran out: its host is lost, or its process hangs. Returns the tasks.

        To be called about every second: only what was watched counts. Of a pause, because Redis was away or we were
        frozen, nobody knows who could have renewed what.
        """
        self._look_at_leases()
        return [
            _task_of(execution)
            for execution, lease in self._leases.items()
            if lease.watched_seconds > self._lease_seconds and self._gave_back(execution, lease_end=lease.end)
        ]

    def return_stuck_handovers(self) -> None:
        """Tasks taken from the queue by a worker that died before it could say so: seen there twice, seconds apart."""
        waiting = {task: self._handover_since.get(task, time.monotonic()) for task in self._in_handover()}
        self._handover_since = waiting
        for task, since in waiting.items():
            if time.monotonic() - since > _HANDOVER_SECONDS:
                self._return_from_handover(task)

    def has_lost_its_task(self, worker_name: str) -> bool:
        """Whether the task that this worker believes to be working on was given to somebody else."""
        # Whoever ends a task removes it from both at once, so in this order a task that just ended is no loss.
        return any(
            self._redis.zscore(self._wip.key, execution) is None
            and bool(self._redis.sismember(_executions_key(worker_name), execution))
            for execution in self._executions_of(worker_name)
        )

    def has_failed(self, task: str) -> bool:
        """Whether RQ has given this task up."""
        return bool(self._redis.zscore(self._rq.failed_job_registry.key, task) is not None)

    def live_tasks(self) -> set[str]:
        """The ids of all tasks that wait or run, in one look."""
        with self._redis.pipeline() as pipe:
            pipe.lrange(self._rq.key, 0, -1)
            pipe.lrange(self._rq.intermediate_queue_key, 0, -1)
            pipe.zrange(self._wip.key, 0, -1)
            queued, in_handover, running = cast(list[list[bytes]], pipe.execute())
        return {task.decode() for task in [*queued, *in_handover]} | {_task_of(item.decode()) for item in running}

    def forget_expired(self) -> None:
        """RQ keeps lists of ended tasks, and of workers; drop those whose hashes have expired."""
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(queue=self._rq).cleanup()
        worker_registration.clean_worker_registry(self._rq)

    # --- inside -------------------------------------------------------------------------------------------------

    def _look_at_leases(self) -> None:
        seen_at = time.monotonic()
        leases = cast(list[tuple[bytes, float]], self._redis.zrange(self._wip.key, 0, -1, withscores=True))
        watched_seconds = min(seen_at - self._leases_seen_at, self._lease_seconds / _LEAST_LOOKS)
        before, self._leases, self._leases_seen_at = self._leases, {}, seen_at
        for member, end in leases:
            execution = member.decode()
            known = before.get(execution)
            unchanged_seconds = known.watched_seconds + watched_seconds if known and known.end == end else 0.0
            self._leases[execution] = _Lease(end, unchanged_seconds)

    def _gave_back(self, execution: str, *, lease_end: float | None = None, count_attempt: bool = True) -> bool:
        """Whether the execution's task went back now. `lease_end`: not if it was renewed since."""
        task = _task_of(execution)
        places = [self._wip.key, self._rq.key, self._rq.intermediate_queue_key]
        end = "" if lease_end is None else repr(lease_end)
        outcome = self._give_back(
            keys=[*places, Job.key_for(task)], args=[execution, task, end, int(count_attempt), utcformat(now())]
        )
        if outcome == _NO_ATTEMPT_LEFT:
            # RQ fails every execution whose lease ended before a given time; those with score 1 are exactly ours.
            self._redis.zadd(self._wip.key, {execution: 1}, xx=True)
            self._wip.cleanup(timestamp=1)
        return cast(int, outcome) == _BACK

    def _executions_of(self, worker_name: str) -> list[str]:
        members = cast(set[bytes], self._redis.smembers(_executions_key(worker_name)))
        return [member.decode() for member in members]

    def _in_handover(self) -> list[str]:
        with self._redis.pipeline() as pipe:
            pipe.lrange(self._rq.intermediate_queue_key, 0, -1)
            pipe.zrange(self._wip.key, 0, -1)
            in_handover, running = cast(list[list[bytes]], pipe.execute())
        started = {_task_of(item.decode()) for item in running}
        return [task.decode() for task in in_handover if task.decode() not in started]

    def _return_from_handover(self, task: str) -> None:
        self._return(keys=[self._wip.key, self._rq.key, self._rq.intermediate_queue_key], args=[task])

    def _unregister(self, worker_name: str) -> None:
        """A killed worker cannot say goodbye; without this it would be counted as alive for another minute."""
        key = _worker_key(worker_name)
        with self._redis.pipeline() as pipe:
            pipe.srem(REDIS_WORKER_KEYS, key)
            pipe.srem(WORKERS_BY_QUEUE_KEY % self._rq.name, key)
            pipe.delete(key, _executions_key(worker_name))
            pipe.execute()


@dataclass(frozen=True)
class _Lease:
    end: float
    """By the clock of whoever holds it: of no meaning here, but that every renewal changes it."""
    watched_seconds: float
    """For how long nobody has renewed it, by our monotonic clock."""


def _worker_key(worker_name: str) -> str:
    return BaseWorker.redis_worker_namespace_prefix + worker_name


def _executions_key(worker_name: str) -> str:
    return WORKER_EXECUTIONS_KEY_TEMPLATE.format(worker_name)


def _task_of(execution: str) -> str:
    """RQ names an execution "{task id}:{execution id}"."""
    return execution.rpartition(":")[0]
