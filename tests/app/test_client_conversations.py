"""What the client says to a service, and when it tries again: over a line that answers by a script."""

import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from app.client import (
    AsyncClient,
    Client,
    ForeignResponseError,
    JobEndedError,
    NoResultResponseError,
    NotFoundResponseError,
    Options,
    Progress,
    ProxyResponseError,
    RejectedResponseError,
    ServiceUnreachableError,
    SourceChangedError,
    TryLaterResponseError,
)
from app.client.api import Api, AsyncJobs
from app.client.blocking import Jobs
from app.client.lines import FilePart, Stream, iterate, run
from app.client.service import Service
from app.schemas import Job, SubmitUpload, SubmitUrl, public_job
from worker.contract.failure import FailureCode
from worker.contract.job import JobError, JobOptions, JobRecord, JobStatus, now
from worker.contract.job import Progress as Figures

_Result = TypeVar("_Result")
JOB_ID = "0" * 20
AWAY = ServiceUnreachableError("http://service", "connection reset")
REFUSED = ServiceUnreachableError("http://service", "connection refused", never_connected=True)


def job(status: JobStatus, frames_done: int = 0, error: JobError | None = None) -> Job:
    record = JobRecord(
        id=JOB_ID,
        status=status,
        created_at=now(),
        options=JobOptions(),
        source_name="clip.mp4",
        source_size_bytes=3,
        source_sha256="0" * 64,
        error=error,
    )
    return public_job(record, Figures(frames_done=frames_done, frames_total=10), None)


def answer(content: str = "", status: int = 200, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=named, text=content, request=httpx2.Request("GET", "http://service/"))


def problem(status: int, code: str, **headers: str) -> httpx2.Response:
    content = {"type": "about:blank", "title": "No", "status": status, "code": code}
    return answer(json.dumps(content), status, **headers)


def events(*jobs: Job | Exception, first_id: int = 1) -> list[httpx2.ServerSentEvent | Exception]:
    return [
        one
        if isinstance(one, Exception)
        else httpx2.ServerSentEvent(event="status", data=one.model_dump_json(), id=str(number))
        for number, one in enumerate(jobs, first_id)
    ]


@dataclass
class ScriptedStream:
    response: httpx2.Response
    script: list[httpx2.ServerSentEvent | Exception]

    async def chunks(self) -> AsyncGenerator[bytes]:
        yield self.response.content

    async def events(self) -> AsyncGenerator[httpx2.ServerSentEvent]:
        for one in self.script:
            if isinstance(one, Exception):
                raise one
            yield one


@dataclass
class ScriptedLine:
    """Answers in turn, with what `answers` says; remembers what was asked, and how long the client waited between."""

    answers: list[httpx2.Response | Exception | list[httpx2.ServerSentEvent | Exception]]
    asked: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    pauses_seconds: list[float] = field(default_factory=list)
    url: str = "http://service"

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        json: object = None,
        body: FilePart | None = None,
    ) -> httpx2.Response:
        if body:
            list(body.chunks())
        said = self._say(f"{method} {path}", headers or {})
        assert isinstance(said, httpx2.Response)
        return said

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], silence_seconds: float | None = None
    ) -> AsyncIterator[Stream]:
        said = self._say(f"LISTEN {path}", headers)
        if isinstance(said, httpx2.Response):
            yield ScriptedStream(said, [])
        else:
            yield ScriptedStream(answer(Content_Type="text/event-stream; charset=utf-8"), said)

    def _say(
        self, asked: str, headers: Mapping[str, str]
    ) -> httpx2.Response | list[httpx2.ServerSentEvent | Exception]:
        self.asked.append(asked)
        self.headers.append(headers)
        said = self.answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    async def pause(self, seconds: float) -> None:
        self.pauses_seconds.append(seconds)

    async def work(self, function: Callable[[], _Result]) -> _Result:
        return function()

    async def close(self) -> None:
        """Nothing to close."""

    @property
    def api(self) -> Api:
        return Api(Service(self, patience_seconds=20), None)


