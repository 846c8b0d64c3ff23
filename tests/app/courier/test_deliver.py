"""Every end of a job reaches its receiver, signed, at least once, and at most for a day."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from app.client import InvalidWebhookError, verify_webhook
from app.courier.deliver import WebhookDeliverer
from app.guarded_http import Fault, GuardedHttp, TargetPolicy, TimeLimits
from app.webhook_events import EventState, WebhookEvent, change_log, read_log
from app.webhook_signatures import signature_of, signing_key
from tests.app.courier.conftest import Desk, OtherHost, StartHost, answer, answers
from worker.contract.errands import ErrandKind
from worker.contract.failure import FailureCode
from worker.contract.job import Container, JobError, JobStatus, ResultInfo

SECRET = "whsec_" + "c2VjcmV0IG9mIHR3ZW50eS1mb3VyIGJ5dGVz"
WEBHOOK = ErrandKind.WEBHOOK
LIMITS = TimeLimits(connect_seconds=5, idle_seconds=5, total_seconds=10)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def deliverer(desk: Desk, clock: Clock, *, policy: TargetPolicy | None = None) -> WebhookDeliverer:
    return WebhookDeliverer(
        GuardedHttp(policy or TargetPolicy(allow_loopback=True)),
        desk.registry,
        desk.storage,
        desk.errands,
        desk.metrics,
        SECRET,
        clock=clock,
        limits=LIMITS,
    )


def ended(desk: Desk, url: str) -> str:
    job_id = desk.accept(webhook_url=url)
    desk.registry.fail(job_id, JobError(code=FailureCode.NOT_A_VIDEO, message="it is a poem"))
    return job_id


def event_of(desk: Desk, job_id: str) -> WebhookEvent:
    [event] = read_log(desk.storage.folder(job_id)).events
    return event


def run_for_a_day(desk: Desk, clock: Clock, job_id: str) -> list[float]:
    """Every attempt that is due, when it is due; returns when they were, in seconds from the first."""
    deliver = deliverer(desk, clock)
    began = clock.now
    attempts = []
    while desk.errands.count(WEBHOOK):
        assert clock.now - began < timedelta(hours=48)
        attempts.append((clock.now - began).total_seconds())
        desk.make_due(WEBHOOK, job_id)
        deliver.do(desk.claim(WEBHOOK))
        clock.now = read_log(desk.storage.folder(job_id)).next_attempt_at or clock.now
    return attempts


def test_a_receiver_is_told_in_the_standard_form(desk: Desk, start_host: StartHost) -> None:
    # Given a job that has failed
    host = start_host(answer("204 No Content"))
    job_id = ended(desk, f"{host.url}/hooks?token=mine")

    # When
    deliverer(desk, Clock()).do(desk.claim(WEBHOOK))

    # Then
    [request] = host.requests
    assert request.line == "POST /hooks?token=mine HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    content = verify_webhook(request.headers, request.body, SECRET)
    assert content == json.loads(request.body)
    assert content["type"] == "job.failed"
    finished_at = desk.job(job_id).finished_at
    assert finished_at is not None
    assert datetime.fromisoformat(content["timestamp"]) == finished_at
    assert (content["data"]["id"], content["data"]["status"]) == (job_id, "failed")
    assert content["data"]["error"] == {"code": "not_a_video", "message": "it is a poem"}
    assert "token" not in request.body.decode()

    # And nothing is left to do
    event = event_of(desk, job_id)
    assert (event.state, event.next_attempt_at, len(event.attempts)) == (EventState.DELIVERED, None, 1)
    assert event.attempts[0].status_code == 204
    assert desk.errands.count(WEBHOOK) == 0
    assert desk.count("vsr_webhook_deliveries_total", outcome="delivered") == 1


def test_every_end_has_its_event(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer())
    for end in ("succeeded", "canceled"):
        job_id = desk.accept(webhook_url=host.url)
        if end == "canceled":
            desk.registry.cancel(job_id)
        else:
            result = ResultInfo(container=Container.MP4, width=2, height=2, frames=1, size_bytes=3, sha256="a" * 64)
            desk.registry.succeed(job_id, result)
        deliverer(desk, Clock()).do(desk.claim(WEBHOOK))
        content = json.loads(host.requests[-1].body)
        assert (content["type"], content["data"]["status"]) == (f"job.{end}", end)
        if end == "succeeded":
            assert content["data"]["result"]["url"] == f"/v1/jobs/{job_id}/result"


def test_the_specifications_own_example_has_its_signature() -> None:
    # From the specification of Standard Webhooks
    signature = signature_of(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_that_could_be_guessed_is_refused_without_being_repeated() -> None:
    for secret in ("tiny", "whsec_c2hvcnQ=", "whsec_not base64 at all, though long enough"):
        with pytest.raises(ValueError, match=r"short|base64") as refused:
            signing_key(secret)
        assert secret not in str(refused.value)


def signed(body: bytes = b'{"type": "job.failed"}', *, age_seconds: int = 0, secret: str = SECRET) -> dict[str, str]:
    timestamp = int(datetime.now(UTC).timestamp()) - age_seconds
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": signature_of(secret, "msg_1", timestamp, body),
    }


def test_a_receiver_believes_only_what_is_signed_whole_and_new() -> None:
    body = b'{"type": "job.failed"}'
    assert verify_webhook(signed(), body, SECRET) == {"type": "job.failed"}
    # Also where a new secret is coming in, and two signatures come with it
    both = signed() | {"Webhook-Signature": "v1,b2xk " + signed()["Webhook-Signature"]}
    assert verify_webhook(both, body, SECRET) == {"type": "job.failed"}

    for headers, received in (
        (signed(), b'{"type": "job.succeeded"}'),
        (signed() | {"Webhook-Id": "msg_2"}, body),
        (signed() | {"Webhook-Timestamp": str(int(datetime.now(UTC).timestamp()) - 1)}, body),
        (signed(secret="another secret of thirty letters"), body),
        (signed(age_seconds=301), body),
        (signed(age_seconds=-301), body),
        (signed() | {"Webhook-Timestamp": "today"}, body),
        (signed() | {"Webhook-Signature": ""}, body),
        ({}, body),
    ):
        with pytest.raises(InvalidWebhookError):
            verify_webhook(headers, received, SECRET)


# --- a receiver that does not hear ------------------------------------------------------------------------------------


def test_a_receiver_that_is_down_for_ten_minutes_still_gets_its_event(desk: Desk, start_host: StartHost) -> None:
    # Given a receiver that answers with errors for ten minutes
    clock = Clock()
    host = start_host(answer("502 Bad Gateway"))
    job_id = ended(desk, host.url)
    deliver = deliverer(desk, clock)
    up_at = clock.now + timedelta(minutes=10)
    while clock.now < up_at:
        desk.make_due(WEBHOOK, job_id)
        deliver.do(desk.claim(WEBHOOK))
        following = event_of(desk, job_id).next_attempt_at
        assert following is not None
        clock.now = following
    failed = len(host.requests)

    # When it is up again (at the same address, as far as anyone can see)
    host.requests.clear()
    up = start_host(answer())
    desk.registry.change(job_id, lambda job: job.model_copy(update={"webhook_url": up.url}))
    desk.make_due(WEBHOOK, job_id)
    deliver.do(desk.claim(WEBHOOK))

    # Then it hears of the very event, once, within half an hour
    assert failed == 4
    assert clock.now - up_at < timedelta(minutes=20)
    event = event_of(desk, job_id)
    assert event.state is EventState.DELIVERED
    assert up.requests[0].headers["webhook-id"] == event.id
    assert [attempt.status_code for attempt in event.attempts] == [502] * 4 + [200]


def test_the_attempts_spread_over_a_day_and_then_end(desk: Desk, start_host: StartHost) -> None:
    # Given a receiver that never answers well
    host = start_host(answer("500 Internal Server Error", body=b"a" * 1_000_000))
    job_id = ended(desk, host.url)

    # When
    attempts = run_for_a_day(desk, Clock(), job_id)

    # Then
    assert len(attempts) == len(host.requests) == 10
    between = [after - before for before, after in itertools.pairwise(attempts)]
    for seconds, wanted in zip(between[:-1], (5, 60, 300, 600, 1800, 7200, 18000, 28800), strict=True):
        assert 0.75 * wanted <= seconds <= 1.3 * wanted
    assert 16 * 3600 < attempts[-1] <= 24 * 3600 + 60
    event = event_of(desk, job_id)
    assert (event.state, event.failures) == (EventState.GIVEN_UP, 10)
    assert desk.count("vsr_webhook_deliveries_total", outcome="failed") == 9
    assert desk.count("vsr_webhook_deliveries_total", outcome="given_up") == 1
    # Every attempt says the same, under the same id, at its own time
    assert len({(request.headers["webhook-id"], request.body) for request in host.requests}) == 1
    assert len({request.headers["webhook-timestamp"] for request in host.requests}) == 10


def test_two_events_of_one_outage_do_not_come_back_at_the_same_moment(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer("503 Service Unavailable"))
    clock = Clock()
    following = set()
    for _ in range(3):
        job_id = ended(desk, host.url)
        deliverer(desk, clock).do(desk.claim(WEBHOOK))
        following.add(event_of(desk, job_id).next_attempt_at)
    assert len(following) == 3


def test_a_receiver_that_is_gone_is_asked_no_more(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer("410 Gone"))
    job_id = ended(desk, host.url)
    assert run_for_a_day(desk, Clock(), job_id) == [0]
    assert event_of(desk, job_id).state is EventState.GONE
    assert desk.count("vsr_webhook_deliveries_total", outcome="gone") == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_a_receiver_that_asks_for_patience_gets_it(desk: Desk, start_host: StartHost, as_date: bool) -> None:
    clock = Clock()
    asked = format_datetime(clock.now + timedelta(hours=1), usegmt=True) if as_date else "3600"
    job_id = ended(desk, start_host(answer("503 Service Unavailable", Retry_After=asked)).url)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))
    following = event_of(desk, job_id).next_attempt_at
    assert following is not None
    assert timedelta(minutes=59) <= following - clock.now <= timedelta(minutes=61)


@pytest.mark.parametrize(
    "asked",
    [
        "Fri, 31 Dec 2027 23:59:59 +99999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Sat, 01 Jan 0001 00:00:00 +2359",
    ],
)
def test_an_answer_that_asks_for_patience_beyond_all_calendars_is_an_attempt_like_any_other(
    desk: Desk, start_host: StartHost, asked: str
) -> None:
    clock = Clock()
    job_id = ended(desk, start_host(answer("503 Service Unavailable", Retry_After=asked)).url)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))
    event = event_of(desk, job_id)
    assert [attempt.status_code for attempt in event.attempts] == [503]
    assert event.next_attempt_at is not None
    assert clock.now < event.next_attempt_at <= clock.now + timedelta(hours=24)


def test_nobody_can_put_an_event_off_past_the_day(desk: Desk, start_host: StartHost) -> None:
    clock = Clock()
    for asked in ("9" * 30, "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "-5", ""):
        job_id = ended(desk, start_host(answer("503 Service Unavailable", Retry_After=asked)).url)
        deliverer(desk, clock).do(desk.claim(WEBHOOK))
        following = event_of(desk, job_id).next_attempt_at
        assert following is not None
        assert following <= clock.now + timedelta(hours=24)


def test_a_redirect_is_not_followed(desk: Desk, start_host: StartHost) -> None:
    other = start_host(answer())
    host = start_host(answer("307 Temporary Redirect", Location=f"{other.url}/"))
    job_id = ended(desk, host.url)
    deliverer(desk, Clock()).do(desk.claim(WEBHOOK))
    assert event_of(desk, job_id).attempts[0].status_code == 307
    assert event_of(desk, job_id).state is EventState.PENDING
    assert other.requests == []


def test_a_receiver_inside_is_never_called_and_a_dead_one_is_told_from_it(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer())
    strict = TargetPolicy(ports=frozenset({host.port}))
    inside = ended(desk, f"https://127.0.0.1:{host.port}/")
    deliverer(desk, Clock(), policy=strict).do(desk.claim(WEBHOOK))
    assert event_of(desk, inside).attempts[0].fault is Fault.REFUSED
    assert host.requests == []

    dead = ended(desk, "http://127.0.0.1:9/")
    deliverer(desk, Clock()).do(desk.claim(WEBHOOK))
    assert event_of(desk, dead).attempts[0].fault is Fault.UNREACHABLE
    assert event_of(desk, dead).attempts[0].status_code is None


# --- crashes and second ends ------------------------------------------------------------------------------------------


def test_a_courier_that_dies_after_the_call_calls_again_with_the_same_id(desk: Desk, start_host: StartHost) -> None:
    # Given a courier that died before it could note that its call went well
    host = start_host(answer())
    job_id = ended(desk, host.url)
    clock = Clock()
    deliverer(desk, clock).do(desk.claim(WEBHOOK))
    desk.storage.folder(job_id).webhook.unlink()
    for half_written in ("webhook.json.host.1.a.part", "job.json.host.1.a.part"):
        (desk.storage.folder(job_id).path / half_written).write_bytes(b"half")

    # When another takes over
    desk.make_due(WEBHOOK, job_id)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    # Then the receiver can tell
    first, second = host.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert json.loads(first.body) == json.loads(second.body)
    assert desk.files(job_id) == ["job.json", "webhook.json"]


def test_an_event_that_was_delivered_is_not_delivered_again_by_an_emptied_redis(
    desk: Desk, start_host: StartHost
) -> None:
    host = start_host(answer())
    job_id = ended(desk, host.url)
    deliverer(desk, Clock()).do(desk.claim(WEBHOOK))

    desk.redis.flushall()
    desk.registry.change(job_id, lambda job: job)
    deliverer(desk, Clock()).do(desk.claim(WEBHOOK))

    assert len(host.requests) == 1
    assert desk.errands.count(WEBHOOK) == 0


def test_an_event_that_waits_for_its_time_still_does_after_redis_was_emptied(desk: Desk, start_host: StartHost) -> None:
    host = start_host(answer("503 Service Unavailable"))
    job_id = ended(desk, host.url)
    clock = Clock()
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    desk.redis.flushall()
    desk.registry.change(job_id, lambda job: job)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    assert len(host.requests) == 1
    assert desk.errands.count(WEBHOOK) == 1
    assert desk.errands.claim(WEBHOOK, 60) is None


def test_a_replayed_event_is_delivered_once_more(desk: Desk, start_host: StartHost) -> None:
    # Given an event that was given up
    host = start_host(answers(*[answer("500 Oops")] * 10, answer()))
    job_id = ended(desk, host.url)
    clock = Clock()
    run_for_a_day(desk, clock, job_id)

    # When
    change_log(desk.storage, job_id, lambda before: before.replayed(clock.now))
    desk.errands.put(WEBHOOK, job_id)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    # Then
    event = event_of(desk, job_id)
    assert (event.state, len(event.attempts), event.failures) == (EventState.DELIVERED, 11, 0)


def test_a_job_that_was_retried_tells_both_its_ends(desk: Desk, start_host: StartHost) -> None:
    # Given a job whose first end could not be told so far
    host = start_host(answers(answer("503 Service Unavailable"), answer()))
    job_id = ended(desk, host.url)
    clock = Clock()
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    # When it is tried again and ends otherwise
    again = {"status": JobStatus.QUEUED, "error": None, "finished_at": None}
    desk.registry.change(job_id, lambda job: job.model_copy(update=again))
    desk.registry.cancel(job_id)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))
    clock.now += timedelta(minutes=1)
    desk.make_due(WEBHOOK, job_id)
    deliverer(desk, clock).do(desk.claim(WEBHOOK))

    # Then
    assert [json.loads(request.body)["type"] for request in host.requests] == [
        "job.failed",
        "job.canceled",
        "job.failed",
    ]
    assert desk.errands.count(WEBHOOK) == 0


def test_a_deleted_job_has_nothing_more_to_tell(desk: Desk, start_host: StartHost) -> None:
    host: OtherHost = start_host(answer())
    job_id = ended(desk, host.url)
    errand = desk.claim(WEBHOOK)
    desk.registry.remove(job_id)
    deliverer(desk, Clock()).do(errand)
    assert host.requests == []
    assert desk.storage.job_ids() == []
