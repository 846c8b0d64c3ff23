"""Looking at jobs, canceling and deleting them; the tests move them on as a worker would."""

import pytest

from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway
from worker.contract.failure import FailureCode
from worker.contract.job import Container, JobError, JobOptions, JobRecord, VideoCodec, now
from worker.contract.queue import TaskQueue
from worker.contract.registry import JobRegistry


def test_a_running_job_shows_its_progress(gateway: RunningGateway) -> None:
    # Given a job of three segments, one of them done and one under way
    job = gateway.add_job()
    gateway.registry.start(job.id, SOURCE_INFO)
    gateway.registry.start_rendering(job.id, frames_total=30, segments_total=3, finished_segments={})
    gateway.registry.finish_segment(job.id, 0, 10, 3)
    gateway.registry.note_segment_progress(job.id, 1, 5)

    # When
    seen = gateway.http.get(f"/v1/jobs/{job.id}").json()

    # Then
    progress = seen["progress"]
    assert (seen["status"], seen["queue_position"], seen["started_at"] is None) == ("running", None, False)
    assert (progress["frames_done"], progress["frames_total"], progress["fraction"]) == (15, 30, 0.5)
    assert (progress["segments_done"], progress["segments_total"]) == (1, 3)
    assert progress["fps"] > 0
    assert progress["eta_seconds"] is not None
    assert (seen["source"]["width"], seen["source"]["streams"][0]["codec"]) == (64, "h264")


def test_a_finished_job_shows_its_result_also_after_redis_forgot_it(gateway: RunningGateway) -> None:
    # Given
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")
    gateway.redis.flushall()

    # When
    seen = gateway.http.get(f"/v1/jobs/{job.id}").json()

    # Then
    assert (seen["status"], seen["progress"]["fraction"], seen["progress"]["eta_seconds"]) == ("succeeded", 1.0, None)
    assert (seen["result"]["size_bytes"], seen["result"]["width"]) == (6, 128)
    assert seen["result"]["url"] == seen["links"]["result"] == f"/v1/jobs/{job.id}/result"


