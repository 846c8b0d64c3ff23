"""The WEBHOOK errand: tell a job's receiver how the job ended, until it has heard it or 24 hours are over.

Killed anywhere, it begins again from `webhook.json`: at worst an event is sent once more under the same id.
"""

import time
from collections.abc import Callable
from datetime import datetime

import structlog

from app.courier.metrics import CourierMetrics
from app.guarded_http import Fault, GuardedHttp, TargetError, TimeLimits
from app.webhook_events import Attempt, EventState, WebhookEvent, WebhookLog, after_attempt, change_log
from app.webhook_signatures import signature_of
from worker.contract.errands import Errand, ErrandKind, Errands
from worker.contract.job import now
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage

log = structlog.get_logger(__name__)

LIMITS = TimeLimits(connect_seconds=5, idle_seconds=10, total_seconds=15)
_OUTCOMES = {
    EventState.DELIVERED: "delivered",
    EventState.GONE: "gone",
    EventState.GIVEN_UP: "given_up",
    EventState.PENDING: "failed",
}


class WebhookDeliverer:
    def __init__(
        self,
        http: GuardedHttp,
        registry: JobRegistry,
        storage: JobStorage,
        errands: Errands,
        metrics: CourierMetrics,
        secret: str,
        *,
        clock: Callable[[], datetime] = now,
        limits: TimeLimits = LIMITS,
    ) -> None:
        self._http = http
        self._registry = registry
        self._storage = storage
        self._errands = errands
        self._metrics = metrics
        self._secret = secret
        self._clock = clock
        self._limits = limits

    def do(self, errand: Errand) -> None:
        # No change, but it makes the end durable where a process died between Redis and storage.
        job = self._registry.change(errand.job_id, lambda current: current)
        if job is None or job.webhook_url is None:
            self._errands.finish(errand)
            return
        progress = self._registry.progress(job.id)
        events = change_log(self._storage, job.id, lambda before: before.with_end_of(job, self._clock(), progress))
        for event in events.events if events else ():
            if event.next_attempt_at and event.next_attempt_at <= self._clock():
                events = self._attempt(job.id, job.webhook_url, event)
        self._put_down(errand, events)

    def _put_down(self, errand: Errand, events: WebhookLog | None) -> None:
        """Until the next attempt. `events` is None where the job is gone."""
        if events is not None and events.next_attempt_at is not None:
            self._errands.postpone(errand, max(0.0, (events.next_attempt_at - self._clock()).total_seconds()))
            return
        self._errands.finish(errand)
        # Replayed in the moment before: that must not wait for somebody to look.
        events = change_log(self._storage, errand.job_id, lambda before: before)
        if events is not None and events.next_attempt_at is not None:
            self._errands.put(ErrandKind.WEBHOOK, errand.job_id)

    def _attempt(self, job_id: str, url: str, event: WebhookEvent) -> WebhookLog | None:
        attempt, retry_after = self._call(url, event)

        def note(before: WebhookLog) -> WebhookLog:
            current = next((one for one in before.events if one.id == event.id), event)
            return before.with_event(after_attempt(current, attempt, retry_after))

        events = change_log(self._storage, job_id, note)
        noted = next((one for one in events.events if one.id == event.id), None) if events else None
        if noted:
            self._metrics.deliveries.labels(_OUTCOMES[noted.state]).inc()
            log.info(
                "webhook_attempted",
                event_type=event.type,
                state=noted.state,
                status_code=attempt.status_code,
                fault=attempt.fault,
                next_attempt_at=noted.next_attempt_at and noted.next_attempt_at.isoformat(),
            )
        return events

    def _call(self, url: str, event: WebhookEvent) -> tuple[Attempt, str | None]:
        """The attempt, and what the receiver said about the next."""
        moment = self._clock()
        began = time.monotonic()
        body = event.body.encode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature_of(self._secret, event.id, int(moment.timestamp()), body),
        }
        status_code: int | None = None
        fault: Fault | None = None
        retry_after: str | None = None
        try:
            # A redirect is an answer that is not 2xx: the signature is for this receiver and no other.
            with self._http.open("POST", url, self._limits, headers=headers, content=body) as answer:
                status_code = answer.status
                retry_after = answer.headers.get("retry-after")
        except TargetError as error:
            fault = error.fault
        seconds = round(time.monotonic() - began, 3)
        return Attempt(at=moment, status_code=status_code, fault=fault, seconds=seconds), retry_after
