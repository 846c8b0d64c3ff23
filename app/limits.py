"""How much at a time: of everybody together, and of each API key. Whoever has reached a limit is told which, and waits.

Asked before a body is read, so that nobody sends gigabytes in vain; what many requests could pass together by then is
asked again, one request of a key after another, when a job is accepted.
"""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from redis import Redis
from redis.exceptions import RedisError

from app.dependencies import OwnerDep, Services, ServicesDep
from app.errors import (
    KeyStorageFullError,
    LimitReachedError,
    QueueUnavailableError,
    TooManyJobsError,
    TooManyKeyJobsError,
    TooManyKeyUploadsError,
)
from app.kept_bytes import begun_uploads, kept_bytes
from worker.contract.job import JobStatus

# After a gateway that died. One that lives renews its locks, however long the disk takes.
_LOCK_SECONDS = 10.0
# Longer than that, so that its locks keep nobody out.
_LOCK_WAIT_SECONDS = 12.0


class Slots:
    """Requests of one kind that this process works on: a killed one takes its count with it. For one event loop."""

    def __init__(
        self,
        most: int,
        most_per_key: int,
        refusal: type[LimitReachedError],
        refusal_of_key: type[LimitReachedError],
    ) -> None:
        """0: any number."""
        self._most = most
        self._most_per_key = most_per_key
        self._refusal = refusal
        self._refusal_of_key = refusal_of_key
        self._of_owner: Counter[str | None] = Counter()

    @property
    def taken(self) -> int:
        return self._of_owner.total()

    @contextmanager
    def take(self, owner: str | None) -> Iterator[None]:
        """Raises one of the refusals. Without keys nobody has a limit of his own."""
        if self._most and self.taken >= self._most:
            raise self._refusal(self._most)
        if owner and self._most_per_key and self._of_owner[owner] >= self._most_per_key:
            raise self._refusal_of_key(self._most_per_key)
        self._of_owner[owner] += 1
        try:
            yield
        finally:
            self._of_owner[owner] -= 1
            if not self._of_owner[owner]:
                del self._of_owner[owner]


async def upload_slot(services: ServicesDep, owner: OwnerDep) -> AsyncIterator[None]:
    """A dependency: a place among the uploads for as long as the request lasts."""
    with services.upload_slots.take(owner):
        yield


async def listener_slot(services: ServicesDep, owner: OwnerDep) -> AsyncIterator[None]:
    """A dependency: a place among those who follow jobs, until the stream ends."""
    with services.listener_slots.take(owner):
        yield


def refuse_full_queue(services: Services) -> None:
    if services.registry.count(JobStatus.QUEUED) >= services.settings.max_queued_jobs:
        raise TooManyJobsError(services.settings.max_queued_jobs)


def refuse_beyond_key_limits(services: Services, owner: str | None, more_bytes: int) -> None:
    """Whether this key may have one more job. `more_bytes`: of its source, as far as they are not counted yet."""
    refuse_beyond_key_jobs(services, owner)
    refuse_beyond_key_bytes(services, owner, more_bytes)


def refuse_beyond_key_jobs(services: Services, owner: str | None) -> None:
    """Whether this key may have one more job waiting or running."""
    limit = services.settings.max_active_jobs_per_key
    if owner is None or not limit:
        return
    if sum(services.registry.count(status, owner) for status in (JobStatus.QUEUED, JobStatus.RUNNING)) >= limit:
        raise TooManyKeyJobsError(limit)


def refuse_beyond_key_bytes(services: Services, owner: str | None, more_bytes: int) -> None:
    """Whether this key may keep so many bytes more, beside the sources of its jobs and its uploads."""
    limit_bytes = services.settings.max_source_bytes_per_key
    if owner is None or not limit_bytes:
        return
    if kept_bytes(services.registry, services.storage, owner) + more_bytes > limit_bytes:
        raise KeyStorageFullError(limit_bytes)


@contextmanager
def more_bytes_of_key(services: Services, owner: str | None, more_bytes: int) -> Iterator[None]:
    """Around what makes the key keep so many bytes more: one after another, so that together they pass no limit."""
    if owner is None or not services.settings.max_source_bytes_per_key:
        yield
        return
    with one_at_a_time(services.redis, owner):
        refuse_beyond_key_bytes(services, owner, more_bytes)
        yield


def refuse_beyond_begun_uploads(services: Services, owner: str | None) -> None:
    """Whether this key may begin one more resumable upload beside those that are not whole yet."""
    limit = services.settings.max_begun_uploads_per_key
    if owner and limit and begun_uploads(services.storage, owner) >= limit:
        raise TooManyKeyUploadsError(limit)


@contextmanager
def one_at_a_time(redis: Redis, owner: str | None) -> Iterator[None]:
    """Acceptances of one key come one after another, so that together they cannot pass a limit."""
    if owner is None:
        yield
        return
    try:
        with renewed_lock(redis, f"vsr:lock:owner:{owner}"):
            yield
    except LockBusyError:
        raise QueueUnavailableError from None


class LockBusyError(Exception):
    """Somebody who lives has it, and keeps it for long."""


@contextmanager
def renewed_lock(redis: Redis, name: str) -> Iterator[None]:
    """Among all gateways. It ends soon after whoever holds it died, and not before he is done. Raises `LockBusyError`.

    Waits in a thread: never in those that other requests need.
    """
    lock = redis.lock(name, timeout=_LOCK_SECONDS, blocking_timeout=_LOCK_WAIT_SECONDS, thread_local=False)
    if not lock.acquire():
        raise LockBusyError
    is_done = threading.Event()

    def renew() -> None:
        while not is_done.wait(_LOCK_SECONDS / 3):
            with suppress(RedisError):  # away; or it has forgotten the lock, and then nobody can be kept out
                lock.reacquire()

    threading.Thread(target=renew, name="lock", daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
        # Redis is away, and then it ends by itself: that undoes no acceptance.
        with suppress(RedisError):
            lock.release()