def test_a_failed_job_says_why(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.registry.fail(job.id, JobError(code=FailureCode.NOT_A_VIDEO, message="this is a text file"))

    seen = gateway.http.get(f"/v1/jobs/{job.id}").json()

    assert seen["error"] == {"code": "not_a_video", "message": "this is a text file"}


def test_pages_run_from_the_newest_to_the_last(gateway: RunningGateway) -> None:
    # Given
    ids = [gateway.add_job().id for _ in range(5)]

    # When every page is asked for
    pages, cursor = [], None
    while True:
        page = gateway.http.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        pages.append([job["id"] for job in page["jobs"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break

    # Then each job came once
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [job_id for page in pages for job_id in page] == sorted(ids, reverse=True)


def test_a_last_page_that_is_full_has_no_cursor(gateway: RunningGateway) -> None:
    gateway.add_job()
    gateway.add_job()

    assert gateway.http.get("/v1/jobs", params={"limit": 2}).json()["next_cursor"] is None


def test_the_list_can_be_narrowed_to_a_status(gateway: RunningGateway) -> None:
    # Given
    jobs = [gateway.add_job() for _ in range(3)]
    gateway.registry.cancel(jobs[1].id)

    # When
    page = gateway.http.get("/v1/jobs", params={"status": "canceled"}).json()

    # Then
    assert [job["id"] for job in page["jobs"]] == [jobs[1].id]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "status=done", "cursor=x"])
def test_a_wrong_question_about_the_list_is_refused(gateway: RunningGateway, query: str) -> None:
    answer = gateway.http.get(f"/v1/jobs?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["location"] == f"query.{query.partition('=')[0]}"


def test_canceling_is_idempotent_and_leaves_a_finished_job_as_it_is(gateway: RunningGateway) -> None:
    # Given a waiting job and a finished one
    waiting, finished = gateway.add_job(), gateway.add_job()
    gateway.finish_job(finished.id, b"result")

    # When both are canceled twice
    answers = [gateway.http.post(f"/v1/jobs/{job.id}/cancel") for job in (waiting, waiting, finished, finished)]

    # Then
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json()["status"] for answer in answers] == ["canceled", "canceled", "succeeded", "succeeded"]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("query", "body", "is_kept"),
    [
        ("", None, False),
        ("", {}, False),
        ("", {"keep_partial": False}, False),
        ("", {"keep_partial": True}, True),
        ("?keep_partial=true", None, True),
        ("?keep_partial=true", {"keep_partial": False}, True),
    ],
)
def test_what_is_finished_is_kept_only_if_that_is_wished(
    gateway: RunningGateway, query: str, body: dict[str, bool] | None, is_kept: bool
) -> None:
    # Given
    job = gateway.add_job()
    gateway.registry.start(job.id, SOURCE_INFO)

    # When it is canceled, twice
    answers = [gateway.http.post(f"/v1/jobs/{job.id}/cancel{query}", json=body) for _ in range(2)]

    # Then it is canceled at once, and a worker has something to do or not
    expected = ("canceled", "being_made" if is_kept else None, None)
    for answer in answers:
        seen = answer.json()
        assert (seen["status"], seen["partial_result"], seen["result"]) == expected
    assert TaskQueue(gateway.redis).rq.job_ids == ([f"{job.id}-assemble"] if is_kept else [])


def test_a_finished_job_stays_as_it_is_whatever_is_to_be_kept(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")

    seen = gateway.http.post(f"/v1/jobs/{job.id}/cancel", json={"keep_partial": True}).json()

    assert (seen["status"], seen["partial_result"]) == ("succeeded", None)
    assert TaskQueue(gateway.redis).waiting() == 0


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"keep_partial": "perhaps"}',
        b'{"keep_partial": 0}',
        b'{"keep": true}',
        b"\x7f\x14\xff",
        b" " * 2000,
    ],
)
def test_a_wrong_wish_is_refused_and_cancels_nothing(gateway: RunningGateway, body: bytes) -> None:
    job = gateway.add_job()

    answer = gateway.http.post(f"/v1/jobs/{job.id}/cancel", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert not gateway.registry.is_final(job.id)


def test_a_job_of_which_something_was_kept_is_tried_again_as_one_without_result(gateway: RunningGateway) -> None:
    # Given
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)
    gateway.keep_partial_result(job.id, b"the beginning")

    # When
    seen = gateway.http.post(f"/v1/jobs/{job.id}/retry").json()

    # Then
    assert (seen["status"], seen["result"], seen["partial_result"]) == ("queued", None, None)


def test_deleting_a_running_job_ends_it_and_removes_all_its_media(gateway: RunningGateway) -> None:
    # Given a job under way, its tasks in the queue
    queue = TaskQueue(gateway.redis)
    job, other = gateway.add_job(), gateway.add_job()
    queue.enqueue_plan(other.id)
    gateway.registry.start(job.id, SOURCE_INFO)
    gateway.registry.start_rendering(job.id, frames_total=30, segments_total=3, finished_segments={})
    queue.enqueue_first_segments(job.id, 3, 2)
    segment = gateway.storage.folder(job.id).segment(0, ".mp4")
    segment.parent.mkdir()
    segment.write_bytes(b"segment")

    # When
    answer = gateway.http.delete(f"/v1/jobs/{job.id}")

    # Then nothing of it is left, in storage, in Redis, in the queue; the other job is
    assert (answer.status_code, answer.content) == (204, b"")
    assert gateway.registry.is_final(job.id)
    assert gateway.storage.job_ids() == [other.id]
    assert [path.name for path in gateway.storage.jobs.iterdir()] == [other.id]
    assert not [key for key in gateway.redis.scan_iter() if job.id in key.decode()]
    assert queue.rq.get_job_ids() == [f"{other.id}-plan"]
    assert gateway.http.get(f"/v1/jobs/{job.id}").status_code == 404


