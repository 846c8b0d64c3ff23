"""Every error is problem+json with a stable code and the request's id."""

import logging
import socket
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from app import errors
from app.embedded_redis import EmbeddedRedis
from app.errors import PROBLEM_MEDIA_TYPE, ProblemError
from app.metrics import REJECTION_REASONS
from tests.app.conftest import RunningGateway, StartGateway, wait_until
from worker.contract.storage import folder_locked


def assert_is_problem(answer: httpx2.Response, status: int, code: str) -> None:
    problem = answer.json()
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == PROBLEM_MEDIA_TYPE
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:twostep-vsr:problem:{code}"
    assert problem["title"]
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in answer.text


def test_an_unknown_path_is_a_problem(gateway: RunningGateway) -> None:
    assert_is_problem(gateway.http.get("/v2/jobs"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/jobs", "GET, POST"),
        ("PUT", f"/v1/jobs/{'0' * 20}", "DELETE, GET"),
        ("POST", f"/v1/jobs/{'0' * 20}/result", "GET, HEAD"),
        ("GET", "/v1/uploads/a", "DELETE, HEAD, PATCH, PUT"),
        ("DELETE", "/healthz", "GET"),
    ],
)
def test_a_wrong_method_is_answered_with_every_right_one(
    gateway: RunningGateway, method: str, path: str, allowed: str
) -> None:
    answer = gateway.http.request(method, path)

    assert_is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


def test_a_malformed_request_names_each_mistake(gateway: RunningGateway) -> None:
    answer = gateway.http.get("/v1/jobs?limit=0&status=x")

    assert_is_problem(answer, 422, "invalid_request")
    assert {error["location"] for error in answer.json()["errors"]} == {"query.limit", "query.status"}


def test_a_request_id_of_the_client_is_kept_and_a_wrong_one_is_not(gateway: RunningGateway) -> None:
    mine = "0123456789abcdef0123456789abcdef"

    kept = gateway.http.get("/v2", headers={"X-Request-ID": mine})
    replaced = gateway.http.get("/v2", headers={"X-Request-ID": "<script>"})

    assert kept.json()["request_id"] == mine
    assert_is_problem(replaced, 404, "not_found")
    assert "script" not in replaced.text


def test_an_unexpected_error_says_nothing_of_the_inside_and_the_log_says_all(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a record that no gateway wrote
    job = gateway.add_job()
    gateway.redis.hset(f"vsr:job:{job.id}", "record", "{not json: secret-detail")

    # When
    answer = gateway.http.get(f"/v1/jobs/{job.id}")

    # Then
    assert_is_problem(answer, 500, "internal")
    assert "secret-detail" not in answer.text
    # The server writes the traceback once the answer is on its way
    wait_until(lambda: [record for record in caplog.records if record.levelno == logging.ERROR and record.exc_info])


def test_without_redis_every_call_says_so_and_later_goes_on(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given
    server = EmbeddedRedis(tmp_path / "own-redis")
    with server:
        gateway = start_gateway(redis_url=server.url)
        server.stop()

        # When
        answers = [gateway.http.get(path) for path in ("/v1/jobs", f"/v1/jobs/{'0' * 20}", "/v1/models")]

        # Then
        for answer in answers:
            assert_is_problem(answer, 503, "queue_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        server.start()
        assert gateway.http.get("/v1/jobs").status_code == 200


def test_a_redis_that_takes_no_writes_refuses_jobs_for_now(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given a Redis that refuses writes: here for want of copies, as it does with a full disk
    with EmbeddedRedis(tmp_path / "own-redis") as server, Redis.from_url(server.url) as redis:
        gateway = start_gateway(redis_url=server.url)
        redis.config_set("min-replicas-to-write", 1)

        # When
        answer = gateway.http.post("/v1/jobs", files={"file": ("clip.mp4", b"abc")})

    # Then
    assert_is_problem(answer, 503, "queue_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert gateway.storage.job_ids() == []


def test_a_frozen_redis_is_given_up_soon(start_gateway: StartGateway) -> None:
    # Given a Redis that takes connections and never answers
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        gateway = start_gateway(redis_url=f"redis://127.0.0.1:{frozen.getsockname()[1]}")

        # When, with a client less patient than redis-py's own minute
        answer = gateway.http.get("/v1/jobs", timeout=15)

        # Then
        assert_is_problem(answer, 503, "queue_unavailable")


def test_a_job_that_a_frozen_process_holds_is_given_up_soon(gateway: RunningGateway) -> None:
    # Given a process that froze while it wrote a job
    job = gateway.add_job()
    with folder_locked(gateway.storage.folder(job.id).path, 0):
        # When
        answer = gateway.http.post(f"/v1/jobs/{job.id}/cancel", timeout=15)

        # Then
        assert_is_problem(answer, 503, "job_busy")
        assert int(answer.headers["Retry-After"]) > 0

    # And what was asked for has been done, and is done once
    assert gateway.http.post(f"/v1/jobs/{job.id}/cancel").json()["status"] == "canceled"


def test_codes_are_unique_and_every_reason_for_a_refusal_is_counted_from_zero() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ProblemError) and hasattr(kind, "code")
    }
    codes = {kind.code for kind in kinds}
    # Those that no upload and no submission can end in
    others = {
        "job_busy",
        "job_canceled",
        "job_ended",
        "job_failed",
        "job_not_found",
        "job_succeeded",
        "no_picture",
        "no_preview",
        "not_finished",
        "not_streamable",
        "nothing_finished",
        "preview_failed",
        "preview_under_way",
        "range_not_satisfiable",
        "result_expired",
        "shutting_down",
        "too_many_connections",  # answered before anybody looks at what is asked
        "too_many_listeners",
        "too_many_listeners_of_key",
        "too_many_previews",
        "webhook_not_found",
    }

    assert len(codes) == len(kinds)
    assert codes - others == set(REJECTION_REASONS)


def test_every_answer_carries_safe_headers(gateway: RunningGateway) -> None:
    for path in ("/docs", "/v1/jobs", "/nowhere", "/healthz"):
        headers = gateway.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
