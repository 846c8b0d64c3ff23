"""A job as it goes on: told by the service as it happens (server-sent events), or asked for where that is not so."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
from pydantic import ValidationError

from app.client.errors import (
    ForeignResponseError,
    NotFoundResponseError,
    ServiceUnreachableError,
    TryLaterResponseError,
)
from app.client.service import PASSING_ERRORS, Service
from app.schemas import Job

# The service says something at least every 15 s. Longer silence is a proxy that holds the events back, or a dead line.
_SILENCE_SECONDS = 40.0
# Where something ends each stream as soon as it has begun, the service is not asked more often than this.
_LISTEN_AGAIN_SECONDS = 1.0


class _NoEventsError(Exception):
    """The service, or what stands before it, does not let events through."""


async def follow(service: Service, job_id: str, *, patience_seconds: float, poll_seconds: float) -> AsyncGenerator[Job]:
    """The job as it is, then after each change; the last one is final: succeeded, failed or canceled.

    A service that is away for less than `patience_seconds`, such as one that restarts, is waited for.
    """
    try:
        async with aclosing(_listen(service, job_id, patience_seconds)) as jobs:
            async for job in jobs:
                yield job
    except _NoEventsError:
        async with aclosing(_poll(service, job_id, patience_seconds, poll_seconds)) as jobs:
            async for job in jobs:
                yield job


async def _listen(service: Service, job_id: str, patience_seconds: float) -> AsyncGenerator[Job]:
    patience = service.patience(patience_seconds)
    last_event_id = ""
    while True:
        has_told = False
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        try:
            async with service.line.stream(f"/v1/jobs/{job_id}/events", headers, _SILENCE_SECONDS) as stream:
                _refuse_other_than_events(service, stream.response)
                patience.renew()  # it is there, even where a proxy ends the stream before anything changes
                async with aclosing(stream.events()) as events:
                    async for event in events:
                        last_event_id = event.id or last_event_id
                        if event.event not in ("status", "progress") or not event.data:
                            continue
                        has_told = True
                        job = _job(event.data, service)
                        yield job
                        if job.status.is_final:
                            return
            if not last_event_id:
                raise _NoEventsError  # not even the first, which is sent at once
            # The service shuts down, or a proxy has had enough of a long answer.
            raise ServiceUnreachableError(service.line.url, "the stream of events ended")
        except PASSING_ERRORS as error:
            if isinstance(error, ServiceUnreachableError) and error.was_silent and not has_told:
                raise _NoEventsError from error
            await service.wait_after(error, patience, at_least_seconds=_LISTEN_AGAIN_SECONDS)


def _refuse_other_than_events(service: Service, response: httpx2.Response) -> None:
    try:
        service.check(response)
    except NotFoundResponseError as error:
        if error.problem.code == "job_not_found":
            raise
        raise _NoEventsError from error  # a service of before there were events
    except TryLaterResponseError as error:
        if error.problem.status != 429:
            raise
        raise _NoEventsError from error  # too many listen already
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        raise _NoEventsError


def _job(data: str, service: Service) -> Job:
    try:
        return Job.model_validate_json(data)
    except ValidationError as error:
        raise ForeignResponseError(f"{service.line.url} did not tell events as this service does") from error


async def _poll(service: Service, job_id: str, patience_seconds: float, poll_seconds: float) -> AsyncGenerator[Job]:
    patience = service.patience(patience_seconds)
    seen: Job | None = None
    while True:
        try:
            job = await service.ask(Job, "GET", f"/v1/jobs/{job_id}")
        except PASSING_ERRORS as error:
            await service.wait_after(error, patience)
            continue
        patience.renew()
        if job != seen:
            yield job
        if job.status.is_final:
            return
        seen = job
        await service.line.pause(poll_seconds)