CALLS = [
    ("GET", ""),
    ("DELETE", ""),
    ("POST", "/cancel"),
    ("POST", "/retry"),
    ("GET", "/events"),
    ("GET", "/result"),
    ("GET", "/report"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_a_job_that_does_not_exist_is_not_found(gateway: RunningGateway, method: str, path: str) -> None:
    answer = gateway.http.request(method, f"/v1/jobs/{'0' * 20}{path}")

    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_what_is_no_job_id_is_refused(gateway: RunningGateway, method: str, path: str) -> None:
    answer = gateway.http.request(method, f"/v1/jobs/..%00{path}")

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("ended", ["failed", "canceled"])
def test_a_job_that_ended_without_a_result_can_be_tried_again(gateway: RunningGateway, ended: str) -> None:
    # Given a job that has ended so, and what RQ remembers of its tasks
    job = gateway.add_job()
    queue = TaskQueue(gateway.redis)
    queue.enqueue_plan(job.id)
    queue.rq.empty()
    if ended == "failed":
        gateway.registry.fail(job.id, JobError(code=FailureCode.OUT_OF_DISK, message="the disk is full"))
    else:
        gateway.registry.cancel(job.id)

    # When it is tried again, twice
    answers = [gateway.http.post(f"/v1/jobs/{job.id}/retry") for _ in range(2)]

    # Then it waits once, and nothing tells of its end
    for answer in answers:
        seen = answer.json()
        assert (answer.status_code, seen["status"], seen["error"], seen["finished_at"]) == (200, "queued", None, None)
    assert queue.rq.job_ids == [f"{job.id}-plan"]


def test_segments_of_a_result_that_was_not_right_are_not_tried_again(gateway: RunningGateway) -> None:
    # Given two failed jobs with a segment each, of which one fails because its segments do not fit together
    jobs = {code: gateway.add_job() for code in (FailureCode.VERIFICATION_FAILED, FailureCode.OUT_OF_DISK)}
    for code, job in jobs.items():
        folder = gateway.storage.folder(job.id)
        folder.make_segments()
        folder.segment(0, ".mp4").write_bytes(b"a segment")
        folder.rendering.write_text("{}")
        gateway.registry.fail(job.id, JobError(code=code, message="it went wrong"))

    # When both are tried again
    for job in jobs.values():
        assert gateway.http.post(f"/v1/jobs/{job.id}/retry").json()["status"] == "queued"

    # Then only the other one's are kept
    for code, job in jobs.items():
        folder = gateway.storage.folder(job.id)
        is_kept = code is not FailureCode.VERIFICATION_FAILED
        assert (folder.segment(0, ".mp4").exists(), folder.rendering.exists()) == (is_kept, is_kept)


def test_what_was_kept_cannot_be_had_once_the_job_is_tried_again(gateway: RunningGateway) -> None:
    # Given a canceled job of which the beginning was kept
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)
    gateway.keep_partial_result(job.id, b"the beginning")
    assert gateway.http.get(f"/v1/jobs/{job.id}/result").content == b"the beginning"

    # When it is tried again
    gateway.http.post(f"/v1/jobs/{job.id}/retry")

    # Then neither the beginning nor its report can be had, until the whole replaces them
    for name in ("result", "report"):
        answer = gateway.http.get(f"/v1/jobs/{job.id}/{name}")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_finished")
    gateway.finish_job(job.id, b"the whole")
    assert gateway.http.get(f"/v1/jobs/{job.id}/result").content == b"the whole"


def test_a_gateway_that_stalls_in_a_retry_removes_no_result(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a canceled job of which the beginning was kept, and a gateway that stalls right after it put the job back
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)
    gateway.keep_partial_result(job.id, b"the beginning")
    retry = JobRegistry.retry

    def retry_and_stall(registry: JobRegistry, job_id: str) -> JobRecord | None:
        retried = retry(registry, job_id)
        gateway.finish_job(job_id, b"the whole")  # by a worker, meanwhile
        return retried

    monkeypatch.setattr(JobRegistry, "retry", retry_and_stall)

    # When
    gateway.http.post(f"/v1/jobs/{job.id}/retry")

    # Then
    assert gateway.http.get(f"/v1/jobs/{job.id}/result").content == b"the whole"


def test_a_job_with_its_result_is_not_tried_again(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.finish_job(job.id, b"result")

    answer = gateway.http.post(f"/v1/jobs/{job.id}/retry")

    assert (answer.status_code, answer.json()["code"]) == (409, "job_succeeded")


def test_several_jobs_can_be_looked_at_at_once_in_the_order_asked(start_gateway: StartGateway) -> None:
    # Given jobs of one's own, one of them canceled, and one of somebody else
    gateway = start_gateway(api_keys="mine,theirs")
    gateway.http.headers["X-API-Key"] = "mine"
    ids = []
    for _ in range(3):
        gateway.http.put("/v1/uploads/a", content=b"abc")
        ids.append(gateway.http.post("/v1/jobs", json={"upload_id": "a"}).json()["id"])
    gateway.registry.cancel(ids[1])
    theirs, gone = gateway.add_job(owner="0" * 12).id, "0" * 20

    # When they are asked for in an order of one's own, with some twice, and some that cannot be had
    asked = [ids[1], theirs, ids[2], gone, ids[0], ids[1]]
    page = gateway.http.get("/v1/jobs", params={"id": asked, "limit": 1}).json()
    canceled = gateway.http.get("/v1/jobs", params={"id": asked, "status": "canceled"}).json()

    # Then each of one's own comes once, as it is when looked at alone
    assert [job["id"] for job in page["jobs"]] == [ids[1], ids[2], ids[0]]
    assert page["next_cursor"] is None
    assert page["jobs"] == [gateway.http.get(f"/v1/jobs/{job_id}").json() for job_id in (ids[1], ids[2], ids[0])]
    assert [job["id"] for job in canceled["jobs"]] == [ids[1]]


@pytest.mark.parametrize("asked", [["x"], ["0" * 20, "../0000000000000000"], ["0" * 20] * 101])
def test_what_are_no_ids_or_too_many_are_refused(gateway: RunningGateway, asked: list[str]) -> None:
    answer = gateway.http.get("/v1/jobs", params={"id": asked})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_links_are_there_for_what_can_be_had(gateway: RunningGateway) -> None:
    # Given a job that waits, three whose results no browser plays, and one that has ended
    waiting, ended = gateway.add_job(), gateway.add_job()
    gateway.finish_job(ended.id, b"result")
    masters = []
    for options in (
        JobOptions(codec=VideoCodec.PRORES),
        JobOptions(quality="lossless"),
        JobOptions(container=Container.ZIP),
    ):
        masters.append(gateway.add_job())
        with_options = {"options": options}
        gateway.registry.change(masters[-1].id, lambda job, update=with_options: job.model_copy(update=update))

    # When
    links = [gateway.http.get(f"/v1/jobs/{job.id}").json()["links"] for job in (waiting, ended, *masters)]

    # Then
    names = ("events", "stream", "preview", "thumbnail", "source")
    missing = [[name for name in names if link[name] is None] for link in links]
    assert missing == [[], ["preview"], ["stream"], ["stream"], ["stream"]]
    assert links[0]["stream"] == f"/v1/jobs/{waiting.id}/stream.m3u8"
    # And of what is no longer kept there is none
    gateway.registry.change(ended.id, lambda job: job.model_copy(update={"media_removed_at": now()}))
    links_after = gateway.http.get(f"/v1/jobs/{ended.id}").json()["links"]
    assert [name for name in names if links_after[name] is not None] == ["events"]
