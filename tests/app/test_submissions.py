"""A job is accepted durably or not at all, from a form or from an upload."""

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.serializers import JSONSerializer

from app.embedded_redis import EmbeddedRedis
from tests.app.conftest import RunningGateway, StartGateway, wait_until
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobRecord, JobStatus, new_job_id
from worker.contract.queue import QUEUE_NAME, TaskQueue
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobFolder, JobStorage


def waiting_tasks(redis: Redis) -> list[str]:
    return Queue(QUEUE_NAME, connection=redis, serializer=JSONSerializer).get_job_ids()


def let_locks_run_out(redis: Redis) -> None:
    """What a gateway that died, or had no Redis, could not let go of."""
    for pattern in ("vsr:idempotency:*:lock", "vsr:lock:*"):
        for key in redis.scan_iter(pattern):
            redis.delete(key)


def submit(gateway: RunningGateway, content: bytes = b"abc", **fields: str) -> httpx2.Response:
    """A form with a file and option fields, as curl and browsers send it."""
    return gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", content)}, data=fields)


def test_a_submitted_form_is_on_disk_in_the_queue_and_answered_with_its_place(gateway: RunningGateway) -> None:
    # When
    answer = submit(gateway, b"video bytes", codec="hevc", crf="21")

    # Then the answer describes the job
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["queue_position"], job["progress"]["fraction"]) == ("queued", 1, 0)
    assert (job["options"]["codec"], job["options"]["crf"], job["options"]["preset"]) == ("hevc", 21, "aligned")
    assert (job["source"]["name"], job["source"]["size_bytes"]) == ("clip.mp4", 11)
    # And it is durable: the record, the source, the task
    record = gateway.storage.read_record(job["id"])
    assert record is not None
    assert record.request_id == answer.headers["X-Request-ID"]
    assert gateway.storage.folder(job["id"]).source.read_bytes() == b"video bytes"
    assert waiting_tasks(gateway.redis) == [f"{job['id']}-plan"]
    assert gateway.http.get(answer.headers["Location"]).json() == job


def test_an_upload_becomes_a_job_by_being_moved(gateway: RunningGateway) -> None:
    # Given
    upload = gateway.http.put("/v1/uploads/clip", content=b"video bytes").json()

    # When
    answer = gateway.http.post("/v1/jobs", json={"upload_id": "clip", "filename": "holiday.mov", "container": "mkv"})

    # Then
    job = answer.json()
    assert answer.status_code == 202
    assert (job["source"]["name"], job["source"]["sha256"]) == ("holiday.mov", upload["sha256"])
    assert job["options"]["container"] == "mkv"
    assert gateway.files() == [f"jobs/{job['id']}/job.json", f"jobs/{job['id']}/source"]

    # And a second time it is used up
    again = gateway.http.post("/v1/jobs", json={"upload_id": "clip"})
    assert (again.status_code, again.json()["code"]) == (404, "upload_not_found")
    assert len(gateway.files()) == 2


def test_option_fields_may_follow_the_file_and_be_empty(gateway: RunningGateway) -> None:
    # Given a form as a browser might order it
    body = form(("file", "clip.mp4", b"abc"), ("crf", None, b""), ("encoder_preset", None, b"fast"))

    # When
    answer = gateway.http.post("/v1/jobs", content=body, headers=FORM_HEADERS)

    # Then
    assert answer.status_code == 202
    assert (answer.json()["options"]["crf"], answer.json()["options"]["encoder_preset"]) == (None, "fast")