# --- both clients are one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("facade", "api"), [(Jobs, AsyncJobs), (Client, AsyncClient)])
def test_what_one_client_can_do_the_other_can_with_the_same_words(facade: type, api: type) -> None:
    def methods(kind: type) -> dict[str, object]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: method for name, method in found if not name.startswith("_")}

    assert methods(facade).keys() == methods(api).keys()
    for name, method in methods(facade).items():
        parameters = inspect.signature(method).parameters  # type: ignore[arg-type]
        assert parameters == inspect.signature(methods(api)[name]).parameters, name  # type: ignore[arg-type]
        assert inspect.getdoc(method) == inspect.getdoc(methods(api)[name])
    assert inspect.signature(Client.__init__) == inspect.signature(AsyncClient.__init__)


def test_every_option_of_a_submission_is_a_word_of_the_client() -> None:
    fields = SubmitUpload.model_fields.keys() | SubmitUrl.model_fields.keys()
    assert Options.__annotations__.keys() == fields - {"upload_id", "source_url"}


# --- trying again -----------------------------------------------------------------------------------------------------


def test_a_request_waits_as_long_as_the_service_asks_for() -> None:
    line = ScriptedLine(
        [
            problem(503, "queue_unavailable", Retry_After="7"),
            problem(429, "too_many_uploads", Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
            answer(job(JobStatus.QUEUED).model_dump_json()),
        ]
    )

    assert run(line.api.jobs.get(JOB_ID)).status is JobStatus.QUEUED

    assert line.pauses_seconds == [7, 0]


def test_a_service_that_asks_for_more_patience_than_there_is_is_believed_at_once() -> None:
    line = ScriptedLine([problem(429, "too_many_jobs", Retry_After="30")])

    with pytest.raises(TryLaterResponseError) as error:
        run(line.api.jobs.get(JOB_ID))

    assert (error.value.retry_after_seconds, line.pauses_seconds) == (30, [])


def test_without_such_a_word_the_client_waits_longer_each_time() -> None:
    line = ScriptedLine([AWAY, problem(503, "job_busy"), AWAY, AWAY, answer(job(JobStatus.QUEUED).model_dump_json())])

    run(line.api.jobs.get(JOB_ID))

    longest = [0.25, 0.5, 1, 2]
    assert all(most / 2 <= pause <= most for pause, most in zip(line.pauses_seconds, longest, strict=True))


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_is_refused_for_what_it_is_is_not_asked_again(status: int) -> None:
    line = ScriptedLine([problem(status, "invalid_request")])
    with pytest.raises(RejectedResponseError):
        run(line.api.jobs.retry(JOB_ID))
    assert len(line.asked) == 1


@pytest.mark.parametrize("away", [REFUSED, answer("<html>bad gateway</html>", 502)])
def test_an_address_where_nothing_ever_answered_is_told_at_once_and_one_that_did_is_waited_for(
    away: httpx2.Response | Exception,
) -> None:
    # Given a service that is away before, and after, it has once answered
    never = ScriptedLine([away])
    line = ScriptedLine([answer(job(JobStatus.QUEUED).model_dump_json()), away, answer("", 204)])

    # Then
    with pytest.raises((ServiceUnreachableError, ProxyResponseError)):
        run(never.api.jobs.get(JOB_ID))
    api = line.api
    run(api.jobs.get(JOB_ID))
    run(api.jobs.delete(JOB_ID))
    assert (len(never.pauses_seconds), len(line.pauses_seconds)) == (0, 1)


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_from_what_has_arrived(tmp_path: Path) -> None:
    # Given a line that breaks once, and a service that still reads what came before it broke
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"x" * 100)
    line = ScriptedLine(
        [
            answer(status=201, Location="uploads/abc"),
            AWAY,
            answer(status=423),
            answer(Upload_Offset="40"),
            problem(409, "upload_offset"),
            answer(Upload_Offset="60"),
            answer(status=204, Upload_Offset="100"),
            answer(job(JobStatus.QUEUED).model_dump_json(), 202),
        ]
    )

    # When
    run(line.api.jobs.create(source))

    # Then
    assert line.asked == [
        "POST /v1/uploads",
        "PATCH /v1/uploads/abc",
        "HEAD /v1/uploads/abc",
        "HEAD /v1/uploads/abc",
        "PATCH /v1/uploads/abc",
        "HEAD /v1/uploads/abc",
        "PATCH /v1/uploads/abc",
        "POST /v1/jobs",
    ]
    offsets = [headers["Upload-Offset"] for headers in line.headers if "Content-Type" in headers]
    assert offsets == ["0", "40", "60"]


