"""Jobs whose source is a URL, and jobs that tell a URL of their end: accepted, shown and replayed by the gateway."""

import httpx2
import pytest

from app.webhook_events import Attempt, after_attempt, change_log
from tests.app.conftest import RunningGateway, StartGateway
from worker.contract.errands import ErrandKind, Errands
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, now

SECRET = "a secret of more than twenty-four letters"
SOURCE_URL = "https://media.example.com/films/my%20film.mov?X-Signature=hidden#t=1"
WEBHOOK_URL = "https://hooks.example.com/vsr?token=hidden"


@pytest.fixture
def open_gateway(start_gateway: StartGateway) -> RunningGateway:
    """One that fetches sources and sends webhooks."""
    return start_gateway(allow_source_url=True, webhook_secret=SECRET)


def submit(gateway: RunningGateway, **body: object) -> httpx2.Response:
    return gateway.http.post("/v1/jobs", json=body)


def submit_form(gateway: RunningGateway, **fields: str) -> httpx2.Response:
    return gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, data=fields)


def ended_job(gateway: RunningGateway) -> str:
    job_id: str = submit(gateway, source_url=SOURCE_URL, webhook_url=WEBHOOK_URL).json()["id"]
    gateway.registry.fail(job_id, JobError(code=FailureCode.SOURCE_UNREACHABLE, message="x"))
    return job_id


def see_all_ends(gateway: RunningGateway) -> None:
    """What a courier notes of each job's ends when it comes to them."""
    for job in gateway.registry.newest(100):
        change_log(gateway.storage, job.id, lambda before, job=job: before.with_end_of(job, now()))  # type: ignore[misc]


def code_of(answer: httpx2.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    code: str = answer.json()["code"]
    return code


# --- a source that is a URL -------------------------------------------------------------------------------------------


def test_a_source_url_becomes_a_durable_job_that_waits_for_the_courier(open_gateway: RunningGateway) -> None:
    # When
    answer = submit(open_gateway, source_url=SOURCE_URL, codec="hevc")

    # Then it is a job like any other, of which the bytes are not known yet
    assert answer.status_code == 202
    job = answer.json()
    assert (job["status"], job["queue_position"], job["options"]["codec"]) == ("queued", 1, "hevc")
    assert job["source"] | {"name": "my film.mov", "size_bytes": None, "sha256": None} == job["source"]
    record = open_gateway.storage.read_record(job["id"])
    assert record is not None
    assert record.source_url == SOURCE_URL
    assert open_gateway.files() == [f"jobs/{job['id']}/job.json"]
    # And the courier gets it, not a worker
    errand = Errands(open_gateway.redis).claim(ErrandKind.FETCH, 60)
    assert errand is not None
    assert errand.job_id == job["id"]
    assert open_gateway.redis.keys("rq:queue:*") == []


def test_nobody_is_shown_the_secrets_of_a_url(open_gateway: RunningGateway) -> None:
    job_id = submit(open_gateway, source_url=SOURCE_URL, webhook_url=WEBHOOK_URL).json()["id"]
    job = open_gateway.http.get(f"/v1/jobs/{job_id}")
    assert job.json()["source"]["url"] == "https://media.example.com/films/my%20film.mov"
    pages = [job.text, open_gateway.http.get("/v1/jobs").text, open_gateway.http.get(f"/v1/jobs/{job_id}/webhook").text]
    assert all("hidden" not in page for page in pages)


def test_the_user_may_name_the_file(open_gateway: RunningGateway) -> None:
    named = submit(open_gateway, source_url=SOURCE_URL, filename="../holiday.mkv").json()
    nameless = submit(open_gateway, source_url="https://example.com").json()
    assert (named["source"]["name"], nameless["source"]["name"]) == ("holiday.mkv", "video")


def test_source_urls_are_off_unless_the_operator_wants_them(gateway: RunningGateway) -> None:
    assert code_of(submit(gateway, source_url=SOURCE_URL)) == "source_url_disabled"
    assert gateway.files() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/clip.mp4",
        "file:///etc/passwd",
        "https://user:password@example.com/clip.mp4",
        "https://127.0.0.1/clip.mp4",
        "https://0x7f.1/clip.mp4",
        "https://169.254.169.254/latest/meta-data/",
        "https://[fd00:ec2::254]/",
        "https://example.com:22/",
        "concat:a|b",
        "",
    ],
)
def test_what_is_no_url_of_the_open_internet_is_refused_at_once(open_gateway: RunningGateway, url: str) -> None:
    assert code_of(submit(open_gateway, source_url=url)) == "url_refused"
    assert code_of(submit(open_gateway, source_url=SOURCE_URL, webhook_url=url)) == "url_refused"
    assert open_gateway.files() == []