def test_options_of_every_kind_arrive_by_a_form(gateway: RunningGateway) -> None:
    # When words, numbers and yes-or-no come as the texts that forms are made of
    chosen = {
        "codec": "vp9",
        "container": "webm",
        "quality": "high",
        "encoder_options": "tune=film:aq-mode=3",
        "deinterlace": "always",
        "on_error": "conceal",
        "drop_unsupported": "true",
        "reuse": "true",
    }
    options = submit(gateway, **chosen).json()["options"]

    # Then
    assert options | chosen == options | {"drop_unsupported": "true", "reuse": "true"}
    assert (options["drop_unsupported"], options["reuse"]) == (True, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("quality", "best"),
        ("codec", "mpeg2"),
        ("container", "avi"),
        ("crf", "64"),
        ("deinterlace", "yes"),
        ("on_error", "ignore"),
        ("drop_unsupported", "perhaps"),
        ("reuse", "sometimes"),
        ("encoder_options", "tune=film; rm -rf"),
        ("encoder_options", "x" * 501),
    ],
)
def test_an_option_that_is_none_is_refused_by_name(gateway: RunningGateway, option: str, value: str) -> None:
    for answer in (
        submit(gateway, **{option: value}),
        gateway.http.post("/v1/jobs", json={"upload_id": "clip", option: value}),
    ):
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "invalid_request")
        assert problem["errors"][0]["location"] == option
    assert gateway.files() == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("encoder_options", "tune", "should be NAME=VALUE:NAME=VALUE, as tune=film:aq-mode=3"),
        ("frame_rate", "24p", "should be a whole number or a fraction, as 24000/1001"),
        ("frame_rate", "0", "should be a whole number or a fraction, as 24000/1001"),
    ],
)
def test_an_option_of_another_form_is_refused_in_words(
    gateway: RunningGateway, option: str, value: str, words: str
) -> None:
    assert submit(gateway, **{option: value}).json()["errors"] == [{"location": option, "message": words}]


