"""A job's changes as they happen, as server-sent events.

Nothing announces a change: the gateway looks at all jobs that anyone listens to, twice a second, in one question to
Redis, and each listener is told the latest when its connection takes it. Whoever listens holds no thread and no
connection to Redis, and misses nothing that lasts, whatever fails in between.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Annotated, cast

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from app.dependencies import OwnerDep, Services, ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    JobNotFoundError,
    QueueUnavailableError,
    TooManyKeyListenersError,
    TooManyListenersError,
    UnauthorizedError,
    responses,
)
from app.jobs import JobIdParameter, existing_job, present_job
from app.limits import listener_slot
from worker.contract.job import JobRecord
from worker.contract.redis_faults import is_unavailable

log = structlog.get_logger(__name__)

_LOOK_EVERY_SECONDS = 0.5
_RECONNECT_AFTER_MS = 2000
# Proxies close what is silent for a minute.
_KEEPALIVE_SECONDS = 15.0

# As OpenAPI 3.2 describes server-sent events.
_EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["status", "progress"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Job"},
        },
        "id": {"type": "string"},
        "retry": {"type": "integer"},
    },
}

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], dependencies=[Depends(require_api_key)])


@dataclass(frozen=True)
class JobState:
    """A job as one look found it."""

    event_id: str
    """Another one after every change. Of an ended job the same for ever, also when Redis has forgotten its progress."""
    content: str
    """The whole job, as JSON."""
    lasting: str
    """The same without its progress."""
    has_ended: bool
    """Nothing more will happen to it by itself."""
    seen_at: float
    """Monotonic seconds, when the look was over."""


@dataclass
class _Watched:
    listeners: int = 0
    mark: bytes | None = None
    """What the registry said at the last look. None: nobody has looked yet."""
    state: JobState | None = None
    """None: nobody has looked yet, or the job is gone."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change; for the one after it there is another."""

    @property
    def is_gone(self) -> bool:
        return self.mark is not None and self.state is None


class JobEvents:
    """The jobs to which clients of this gateway listen. For one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._watched: dict[str, _Watched] = {}
        self._somebody_listens = asyncio.Event()
        self._is_closed = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        # In a context of its own: what it logs belongs to no request.
        task = asyncio.create_task(self._work(), context=Context())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def close(self) -> None:
        """End every stream: the server would wait for them before it stops."""
        self._is_closed = True
        for watched in self._watched.values():
            watched.changed.set()

    def listeners(self) -> int:
        """How many there are now, of all jobs. To be called by any thread: the copy is made in one step."""
        return sum(watched.listeners for watched in tuple(self._watched.values()))

    @contextmanager
    def listening(self, job_id: str) -> Iterator[_Watched]:
        watched = self._watched.setdefault(job_id, _Watched())
        watched.listeners += 1
        self._somebody_listens.set()
        try:
            yield watched
        finally:
            watched.listeners -= 1
            if watched.listeners == 0:
                del self._watched[job_id]
            if not self._watched:
                self._somebody_listens.clear()

    async def next_state(self, watched: _Watched, known: JobState, since: float) -> JobState | None:
        """Another than `known`, and not one that was over before `since`. None: the job is gone, or the service stops.

        Raises `TimeoutError` where nothing happens for a while.
        """
        async with asyncio.timeout(_KEEPALIVE_SECONDS):
            while not (self._is_closed or watched.is_gone):
                state = watched.state
                if state is not None and state.event_id != known.event_id and state.seen_at >= since:
                    return state
                await watched.changed.wait()
        return None

    async def _work(self) -> None:
        limiter = CapacityLimiter(1)  # a thread of its own, however many requests wait for one
        is_in_trouble = False
        while True:
            await self._somebody_listens.wait()
            marks = {job_id: watched.mark for job_id, watched in self._watched.items()}
            try:
                seen = await to_thread.run_sync(self._look_again, marks, limiter=limiter)
                is_in_trouble = False
            except Exception as error:  # a bug, or a disk that fails: nobody else would look again
                if not is_in_trouble:
                    is_known = isinstance(error, RedisError) and is_unavailable(error)
                    log.warning("those who listen to jobs hear nothing for now", exc_info=not is_known)
                is_in_trouble, seen = True, {}
            for job_id, (mark, state) in seen.items():
                if (watched := self._watched.get(job_id)) is not None:
                    watched.mark, watched.state = mark, state
                    watched.changed.set()
                    watched.changed = asyncio.Event()
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    def _look_again(self, marks: Mapping[str, bytes | None]) -> dict[str, tuple[bytes, JobState | None]]:
        """At those that have changed."""
        marks_now = self._services.registry.marks(list(marks))
        return {
            job_id: (mark, self._look(job_id, mark))
            for job_id, mark in zip(marks, marks_now, strict=True)
            if mark != marks[job_id]
        }

    def _look(self, job_id: str, mark: bytes) -> JobState | None:
        record = self._services.registry.get(job_id)
        return None if record is None else state_of(self._services, record, mark)


def state_of(services: Services, record: JobRecord, mark: bytes) -> JobState:
    """`mark`: the registry's, from before the record was read: what comes in between is then seen at the next look."""
    job = present_job(services, record)
    has_ended = record.status.is_final and not record.wants_partial_result
    event_id = str(record.revision)
    return JobState(
        event_id=event_id if has_ended else f"{event_id}-{hashlib.blake2s(mark, digest_size=6).hexdigest()}",
        content=job.model_dump_json(),
        lasting=job.model_dump_json(exclude={"progress"}),
        has_ended=has_ended,
        seen_at=time.monotonic(),
    )