def test_a_file_that_is_cut_off_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"x" * 100)
    with pytest.raises(SourceChangedError, match=r"clip\.mp4 became shorter"):
        list(FilePart(source, 0, 200, on_sent=lambda sent: None).chunks())


def test_a_url_is_submitted_once_however_often_the_request_is_sent() -> None:
    line = ScriptedLine([AWAY, answer(job(JobStatus.QUEUED).model_dump_json())] * 2)

    for _ in range(2):
        run(line.api.jobs.create("https://example.com/clip.mp4"))

    first, again, second, second_again = [headers.get("Idempotency-Key") for headers in line.headers]
    assert first == again
    assert second == second_again
    assert first != second


def test_a_request_whose_first_try_is_still_worked_on_is_sent_again() -> None:
    conflict = problem(409, "idempotency_conflict", Retry_After="1")
    line = ScriptedLine([AWAY, conflict, answer(job(JobStatus.QUEUED).model_dump_json())])

    assert run(line.api.jobs.create("https://example.com/clip.mp4")).id == JOB_ID

    assert line.pauses_seconds[1] == 1


# --- following --------------------------------------------------------------------------------------------------------


def test_a_job_is_followed_over_a_stream_that_breaks_and_no_event_is_asked_for_twice() -> None:
    # Given
    line = ScriptedLine(
        [
            events(job(JobStatus.QUEUED), job(JobStatus.RUNNING, 3), AWAY),
            events(job(JobStatus.RUNNING, 7), first_id=3),  # then the gateway shuts down
            events(job(JobStatus.SUCCEEDED, 10), first_id=4),
        ]
    )

    # When
    seen = [(one.status, one.progress.frames_done) for one in iterate(line.api.jobs.events(JOB_ID))]

    # Then
    assert seen == [("queued", 0), ("running", 3), ("running", 7), ("succeeded", 10)]
    assert [headers.get("Last-Event-ID") for headers in line.headers] == [None, "2", "3"]


def test_a_proxy_that_ends_every_stream_before_anything_changes_does_not_end_the_wait() -> None:
    # Given more such streams than patience would last for if none of them counted
    nothing_new = [AWAY] * 100
    line = ScriptedLine(
        [events(job(JobStatus.RUNNING, 3)), *([error] for error in nothing_new), events(job(JobStatus.SUCCEEDED, 10))]
    )

    # When
    ended = run(line.api.jobs.wait(JOB_ID, patience_seconds=5))

    # Then
    assert ended.status is JobStatus.SUCCEEDED
    assert len(line.pauses_seconds) == 101
    assert set(line.pauses_seconds) == {1.0}


def test_a_stream_that_falls_silent_later_is_not_listened_to_for_ever() -> None:
    silent = ServiceUnreachableError("http://service", "timed out", was_silent=True)
    line = ScriptedLine(
        [events(job(JobStatus.RUNNING), AWAY), [silent], answer(job(JobStatus.FAILED).model_dump_json())]
    )
    assert run(line.api.jobs.wait(JOB_ID)).status is JobStatus.FAILED


@pytest.mark.parametrize(
    "no_events",
    [
        problem(404, "not_found"),
        answer("<html></html>", Content_Type="text/html"),
        answer(status=204),
        problem(429, "too_many_listeners", Retry_After="5"),
        ServiceUnreachableError("http://service", "timed out", was_silent=True),
        [],
    ],
    ids=[
        "an older service",
        "a proxy's page",
        "nothing to come",
        "too many listen",
        "a proxy that holds events back",
        "a proxy that ends the stream at once",
    ],
)
def test_where_events_do_not_get_through_the_job_is_asked_for(
    no_events: httpx2.Response | Exception | list[httpx2.ServerSentEvent | Exception],
) -> None:
    states = [job(JobStatus.RUNNING, 3), job(JobStatus.RUNNING, 3), job(JobStatus.FAILED, 3)]
    states[1] = states[0]
    line = ScriptedLine([no_events, *(answer(state.model_dump_json()) for state in states)])

    seen = [one.status for one in iterate(line.api.jobs.events(JOB_ID, poll_seconds=3))]

    assert seen == ["running", "failed"]
    assert line.pauses_seconds == [3, 3]


