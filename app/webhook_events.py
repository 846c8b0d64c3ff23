"""The ends of a job that its receiver is told of: `webhook.json`, written by the courier, read by the API.

    pending ──2xx──▶ delivered
       │  └──410──▶ gone
       └──no attempt left──▶ given_up          (each of the three, replayed: pending again, from the start)

An end becomes an event, with its words, when the courier first sees it. Until then the record itself, which is durable
with the end, stands for it: so no crash loses one, and no worker has to write one.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.guarded_http import Fault
from app.schemas import Job, public_job
from worker.contract.job import JobRecord, JobStatus, Progress
from worker.contract.storage import PARTIAL_SUFFIX, JobFolder, JobStorage, write_atomically

PATIENCE = timedelta(hours=24)
# After each failed attempt: 5 s, 1 min, 5 min, 10 min, 30 min, 2 h, 5 h, 8 h, and the last at the end of the 24 hours.
_DELAYS_SECONDS = (5, 60, 300, 600, 1800, 7200, 18000, 28800, 28800)
# So that the events of an outage do not come back all at once.
_JITTER = 0.2
_GONE = 410
_ATTEMPTS_KEPT = 100


class EventType(StrEnum):
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"


class EventState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GONE = "gone"
    """The receiver said so (410)."""
    GIVEN_UP = "given_up"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(_Frozen):
    """One call of the receiver: its status, or why there was none. What it said is neither kept nor read."""

    at: AwareDatetime
    status_code: int | None = None
    fault: Fault | None = None
    seconds: float


class WebhookEvent(_Frozen):
    id: str = Field(description="The same in every attempt: receivers know a repetition by it.")
    type: EventType
    created_at: AwareDatetime
    body: str = Field(description="Sent as it is, every time.")
    state: EventState = EventState.PENDING
    attempts: tuple[Attempt, ...] = ()
    started_at: AwareDatetime = Field(description="When the present round of attempts began: at its end, or a replay.")
    failures: int = Field(0, description="Of the present round.")
    next_attempt_at: AwareDatetime | None = Field(description="None: no more.")


class WebhookLog(_Frozen):
    """Everything about one job's webhook."""

    events: tuple[WebhookEvent, ...] = Field((), description="Oldest first; more than one where a job was retried.")

    @property
    def next_attempt_at(self) -> datetime | None:
        """None: nothing is to be told any more."""
        return min((event.next_attempt_at for event in self.events if event.next_attempt_at), default=None)

    def with_end_of(self, record: JobRecord, moment: datetime, progress: Progress | None = None) -> "WebhookLog":
        """With the event of this job's end, if it is not there yet. `progress`: how far it had come."""
        if not record.status.is_final or record.finished_at is None:
            return self
        # Made of what is durable: after a crash the same end gets the same id.
        event_id = f"msg_{record.id}_{round(record.finished_at.timestamp() * 1000)}"
        if any(event.id == event_id for event in self.events):
            return self
        event_type = {
            JobStatus.SUCCEEDED: EventType.SUCCEEDED,
            JobStatus.FAILED: EventType.FAILED,
            JobStatus.CANCELED: EventType.CANCELED,
        }[record.status]
        body = EventBody(
            type=event_type, timestamp=record.finished_at, data=public_job(record, progress or Progress(), None)
        )
        event = WebhookEvent(
            id=event_id,
            type=event_type,
            created_at=record.finished_at,
            # When the result goes is the gateway's to say, and may change until then.
            body=body.model_dump_json(exclude={"data": {"result": {"expires_at"}}}),
            started_at=moment,
            next_attempt_at=moment,
        )
        return WebhookLog(events=(*self.events, event))

    def with_event(self, event: WebhookEvent) -> "WebhookLog":
        return WebhookLog(events=tuple(event if one.id == event.id else one for one in self.events))

    def replayed(self, moment: datetime) -> "WebhookLog":
        """With the last event to be told once more, as if it were new."""
        *earlier, last = self.events
        again = {"state": EventState.PENDING, "started_at": moment, "failures": 0, "next_attempt_at": moment}
        return WebhookLog(events=(*earlier, last.model_copy(update=again)))


class EventBody(BaseModel):
    """What receivers get."""

    type: EventType
    timestamp: AwareDatetime
    data: Job = Field(description="As GET /v1/jobs/{id} shows it.")


def after_attempt(event: WebhookEvent, attempt: Attempt, retry_after: str | None) -> WebhookEvent:
    """What becomes of the event. `retry_after`: the header's value, if there was one."""
    moment = attempt.at + timedelta(seconds=attempt.seconds)
    changes: dict[str, object] = {"attempts": (*event.attempts, attempt)[-_ATTEMPTS_KEPT:], "next_attempt_at": None}
    if attempt.status_code is not None and 200 <= attempt.status_code < 300:
        changes["state"] = EventState.DELIVERED
    elif attempt.status_code == _GONE:
        changes["state"] = EventState.GONE
    else:
        following = _next_attempt(event, moment, retry_after)
        changes |= {"failures": event.failures + 1, "next_attempt_at": following}
        changes["state"] = EventState.PENDING if following else EventState.GIVEN_UP
    return event.model_copy(update=changes)


def read_log(folder: JobFolder) -> WebhookLog:
    try:
        return WebhookLog.model_validate_json(folder.webhook.read_bytes())
    except FileNotFoundError:
        return WebhookLog()


def change_log(storage: JobStorage, job_id: str, change: Callable[[WebhookLog], WebhookLog]) -> WebhookLog | None:
    """Change it durably, one at a time among all processes. None: the job is gone."""
    folder = storage.folder(job_id)
    with storage.locked(job_id) as is_there:
        if not is_there:
            return None
        for written in (folder.webhook, folder.record):  # half, by somebody who died: those who live wait for us
            for abandoned in folder.path.glob(f"{written.name}.*{PARTIAL_SUFFIX}"):
                abandoned.unlink(missing_ok=True)
        before = read_log(folder)
        after = change(before)
        if after != before:
            try:
                write_atomically(folder.webhook, after.model_dump_json(indent=2).encode())
            except FileNotFoundError:  # deleted while we waited for our turn
                return None
        return after


def _next_attempt(event: WebhookEvent, moment: datetime, retry_after: str | None) -> datetime | None:
    last = event.started_at + PATIENCE
    if event.failures >= len(_DELAYS_SECONDS) or moment >= last:
        return None
    jitter = random.SystemRandom().uniform(1 - _JITTER, 1 + _JITTER)
    wanted = moment + timedelta(seconds=_DELAYS_SECONDS[event.failures] * jitter)
    return min(max(wanted, _moment_of(retry_after, moment)), last)


def _moment_of(retry_after: str | None, moment: datetime) -> datetime:
    """Both forms of RFC 9110: seconds, or a date. What is neither asks for nothing."""
    if retry_after is None:
        return moment
    if retry_after.isdecimal():
        return moment + min(PATIENCE, timedelta(seconds=int(retry_after[:9])))
    try:
        asked = parsedate_to_datetime(retry_after)
        return (asked if asked.tzinfo else asked.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # a zone, or with it a moment, beyond all calendars
        return moment