def test_a_job_has_one_source(open_gateway: RunningGateway) -> None:
    assert code_of(submit(open_gateway, source_url=SOURCE_URL, upload_id="clip")) == "invalid_request"
    assert code_of(submit(open_gateway, source_url=["https://example.com"])) == "invalid_request"
    assert code_of(submit(open_gateway, source_url=None)) == "invalid_request"


def test_a_repeated_request_for_a_url_gives_the_same_job(open_gateway: RunningGateway) -> None:
    def ask(**body: str) -> httpx2.Response:
        return open_gateway.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "one"})

    first, second = ask(source_url=SOURCE_URL), ask(source_url=SOURCE_URL)
    assert first.json()["id"] == second.json()["id"]
    assert code_of(ask(source_url="https://example.com/other.mp4")) == "idempotency_key_reused"
    assert code_of(ask(source_url=SOURCE_URL, webhook_url=WEBHOOK_URL)) == "idempotency_key_reused"
    assert Errands(open_gateway.redis).count(ErrandKind.FETCH) == 1


def test_a_job_that_waits_for_its_source_can_be_canceled_and_deleted(open_gateway: RunningGateway) -> None:
    for method, path in (("POST", "/cancel"), ("DELETE", "")):
        job_id = submit(open_gateway, source_url=SOURCE_URL).json()["id"]
        assert open_gateway.http.request(method, f"/v1/jobs/{job_id}{path}").is_success
    assert open_gateway.http.get(f"/v1/jobs/{job_id}").status_code == 404


# --- a URL that is told -----------------------------------------------------------------------------------------------


def test_a_webhook_can_be_asked_for_in_a_form_and_in_json(open_gateway: RunningGateway) -> None:
    open_gateway.http.put("/v1/uploads/clip", content=b"abc")
    for answer in (
        submit_form(open_gateway, webhook_url=WEBHOOK_URL, crf="20"),
        submit(open_gateway, upload_id="clip", webhook_url=WEBHOOK_URL),
        submit(open_gateway, source_url=SOURCE_URL, webhook_url=WEBHOOK_URL),
    ):
        assert answer.status_code == 202
        job = answer.json()
        assert job["links"]["webhook"] == f"/v1/jobs/{job['id']}/webhook"
        webhook = open_gateway.http.get(job["links"]["webhook"]).json()
        assert webhook == {"url": "https://hooks.example.com/vsr", "pending": False, "events": []}


def test_webhooks_are_off_without_a_secret(gateway: RunningGateway) -> None:
    gateway.http.put("/v1/uploads/clip", content=b"abc")
    before = gateway.files()
    assert code_of(submit(gateway, upload_id="clip", webhook_url=WEBHOOK_URL)) == "webhook_disabled"
    assert code_of(submit_form(gateway, webhook_url=WEBHOOK_URL)) == "webhook_disabled"
    assert gateway.files() == before
    # An empty field of a form is none
    assert submit_form(gateway, webhook_url="").status_code == 202


def test_a_job_without_a_webhook_says_so(open_gateway: RunningGateway) -> None:
    job = submit_form(open_gateway).json()
    assert job["links"]["webhook"] is None
    path = f"/v1/jobs/{job['id']}/webhook"
    assert code_of(open_gateway.http.get(path), 404) == "webhook_not_found"
    assert code_of(open_gateway.http.post(f"{path}/replay"), 404) == "webhook_not_found"
    assert code_of(open_gateway.http.get(f"/v1/jobs/{'0' * 20}/webhook"), 404) == "job_not_found"


def test_an_end_is_pending_before_the_courier_has_seen_it(open_gateway: RunningGateway) -> None:
    path = f"/v1/jobs/{ended_job(open_gateway)}/webhook"
    assert open_gateway.http.get(path).json() | {"pending": True, "events": []} == open_gateway.http.get(path).json()


