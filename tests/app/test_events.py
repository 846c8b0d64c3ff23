"""Following a job: what its listeners are told, when the stream ends, and that it holds nobody up."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from app import events
from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway, wait_until
from tests.app.test_server import gateway_process
from worker.contract.job import JobRecord, PartialResult
from worker.contract.registry import JobRegistry
from worker.contract.storage import JobStorage


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    job: dict[str, Any]


@contextmanager
def following(url: str, job_id: str, **headers: str) -> Iterator[tuple[httpx2.Response, Iterator[Event]]]:
    with (
        httpx2.Client(base_url=url, timeout=20, headers=headers) as http,
        http.stream("GET", f"/v1/jobs/{job_id}/events") as answer,
    ):
        yield answer, _events(answer)


def _events(answer: httpx2.Response) -> Iterator[Event]:
    fields: dict[str, str] = {}
    deadline = time.monotonic() + 30
    for line in answer.iter_lines():
        assert time.monotonic() < deadline, "it goes on and on"
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}


def test_a_job_is_followed_from_the_queue_to_its_end(gateway: RunningGateway) -> None:
    # Given two jobs in the queue
    first, job = gateway.add_job(), gateway.add_job()

    with following(gateway.url, job.id) as (answer, told):
        # Then the present state comes first
        event = next(told)
        assert (event.name, event.job["status"], event.job["queue_position"]) == ("status", "queued", 2)
        assert event.job == gateway.http.get(f"/v1/jobs/{job.id}").json()
        # And every change after it: its place in the queue, its start, its progress
        gateway.registry.cancel(first.id)
        event = next(told)
        assert (event.name, event.job["queue_position"]) == ("status", 1)
        gateway.registry.start(job.id, SOURCE_INFO)
        event = next(told)
        assert (event.name, event.job["status"], event.job["source"]["width"]) == ("status", "running", 64)
        gateway.registry.start_rendering(job.id, frames_total=30, segments_total=3, finished_segments={})
        gateway.registry.note_segment_progress(job.id, 0, 4)
        event = next(told)
        assert event.name == "progress"
        while event.job["progress"]["frames_done"] != 4:
            event = next(told)
        # And the end, which is the last that comes
        gateway.finish_job(job.id, b"result")
        *_, event = told
        assert (event.name, event.job["status"], event.job["result"]["size_bytes"]) == ("status", "succeeded", 6)

    # And proxies pass on what comes when it comes
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")


def test_whoever_comes_back_is_told_what_it_missed_and_nothing_twice(gateway: RunningGateway) -> None:
    # Given a listener whose connection broke
    job = gateway.add_job()
    with following(gateway.url, job.id) as (_, told):
        seen = next(told)

    # When it comes back and nothing has happened meanwhile
    with following(gateway.url, job.id, **{"Last-Event-ID": seen.id}) as (answer, told):
        # Then it is told how long to wait next time, and nothing else before there is something
        assert next(answer.iter_raw()) == b"retry: 2000\n\n"
    # When something has
    gateway.registry.start(job.id, SOURCE_INFO)
    with following(gateway.url, job.id, **{"Last-Event-ID": seen.id}) as (_, told):
        # Then that comes at once
        assert next(told).job["status"] == "running"


@pytest.mark.parametrize("redis_forgets", [False, True])
def test_the_end_is_told_once(gateway: RunningGateway, redis_forgets: bool) -> None:
    # Given a job that has ended
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")

    # When somebody listens and comes back, as EventSource does
    with following(gateway.url, job.id) as (_, told):
        [seen] = told
    if redis_forgets:
        gateway.redis.flushall()
    again = gateway.http.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": seen.id})

    # Then it is told to stop
    assert (seen.name, seen.job["status"]) == ("status", "succeeded")
    assert (again.status_code, again.content) == (204, b"")


def test_a_canceled_job_has_not_ended_before_what_it_had_is_put_together(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.registry.start(job.id, SOURCE_INFO)
    gateway.registry.cancel(job.id, keep_partial=True)

    with following(gateway.url, job.id) as (_, told):
        assert next(told).job["partial_result"] == PartialResult.BEING_MADE
        gateway.keep_partial_result(job.id, b"the beginning")
        [last] = told

    assert (last.name, last.job["partial_result"]) == ("status", PartialResult.KEPT)


def test_the_stream_of_a_job_that_is_deleted_ends(gateway: RunningGateway) -> None:
    job = gateway.add_job()

    with following(gateway.url, job.id) as (_, told):
        next(told)
        gateway.http.delete(f"/v1/jobs/{job.id}")
        canceled = list(told)

    assert [event.job["status"] for event in canceled] in ([], ["canceled"])


def test_only_those_who_may_see_a_job_can_follow_it(start_gateway: StartGateway) -> None:
    # Given a job of one of two keys
    gateway = start_gateway(api_keys="mine,theirs")
    gateway.http.headers["X-API-Key"] = "mine"
    upload = gateway.http.put("/v1/uploads/a", content=b"abc").json()
    job_id = gateway.http.post("/v1/jobs", json={"upload_id": upload["id"]}).json()["id"]

    # When both keys follow it, one of them as a browser does
    gateway.http.put("/v1/session", json={"key": "mine"})
    refused = [
        httpx2.get(f"{gateway.url}/v1/jobs/{job_id}/events", headers=headers)
        for headers in ({}, {"X-API-Key": "theirs"})
    ]
    cookie = gateway.http.cookies["vsr_session"]
    with following(gateway.url, job_id, Cookie=f"vsr_session={cookie}") as (_, told):
        seen = next(told)

    # Then one sees it, and the other not even that there is one
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [
        (401, "unauthorized"),
        (404, "job_not_found"),
    ]
    assert seen.job["id"] == job_id


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"max_listeners_per_key": 2}, "too_many_listeners_of_key"),
        ({"max_connections": 4, "max_uploads": 1}, "too_many_listeners"),
    ],
)
def test_only_so_many_follow_at_a_time(start_gateway: StartGateway, settings: dict[str, int], code: str) -> None:
    # Given two who follow a job, and no place for a third
    gateway = start_gateway(api_keys="mine", **settings)
    gateway.http.headers["X-API-Key"] = "mine"
    gateway.http.put("/v1/uploads/a", content=b"abc")
    job_id = gateway.http.post("/v1/jobs", json={"upload_id": "a"}).json()["id"]
    with following(gateway.url, job_id, **{"X-API-Key": "mine"}) as (_, first):
        next(first)
        with following(gateway.url, job_id, **{"X-API-Key": "mine"}) as (_, second):
            next(second)
            # When another comes
            with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as refused:
                # Then it is told to look at the job instead, which it can
                assert (refused.status_code, refused.headers.get("Retry-After")) == (429, "5")
                assert json.loads(refused.read())["code"] == code
            assert gateway.http.get(f"/v1/jobs/{job_id}").status_code == 200

        # And whoever leaves makes room
        def is_let_in() -> bool:
            with gateway.http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                return answer.status_code == 200

        wait_until(is_let_in)


def test_who_has_nothing_to_say_says_that(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setattr(events, "_KEEPALIVE_SECONDS", 0.05)
    job = gateway.add_job()

    # When nothing happens
    with following(gateway.url, job.id) as (answer, _):
        lines = answer.iter_lines()
        # Then there are comments, which say that the connection lives
        assert next(line for line in lines if line.startswith(":"))


def test_listeners_hear_on_after_redis_was_away(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a listener
    job = gateway.add_job()
    with following(gateway.url, job.id) as (_, told):
        next(told)
        # When the registry cannot be asked for a while
        with monkeypatch.context() as away:
            away.setattr(JobRegistry, "marks", _fail)
            wait_until(lambda: "hear nothing" in caplog.text)
            gateway.registry.start(job.id, SOURCE_INFO)
        # Then what happened meanwhile comes after it
        assert next(told).job["status"] == "running"


def _fail(*_: object) -> list[bytes]:
    raise RuntimeError("a disk that fails")


def test_two_hundred_listeners_hear_the_same(gateway: RunningGateway) -> None:
    # Given two hundred who listen to two jobs
    jobs = [gateway.add_job() for _ in range(2)]
    heard: list[str] = []
    begun = threading.Barrier(201)

    def listen(job: JobRecord) -> None:
        with following(gateway.url, job.id) as (_, told):
            next(told)
            begun.wait(60)
            *_, last = told
            heard.append(f"{last.job['id']} {last.job['status']}")

    threads = [threading.Thread(target=listen, args=(jobs[n % 2],)) for n in range(200)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    # When both end
    for job in jobs:
        gateway.registry.cancel(job.id)
    for thread in threads:
        thread.join(60)
    # Then each has heard it
    assert sorted(heard) == sorted(f"{job.id} canceled" for job in jobs for _ in range(100))


def test_those_who_follow_a_job_are_counted_while_they_do(gateway: RunningGateway) -> None:
    # Given two who follow one job, and one who follows another
    def counted() -> float:
        page = gateway.http.get("/metrics").text
        return float(page.partition("\nvsr_event_streams ")[2].split("\n")[0])

    one, other = gateway.add_job(), gateway.add_job()
    before = counted()
    with ExitStack() as stack:
        all_told = [stack.enter_context(following(gateway.url, job.id))[1] for job in (one, one, other)]
        for told in all_told:
            next(told)

        # Then they are three, and nobody when they have gone
        assert before == 0
        wait_until(lambda: counted() == 3)
    wait_until(lambda: counted() == 0)


def test_a_gateway_that_stops_does_not_wait_for_listeners(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    # Given a gateway in a process of its own, and somebody who listens
    with gateway_process(redis_url, tmp_path) as (process, url):
        gateway = RunningGateway(
            url, httpx2.Client(base_url=url), JobStorage(tmp_path), JobRegistry(redis, JobStorage(tmp_path)), redis
        )
        job = gateway.add_job()
        with following(url, job.id) as (_, told):
            next(told)
            # When it is told to stop
            process.send_signal(signal.SIGTERM)
            # Then the stream ends as a whole answer does, and nothing had to be cut off
            assert list(told) == []
        _, log = process.communicate(timeout=20)
        gateway.http.close()
    assert process.returncode == 7
    assert "timeout graceful shutdown exceeded" not in log
