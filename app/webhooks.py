"""Webhooks over HTTP: what became of a job's, and telling it once more."""

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, Field

from app.dependencies import ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    JobNotFoundError,
    NotFinishedError,
    QueueUnavailableError,
    UnauthorizedError,
    WebhookNotFoundError,
    responses,
)
from app.guarded_http import shown_url
from app.jobs import JobRecordDep
from app.webhook_events import Attempt, EventState, EventType, WebhookLog, change_log, read_log
from worker.contract.errands import ErrandKind, Errands
from worker.contract.job import JobRecord, now

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_api_key)])


class WebhookDelivery(BaseModel):
    """One event and the attempts to deliver it."""

    id: str = Field(description="The header `webhook-id`: the same in every attempt.")
    type: EventType
    created_at: AwareDatetime
    state: EventState
    attempts: list[Attempt] = Field(description="Oldest first; at most the last hundred.")
    next_attempt_at: AwareDatetime | None = Field(description="Null: no more.")


class Webhook(BaseModel):
    url: str = Field(description="Without its query, which may be a secret.")
    pending: bool = Field(description="Something is still to be delivered.")
    events: list[WebhookDelivery] = Field(description="Oldest first.")


_problems = responses(
    UnauthorizedError, JobNotFoundError, WebhookNotFoundError, InvalidRequestError, QueueUnavailableError
)


@router.get("/{job_id}/webhook", summary="What became of a job's webhook", responses=_problems)
def get_webhook(record: JobRecordDep, services: ServicesDep) -> Webhook:
    if record.webhook_url is None:
        raise WebhookNotFoundError(record.id)
    return _present(record, record.webhook_url, read_log(services.storage.folder(record.id)))


@router.post(
    "/{job_id}/webhook/replay",
    status_code=202,
    summary="Deliver the last event once more",
    responses=_problems | responses(NotFinishedError),
)
def replay_webhook(record: JobRecordDep, services: ServicesDep) -> Webhook:
    """At once, and then with the same patience as the first time. The event keeps its id and its words."""
    if record.webhook_url is None:
        raise WebhookNotFoundError(record.id)
    if not record.status.is_final:
        raise NotFinishedError("The job has not ended, so there is nothing to deliver yet.")
    moment = now()
    progress = services.registry.progress(record.id)
    events = change_log(
        services.storage, record.id, lambda before: before.with_end_of(record, moment, progress).replayed(moment)
    )
    if events is None:
        raise JobNotFoundError(record.id)
    Errands(services.redis).put(ErrandKind.WEBHOOK, record.id)
    return _present(record, record.webhook_url, events)


def _present(record: JobRecord, url: str, events: WebhookLog) -> Webhook:
    return Webhook(
        url=shown_url(url),
        # Also where the courier has not come to it yet.
        pending=events.with_end_of(record, now()).next_attempt_at is not None,
        events=[WebhookDelivery.model_validate(event.model_dump(exclude={"body"})) for event in events.events],
    )