@router.get(
    "/events",
    summary="Follow a job",
    dependencies=[Depends(listener_slot)],
    response_class=Response,
    responses={
        200: {"description": "The events.", "content": {"text/event-stream": {"itemSchema": _EVENT_SCHEMA}}},
        204: {"description": "`Last-Event-ID` names the end of the job: nothing more will come. EventSource stops."},
        **responses(
            UnauthorizedError,
            JobNotFoundError,
            InvalidRequestError,
            TooManyListenersError,
            TooManyKeyListenersError,
            QueueUnavailableError,
        ),
    },
)
async def get_events(
    job_id: JobIdParameter,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    last_event_id: Annotated[
        str | None, Header(description="`id` of the last event that was seen; EventSource sends it by itself.")
    ] = None,
) -> Response:
    """Server-sent events: `progress` when only the progress has changed, else `status`. Each holds the whole job.

    The first one tells the present state. After the `status` of an ended job the stream ends; before that, connect
    again: nothing that lasts is missed.
    """
    since = time.monotonic()

    def look() -> JobState:
        [mark] = services.registry.marks([job_id])
        return state_of(services, existing_job(job_id, services, owner), mark)

    state = await run_in_threadpool(look)
    if state.has_ended and last_event_id == state.event_id:
        return Response(status_code=204)
    events = cast(JobEvents, request.state.job_events)
    return EventSourceResponse(
        _stream(events, job_id, state, since, is_known=last_event_id == state.event_id),
        # Proxies shall pass on what comes when it comes.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _stream(
    events: JobEvents, job_id: str, state: JobState, since: float, *, is_known: bool
) -> AsyncIterator[bytes]:
    """`is_known`: the client has seen `state` already."""
    if is_known:
        yield format_sse_event(retry=_RECONNECT_AFTER_MS)
    else:
        yield format_sse_event(event="status", data_str=state.content, id=state.event_id, retry=_RECONNECT_AFTER_MS)
    with events.listening(job_id) as watched:
        while not state.has_ended:
            try:
                found = await events.next_state(watched, state, since)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            if found is None:
                return
            kind = "progress" if found.lasting == state.lasting else "status"
            state = found
            yield format_sse_event(event=kind, data_str=state.content, id=state.event_id)