@pytest.mark.parametrize("size", [1, 1024 * 1024, 1024 * 1024 + 1, 3_333_333])
def test_a_file_arrives_in_a_form_to_the_last_byte(gateway: RunningGateway, size: int) -> None:
    # Given a file full of what looks like boundaries
    content = (b"\r\n--x" * (size // 5 + 1))[:size]

    # When
    job = gateway.http.post("/v1/jobs", content=form(("file", "a", content)), headers=FORM_HEADERS).json()

    # Then
    assert gateway.storage.folder(job["id"]).source.read_bytes() == content


FORM_HEADERS = {"Content-Type": "multipart/form-data; boundary=xyz"}


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        body += f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + b"--xyz--\r\n"


WRONG_REQUESTS = {
    "no file": (FORM_HEADERS, form(("crf", None, b"20")), 422, "invalid_request"),
    "two files": (FORM_HEADERS, form(("file", "a", b"1"), ("file", "b", b"2")), 422, "invalid_request"),
    "a field twice": (FORM_HEADERS, form(("crf", None, b"1"), ("crf", None, b"2")), 422, "invalid_request"),
    "an empty file": (FORM_HEADERS, form(("file", "a", b"")), 422, "empty_file"),
    "an unknown field": (FORM_HEADERS, form(("colour", None, b"red"), ("file", "a", b"1")), 422, "invalid_request"),
    "a wrong value": (FORM_HEADERS, form(("crf", None, b"64"), ("file", "a", b"1")), 422, "invalid_request"),
    "a wrong value late": (FORM_HEADERS, form(("file", "a", b"1"), ("crf", None, b"x")), 422, "invalid_request"),
    "an unknown preset": (FORM_HEADERS, form(("preset", None, b"best"), ("file", "a", b"1")), 422, "unknown_preset"),
    "fields too large": (FORM_HEADERS, form(("crf", None, b"1" * 70000), ("file", "a", b"1")), 422, "invalid_request"),
    "a form cut short": (FORM_HEADERS, form(("file", "a", b"123"))[:-8], 400, "malformed_body"),
    "not a form": (FORM_HEADERS, b"hello", 400, "malformed_body"),
    "no boundary": ({"Content-Type": "multipart/form-data"}, b"--\r\n", 400, "malformed_body"),
    "an empty form": (FORM_HEADERS, b"", 400, "malformed_body"),
    "another media type": ({"Content-Type": "video/mp4"}, b"abc", 415, "unsupported_media_type"),
    "no media type": ({}, b"abc", 415, "unsupported_media_type"),
    "no JSON": ({"Content-Type": "application/json"}, b"{", 422, "invalid_request"),
    "JSON of another shape": ({"Content-Type": "application/json"}, b"[]", 422, "invalid_request"),
    "no upload id": ({"Content-Type": "application/json"}, b"{}", 422, "invalid_request"),
    "an unknown upload": ({"Content-Type": "application/json"}, b'{"upload_id":"x"}', 404, "upload_not_found"),
    "a path as upload": ({"Content-Type": "application/json"}, b'{"upload_id":"../x"}', 422, "invalid_request"),
    "too much JSON": ({"Content-Type": "application/json"}, b" " * 70000, 413, "upload_too_large"),
    "unknown preset": (
        {"Content-Type": "application/json"},
        b'{"upload_id":"x","preset":"best"}',
        422,
        "unknown_preset",
    ),
}


@pytest.mark.parametrize("name", WRONG_REQUESTS)
def test_a_wrong_request_is_refused_with_its_reason_and_leaves_nothing(gateway: RunningGateway, name: str) -> None:
    # Given
    headers, body, status, code = WRONG_REQUESTS[name]

    # When
    answer = gateway.http.post("/v1/jobs", content=body, headers=headers)

    # Then
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert gateway.files() == []
    assert waiting_tasks(gateway.redis) == []


def test_every_mistake_is_named_with_its_place(gateway: RunningGateway) -> None:
    problem = submit(gateway, crf="64", codec="mpeg2").json()

    assert [error["location"] for error in problem["errors"]] == ["codec", "crf"]


def test_an_unknown_preset_is_answered_with_the_known_ones(
    gateway: RunningGateway, start_gateway: StartGateway
) -> None:
    # Given a service for everyone, and one under test
    under_test = start_gateway(enable_test_presets=True)

    # When the test preset is asked for
    refused = submit(gateway, preset="tiny-random")
    accepted = submit(under_test, preset="tiny-random")

    # Then only the latter takes it
    assert refused.status_code == 422
    assert refused.json()["known_presets"] == ["aligned", "balanced", "compact", "paper", "paper-residual"]
    assert accepted.status_code == 202


def test_a_form_over_the_limit_is_refused(start_gateway: StartGateway) -> None:
    # Given a limit on the file, which the form's own bytes do not count against
    gateway = start_gateway(max_upload_bytes=100_000)

    # When
    answers = [submit(gateway, b"x" * size).status_code for size in (100_000, 100_001, 500_000)]

    # Then
    assert answers == [202, 413, 413]
    assert len(gateway.storage.job_ids()) == 1
    assert list(gateway.storage.uploads.iterdir()) == []


def test_a_form_from_a_stranger_is_refused_unread(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(api_keys="right-key")

    # When
    answer = submit(gateway, b"x" * 5_000_000)

    # Then
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert gateway.files() == []


def test_when_too_many_jobs_wait_new_ones_are_told_to_come_back(start_gateway: StartGateway) -> None:
    # Given
    gateway = start_gateway(max_queued_jobs=2)
    submit(gateway)
    submit(gateway)

    # When
    answer = submit(gateway)

    # Then
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_jobs")
    assert int(answer.headers["Retry-After"]) > 0
    assert len(gateway.storage.job_ids()) == 2


# --- Idempotency-Key --------------------------------------------------------------------------------------------------


def test_the_same_request_with_the_same_key_gives_the_same_job(gateway: RunningGateway) -> None:
    # Given
    request = {"files": {"file": ("clip.mp4", b"abc")}, "headers": {"Idempotency-Key": "once"}}
    first = gateway.http.post("/v1/jobs", **request)
    # That has meanwhile moved on
    gateway.registry.cancel(first.json()["id"])

    # When
    second = gateway.http.post("/v1/jobs", **request)

    # Then
    assert second.status_code == 202
    assert second.headers["Location"] == first.headers["Location"]
    assert second.json()["status"] == "canceled"
    assert len(gateway.storage.job_ids()) == 1
    assert list(gateway.storage.uploads.iterdir()) == []
    assert 0 < gateway.redis.ttl(next(iter(gateway.redis.keys("vsr:idempotency:*")))) <= 24 * 3600


def test_a_used_up_upload_does_not_stop_a_repeated_request(gateway: RunningGateway) -> None:
    # Given
    gateway.http.put("/v1/uploads/clip", content=b"abc")
    request = {"json": {"upload_id": "clip"}, "headers": {"Idempotency-Key": "once"}}

    # When
    answers = [gateway.http.post("/v1/jobs", **request) for _ in range(2)]

    # Then
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_a_repeated_request_gets_its_job_though_the_queue_is_full_by_now(start_gateway: StartGateway) -> None:
    # Given a queue that the first request has filled
    http = start_gateway(max_queued_jobs=1).http
    request = {"files": {"file": ("clip.mp4", b"abc")}, "headers": {"Idempotency-Key": "once"}}
    first = http.post("/v1/jobs", **request)

    # When it comes again, and a new one comes
    again = http.post("/v1/jobs", **request)
    new = http.post("/v1/jobs", **(request | {"headers": {"Idempotency-Key": "other"}}))

    # Then
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert new.status_code == 429


def test_a_key_that_belongs_to_another_request_is_refused(gateway: RunningGateway) -> None:
    # Given
    key = {"Idempotency-Key": "once"}
    gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key)

    # When another file, or another option, comes under the same key
    answers = [
        gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abd")}, headers=key),
        gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, data={"crf": "9"}, headers=key),
    ]

    # Then
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "idempotency_key_reused")] * 2
    assert len(gateway.storage.job_ids()) == 1


