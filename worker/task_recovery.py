"""Give back to the queue what dead workers held. The part of reliability that knows RQ's keys.

A task is in exactly one of three places, and moves between them atomically:

    rq:queue:vsr ──BLMOVE──▶ rq:queue:vsr:intermediate ──ms later──▶ rq:wip:vsr, scored by the end of its lease

RQ's own maintenance does this too late (up to 13 minutes), lets two callers enqueue the same task twice, or keeps its
lock for 15 minutes if the holder dies. Here everything happens under one short lock, as soon as a death is known.
"""

import time
from typing import cast

from redis import Redis
from redis.lock import Lock
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.utils import utcparse
from rq.worker import BaseWorker
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from worker.contract.queue import TaskQueue

_LOCK_KEY = "vsr:lock:recovery"
# What a supervisor that dies inside it costs the others; a pass that takes longer says so with `reacquire`.
_LOCK_SECONDS = 5
_LOCK_WAIT_SECONDS = 1
# The handover takes milliseconds. A task that is still in between after this belongs to nobody.
_HANDOVER_SECONDS = 5.0


class TaskRecovery:
    def __init__(self, redis: Redis, queue: TaskQueue) -> None:
        self._redis = redis
        self._rq = queue.rq
        self._wip = queue.rq.started_job_registry
        self._handover_since: dict[str, float] = {}

    def lock(self) -> Lock:
        """Held by whoever moves tasks or enqueues missing ones; a context manager."""
        return cast(Lock, self._redis.lock(_LOCK_KEY, timeout=_LOCK_SECONDS, blocking_timeout=_LOCK_WAIT_SECONDS))

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
            tasks[task] = self._redis.zscore(self._wip.key, execution) is not None
            if tasks[task] and not count_attempt:
                self._redis.hincrby(Job.key_for(task), "retries_left", 1)
            # RQ retries every execution whose lease ended before a given time; those with score 1 are exactly ours.
            self._redis.zadd(self._wip.key, {execution: 1}, xx=True)
        self._wip.cleanup(timestamp=1)
        for task in tasks:  # died between the handover and the start
            self._return_from_handover(task)
        self._unregister(worker_name)
        return tasks

    def has_expired_leases(self) -> bool:
        """Whether `reap_expired_leases` would find anything: one small read, without the lock."""
        return bool(self._redis.zcount(self._wip.key, "-inf", time.time()))

    def reap_expired_leases(self) -> None:
        """The same for every task whose lease ran out: its host is lost, or its process hangs."""
        self._wip.cleanup()

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
        """RQ keeps lists of ended tasks; drop those whose hashes have expired."""
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(queue=self._rq).cleanup()

    # --- inside -------------------------------------------------------------------------------------------------

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
        with self._redis.pipeline() as pipe:
            pipe.lrem(self._rq.intermediate_queue_key, 1, task)
            pipe.lrem(self._rq.key, 1, task)
            pipe.lpush(self._rq.key, task)
            if task in self._in_handover():
                pipe.execute()

    def _unregister(self, worker_name: str) -> None:
        """A killed worker cannot say goodbye; without this it would be counted as alive for another minute."""
        key = _worker_key(worker_name)
        with self._redis.pipeline() as pipe:
            pipe.srem(REDIS_WORKER_KEYS, key)
            pipe.srem(WORKERS_BY_QUEUE_KEY % self._rq.name, key)
            pipe.delete(key, _executions_key(worker_name))
            pipe.execute()


def _worker_key(worker_name: str) -> str:
    return BaseWorker.redis_worker_namespace_prefix + worker_name


def _executions_key(worker_name: str) -> str:
    return WORKER_EXECUTIONS_KEY_TEMPLATE.format(worker_name)


def _task_of(execution: str) -> str:
    """RQ names an execution "{task id}:{execution id}"."""
    return execution.rpartition(":")[0]