def test_a_job_that_is_not_there_is_not_waited_for() -> None:
    line = ScriptedLine([problem(404, "job_not_found")])
    with pytest.raises(NotFoundResponseError):
        run(line.api.jobs.wait(JOB_ID))


def test_events_of_something_else_are_an_error() -> None:
    line = ScriptedLine([[httpx2.ServerSentEvent(event="status", data="{}")]])
    with pytest.raises(ForeignResponseError):
        run(line.api.jobs.wait(JOB_ID))


def test_events_that_nobody_listens_to_any_more_are_given_up() -> None:
    line = ScriptedLine([events(job(JobStatus.QUEUED), job(JobStatus.RUNNING))])
    jobs = iterate(line.api.jobs.events(JOB_ID))
    assert next(jobs).status == "queued"
    jobs.close()  # type: ignore[attr-defined]
    assert line.asked == [f"LISTEN /v1/jobs/{JOB_ID}/events"]


# --- more than one call -----------------------------------------------------------------------------------------------


def test_a_job_that_fails_is_an_error_of_upscale_with_its_reason(tmp_path: Path) -> None:
    # Given
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"abc")
    failed = job(JobStatus.FAILED, error=JobError(code=FailureCode.NO_FRAMES, message="there are none"))
    line = ScriptedLine(
        [
            answer(status=201, Location="uploads/abc"),
            answer(status=204, Upload_Offset="3"),
            answer(job(JobStatus.QUEUED).model_dump_json(), 202),
            events(job(JobStatus.QUEUED), job(JobStatus.RUNNING, 4), failed),
        ]
    )
    told: list[Progress] = []

    # When
    with pytest.raises(JobEndedError, match="no_frames: there are none") as error:
        run(line.api.upscale(source, tmp_path / "out.mp4", told.append))

    # Then
    assert error.value.job == failed
    assert [one.step for one in told] == ["uploading", "queued", "running", "running"]
    assert (told[2].done, told[2].total, told[2].fraction) == (4, 10, 0.4)


def test_a_preview_is_asked_for_until_it_is_there(tmp_path: Path) -> None:
    under_way = problem(409, "preview_under_way", Retry_After="2")
    line = ScriptedLine([under_way, answer(status=202), under_way, answer("two seconds", VSR_At_Seconds="3.48")])

    assert run(line.api.jobs.preview(JOB_ID, tmp_path / "preview.mp4", at_seconds=3.5)) == 3.48

    assert (tmp_path / "preview.mp4").read_text() == "two seconds"
    assert line.pauses_seconds == [2, 2]


def test_a_preview_that_will_never_be_there_is_not_waited_for(tmp_path: Path) -> None:
    line = ScriptedLine([answer(status=202), problem(409, "preview_failed")])
    with pytest.raises(NoResultResponseError):
        run(line.api.jobs.preview(JOB_ID, tmp_path / "preview.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_saved_with_the_time_that_it_is_of(tmp_path: Path) -> None:
    line = ScriptedLine([answer("jpeg", VSR_At_Seconds="1.96")])
    assert run(line.api.jobs.thumbnail(JOB_ID, tmp_path / "frame.jpg", of="source", at_seconds=2)) == 1.96
    assert (tmp_path / "frame.jpg").read_text() == "jpeg"


def test_nothing_is_run_that_would_wait_for_an_event_loop() -> None:
    class Waiting:
        def __await__(self) -> AsyncIterator[None]:  # type: ignore[misc]
            yield

    async def waits() -> None:
        await Waiting()  # type: ignore[misc]

    with pytest.raises(RuntimeError, match="event loop"):
        run(waits())