def test_a_key_is_known_again_when_redis_has_lost_its_memory(gateway: RunningGateway, redis: Redis) -> None:
    # Given a job of a key, and one of the day before yesterday
    key = {"Idempotency-Key": "once"}
    job = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key).json()
    record = gateway.storage.read_record(job["id"])
    assert record is not None
    assert record.idempotency is not None
    assert "once" not in record.model_dump_json()
    long_ago = record.model_copy(
        update={
            "id": new_job_id(),
            "created_at": record.created_at - timedelta(days=2),
            "idempotency": record.idempotency.model_copy(update={"key_sha256": "0" * 64}),
        }
    )
    gateway.registry.add(long_ago)

    # When Redis is emptied, and indexed anew from storage
    redis.flushall()
    for job_id in gateway.storage.job_ids():
        gateway.registry.change(job_id, lambda current: current)
    again = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key)
    other = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abd")}, headers=key)

    # Then
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert gateway.storage.job_ids() == sorted([job["id"], long_ago.id])
    kept = redis.keys("vsr:idempotency:*")
    assert [0 < redis.ttl(one) <= 24 * 3600 for one in kept] == [True]


def test_an_attempt_that_came_to_nothing_is_made_again_under_another_id(gateway: RunningGateway, redis: Redis) -> None:
    # Given a key whose first attempt left no record; Redis still has its task
    key = {"Idempotency-Key": "once"}
    job = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key).json()
    gateway.registry.remove(job["id"])

    # When the client tries again
    again = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key).json()

    # Then
    assert again["id"] != job["id"]
    assert gateway.storage.job_ids() == [again["id"]]
    assert waiting_tasks(redis) == [f"{again['id']}-plan"]
    # And that is the one from now on
    assert gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers=key).json()["id"] == again["id"]


# --- when things break ------------------------------------------------------------------------------------------------