def note_attempt(gateway: RunningGateway, job_id: str, status_code: int) -> None:
    """What the courier does with the first event of an ended job, answered like this."""
    record = gateway.registry.get(job_id)
    assert record is not None
    attempt = Attempt(at=now(), status_code=status_code, seconds=0.25)
    change_log(gateway.storage, job_id, lambda before: before.with_end_of(record, now()))
    change_log(
        gateway.storage, job_id, lambda log: log.with_event(after_attempt(log.events[0], attempt, retry_after=None))
    )


def test_attempts_are_shown_with_time_and_outcome(open_gateway: RunningGateway) -> None:
    # Given a first attempt that was answered with an error
    job_id = ended_job(open_gateway)
    note_attempt(open_gateway, job_id, status_code=503)

    # When
    webhook = open_gateway.http.get(f"/v1/jobs/{job_id}/webhook").json()

    # Then
    assert webhook["pending"] is True
    [event] = webhook["events"]
    assert (event["type"], event["state"]) == ("job.failed", "pending")
    assert event["next_attempt_at"] > event["attempts"][0]["at"]
    assert event["attempts"] == [{"at": event["attempts"][0]["at"], "status_code": 503, "fault": None, "seconds": 0.25}]


def test_an_event_can_be_replayed(open_gateway: RunningGateway) -> None:
    # Given an event that was delivered
    job_id = ended_job(open_gateway)
    note_attempt(open_gateway, job_id, status_code=200)
    errands = Errands(open_gateway.redis)
    errand = errands.claim(ErrandKind.WEBHOOK, 60)
    assert errand is not None
    errands.finish(errand)

    # When
    answer = open_gateway.http.post(f"/v1/jobs/{job_id}/webhook/replay")

    # Then
    assert answer.status_code == 202
    assert answer.json()["events"][0]["state"] == "pending"
    assert len(answer.json()["events"][0]["attempts"]) == 1
    assert errands.claim(ErrandKind.WEBHOOK, 60) is not None


def test_there_is_nothing_to_replay_before_the_end(open_gateway: RunningGateway) -> None:
    job_id = submit(open_gateway, source_url=SOURCE_URL, webhook_url=WEBHOOK_URL).json()["id"]
    assert code_of(open_gateway.http.post(f"/v1/jobs/{job_id}/webhook/replay"), 409) == "not_finished"


def test_another_keys_webhook_is_not_there(start_gateway: StartGateway) -> None:
    gateway = start_gateway(
        api_keys="one-key-of-ours,another-key-of-ours", webhook_secret=SECRET, allow_source_url=True
    )
    mine, others = {"X-API-Key": "one-key-of-ours"}, {"X-API-Key": "another-key-of-ours"}
    body = {"source_url": SOURCE_URL, "webhook_url": WEBHOOK_URL}
    job_id = gateway.http.post("/v1/jobs", json=body, headers=mine).json()["id"]
    gateway.http.post(f"/v1/jobs/{job_id}/cancel", headers=mine)
    path = f"/v1/jobs/{job_id}/webhook"
    assert gateway.http.get(path, headers=mine).status_code == 200
    assert code_of(gateway.http.get(path, headers=others), 404) == "job_not_found"
    assert code_of(gateway.http.post(f"{path}/replay", headers=others), 404) == "job_not_found"
    assert code_of(gateway.http.get(path), 401) == "unauthorized"


def test_an_end_that_nobody_was_told_of_yet_outlives_a_retry(open_gateway: RunningGateway) -> None:
    # Given a job that has ended, and a courier that has not come to it
    job_id = submit_form(open_gateway, webhook_url=WEBHOOK_URL).json()["id"]
    open_gateway.registry.fail(job_id, JobError(code=FailureCode.NOT_A_VIDEO, message="x"))

    # When it is tried again, and ends again
    assert open_gateway.http.post(f"/v1/jobs/{job_id}/retry").json()["status"] == "queued"
    between = open_gateway.http.get(f"/v1/jobs/{job_id}/webhook").json()
    open_gateway.http.post(f"/v1/jobs/{job_id}/cancel")
    see_all_ends(open_gateway)

    # Then both ends are told
    assert (between["pending"], [event["type"] for event in between["events"]]) == (True, ["job.failed"])
    events = open_gateway.http.get(f"/v1/jobs/{job_id}/webhook").json()["events"]
    assert [event["type"] for event in events] == ["job.failed", "job.canceled"]
    assert len({event["id"] for event in events}) == 2
