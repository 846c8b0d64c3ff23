"""How much at a time: of everybody together, and of each API key. Whoever has reached a limit is told which, and waits.

Asked before a body is read, so that nobody sends gigabytes in vain; what many requests could pass together by then is
asked again, one request of a key after another, when a job is accepted.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from redis import Redis
from redis.exceptions import RedisError

from app.dependencies import OwnerDep, Services, ServicesDep
from app.errors import (
    KeyStorageFullError,
    QueueUnavailableError,
    TooManyJobsError,
    TooManyKeyJobsError,
    TooManyKeyUploadsError,
    TooManyUploadsError,
)
from worker.contract.job import JobStatus

# Accepting takes milliseconds; the lock's own end is for a gateway that died meanwhile.
_LOCK_SECONDS = 60
_LOCK_WAIT_SECONDS = 10


class UploadSlots:
    """The uploads under way in this process: a killed one takes its count with it. For one event loop."""

    def __init__(self, max_uploads: int, max_uploads_per_key: int) -> None:
        """0: any number."""
        self._max_uploads = max_uploads
        self._max_uploads_per_key = max_uploads_per_key
        self._of_owner: Counter[str | None] = Counter()

    @property
    def taken(self) -> int:
        return self._of_owner.total()

    @contextmanager
    def take(self, owner: str | None) -> Iterator[None]:
        """Raises `TooManyUploadsError`, `TooManyKeyUploadsError`. Without keys nobody has a limit of his own."""
        if self._max_uploads and self.taken >= self._max_uploads:
            raise TooManyUploadsError(self._max_uploads)
        if owner and self._max_uploads_per_key and self._of_owner[owner] >= self._max_uploads_per_key:
            raise TooManyKeyUploadsError(self._max_uploads_per_key)
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
    if services.registry.source_bytes(owner) + _uploaded_bytes(services, owner) + more_bytes > limit_bytes:
        raise KeyStorageFullError(limit_bytes)


@contextmanager
def one_at_a_time(redis: Redis, owner: str | None) -> Iterator[None]:
    """Acceptances of one key come one after another, so that together they cannot pass a limit."""
    if owner is None:
        yield
        return
    lock = redis.lock(f"vsr:lock:owner:{owner}", timeout=_LOCK_SECONDS, blocking_timeout=_LOCK_WAIT_SECONDS)
    if not lock.acquire():
        raise QueueUnavailableError
    try:
        yield
    finally:
        # It took longer than the lock lasts, or Redis is away, and then it ends by itself: that undoes no acceptance.
        with suppress(RedisError):
            lock.release()


def _uploaded_bytes(services: Services, owner: str) -> int:
    total = 0
    for path in services.storage.uploads.glob(f"{owner}-*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