def test_without_redis_a_job_is_refused_for_now_and_nothing_is_left_behind(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Given a service whose Redis is stopped after an upload was made
    server = EmbeddedRedis(tmp_path / "own-redis")
    with server:
        gateway = start_gateway(redis_url=server.url)
        assert gateway.http.put("/v1/uploads/clip", content=b"abc").status_code == 201
        uploaded = gateway.files()
        server.stop()

        # When jobs are submitted, in both ways
        answers = [submit(gateway), gateway.http.post("/v1/jobs", json={"upload_id": "clip"})]

        # Then both are told to come back, and only the upload is there
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "queue_unavailable")] * 2
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        assert [name for name in gateway.files() if not name.startswith("redis")] == uploaded

        # And once Redis is back, so is the service
        server.start()
        assert gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).status_code == 202


@pytest.mark.parametrize("failing_command", ["enqueue", "index"])
def test_redis_failing_in_the_middle_of_an_acceptance_leaves_nothing_and_keeps_the_upload(
    gateway: RunningGateway, redis: Redis, failing_command: str
) -> None:
    # Given a Redis that answers the first questions and then refuses to write, as one whose memory is full
    gateway.http.put("/v1/uploads/clip", content=b"abc")
    uploaded = gateway.files()
    if failing_command == "enqueue":
        redis.config_set("maxmemory", 1)
    else:
        # The queue takes the task, the index cannot be written.
        redis.set("vsr:jobs", "not a sorted set")
    try:
        # When
        answer = gateway.http.post("/v1/jobs", json={"upload_id": "clip"})
    finally:
        redis.config_set("maxmemory", 0)
        redis.delete("vsr:jobs")

    # Then no job is left that nobody was told of, and the client can try again
    assert answer.status_code == (503 if failing_command == "enqueue" else 500)
    assert answer.headers.get("Connection") == (None if failing_command == "enqueue" else "close")
    assert gateway.files() == uploaded
    assert gateway.storage.job_ids() == []
    assert gateway.http.post("/v1/jobs", json={"upload_id": "clip"}).status_code == 202


def test_an_acceptance_that_redis_did_not_answer_to_is_no_job_until_it_is_made_again(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a Redis that freezes when it is asked to index a job, and does so when it thaws
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        gateway = start_gateway(redis_url=server.url)
        gateway.http.put("/v1/uploads/clip", content=b"abc")
        pid = server.pid
        assert pid is not None
        execute = Pipeline.execute

        def execute_frozen(pipe: Pipeline, raise_on_error: bool = True) -> object:
            if pipe.explicit_transaction and any("vsr:jobs" in str(one) for one in pipe.command_stack):
                monkeypatch.setattr(Pipeline, "execute", execute)
                os.kill(pid, signal.SIGSTOP)
            return execute(pipe, raise_on_error)

        monkeypatch.setattr(Pipeline, "execute", execute_frozen)
        request = {"json": {"upload_id": "clip"}, "headers": {"Idempotency-Key": "once"}}
        try:
            first = gateway.http.post("/v1/jobs", **request)
        finally:
            os.kill(pid, signal.SIGCONT)
        own_redis = Redis.from_url(server.url)
        wait_until(lambda: own_redis.zcard("vsr:jobs") == 1)
        let_locks_run_out(own_redis)

        # When the client that was refused tries again, twice
        again, once_more = (gateway.http.post("/v1/jobs", **request) for _ in range(2))

        # Then there is one job, whole, in storage and in Redis, and nothing of the first attempt
        assert first.status_code == 503
        job_id = again.json()["id"]
        assert (again.status_code, once_more.status_code, once_more.json()["id"]) == (202, 202, job_id)
        assert gateway.storage.job_ids() == [job_id]
        assert gateway.storage.folder(job_id).source.read_bytes() == b"abc"
        assert list(gateway.storage.uploads.iterdir()) == []
        assert JobRegistry(own_redis, gateway.storage).indexed_ids() == {job_id}
        assert waiting_tasks(own_redis) == [f"{job_id}-plan"]
        own_redis.close()


@pytest.mark.parametrize("with_idempotency_key", [True, False])
def test_a_redis_that_is_lost_once_the_job_is_indexed_undoes_nothing(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_idempotency_key: bool
) -> None:
    # Given a Redis that ends right after a job of a key was indexed, before any lock is let go
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        gateway = start_gateway(redis_url=server.url, api_keys=["k1"])
        headers = {"X-API-Key": "k1"} | ({"Idempotency-Key": "once"} if with_idempotency_key else {})
        gateway.http.put("/v1/uploads/clip", content=b"abc", headers=headers)
        change = JobRegistry.change

        def change_and_lose_redis(
            registry: JobRegistry, job_id: str, how: Callable[[JobRecord], JobRecord | None]
        ) -> JobRecord | None:
            changed = change(registry, job_id, how)
            monkeypatch.setattr(JobRegistry, "change", change)
            server.stop()
            return changed

        monkeypatch.setattr(JobRegistry, "change", change_and_lose_redis)

        # When
        answer = gateway.http.post("/v1/jobs", json={"upload_id": "clip"}, headers=headers)

        # Then it is accepted, and is there when Redis is
        assert answer.status_code == 202
        job_id = answer.json()["id"]
        assert gateway.storage.folder(job_id).source.read_bytes() == b"abc"
        assert list(gateway.storage.uploads.iterdir()) == []
        server.start()
        own_redis = Redis.from_url(server.url)
        let_locks_run_out(own_redis)
        assert gateway.http.get(f"/v1/jobs/{job_id}", headers=headers).json()["status"] == "queued"
        assert waiting_tasks(own_redis) == [f"{job_id}-plan"]
        own_redis.close()
        if with_idempotency_key:
            again = gateway.http.post("/v1/jobs", json={"upload_id": "clip"}, headers=headers)
            assert (again.status_code, again.json()["id"]) == (202, job_id)


def test_an_attempt_that_slept_until_it_was_taken_for_dead_makes_no_job(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a gateway that sleeps before the record, until another attempt has cleared its folder away
    make_folder = JobStorage.make_folder

    def make_folder_and_sleep(storage: JobStorage, job_id: str) -> JobFolder:
        folder = make_folder(storage, job_id)
        monkeypatch.setattr(JobStorage, "make_folder", make_folder)
        gateway.registry.remove(job_id)
        return folder

    monkeypatch.setattr(JobStorage, "make_folder", make_folder_and_sleep)

    # When it goes on
    answer = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")}, headers={"Idempotency-Key": "once"})

    # Then
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
    assert gateway.files() == []
    assert waiting_tasks(gateway.redis) == []


def test_a_worker_that_starts_the_job_before_it_is_indexed_has_the_last_word(
    gateway: RunningGateway, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that fails the job the moment it is in the queue
    enqueue_plan = TaskQueue.enqueue_plan

    def enqueue_and_fail(queue: TaskQueue, job_id: str) -> None:
        enqueue_plan(queue, job_id)
        gateway.registry.fail(job_id, JobError(code=FailureCode.NOT_A_VIDEO, message="not a video"))

    monkeypatch.setattr(TaskQueue, "enqueue_plan", enqueue_and_fail)

    # When
    job = submit(gateway).json()

    # Then
    assert gateway.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "failed"
    record = gateway.storage.read_record(job["id"])
    assert record is not None
    assert record.status == JobStatus.FAILED


def test_the_record_on_disk_is_plain_json(gateway: RunningGateway) -> None:
    job = submit(gateway).json()

    record = json.loads(gateway.storage.folder(job["id"]).record.read_bytes())

    assert (record["id"], record["status"]) == (job["id"], "queued")
