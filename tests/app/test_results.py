"""The download: ranges, validators, its name, and why there is none."""

import json

import pytest

from tests.app.conftest import RunningGateway
from worker.contract.failure import FailureCode
from worker.contract.job import Container, JobError, JobRecord, PartialResult

CONTENT = bytes(range(200))
ETAG = '"' + "ab" * 32 + '"'


@pytest.fixture
def job(gateway: RunningGateway) -> JobRecord:
    record = gateway.add_job("holiday film.mov")
    gateway.finish_job(record.id, CONTENT)
    return record


def test_the_whole_file_with_its_name_type_and_checksum(gateway: RunningGateway, job: JobRecord) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result")

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Length"] == "200"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename=\"holiday film_2x.mp4\"; filename*=UTF-8''holiday%20film_2x.mp4"
    )


def test_head_tells_the_same_without_the_file(gateway: RunningGateway, job: JobRecord) -> None:
    got = gateway.http.get(f"/v1/jobs/{job.id}/result")
    head = gateway.http.head(f"/v1/jobs/{job.id}/result")

    assert (head.status_code, head.content) == (200, b"")
    for name in ("ETag", "Content-Length", "Content-Type", "Content-Disposition", "Accept-Ranges"):
        assert head.headers[name] == got.headers[name]


RANGES = [
    ("bytes=0-0", CONTENT[:1], "bytes 0-0/200"),
    ("bytes=10-19", CONTENT[10:20], "bytes 10-19/200"),
    ("bytes=190-", CONTENT[190:], "bytes 190-199/200"),
    ("bytes=-5", CONTENT[-5:], "bytes 195-199/200"),
    ("bytes=-999", CONTENT, "bytes 0-199/200"),
    ("bytes=150-999", CONTENT[150:], "bytes 150-199/200"),
]


@pytest.mark.parametrize(("asked", "content", "content_range"), RANGES)
def test_a_range_is_answered_with_that_part(
    gateway: RunningGateway, job: JobRecord, asked: str, content: bytes, content_range: str
) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result", headers={"Range": asked})

    assert (answer.status_code, answer.content) == (206, content)
    assert answer.headers["Content-Range"] == content_range
    assert answer.headers["ETag"] == ETAG


def test_several_ranges_come_in_parts(gateway: RunningGateway, job: JobRecord) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result", headers={"Range": "bytes=0-4, 100-104"})

    assert answer.status_code == 206
    assert answer.headers["Content-Type"].startswith("multipart/byteranges")
    assert CONTENT[:5] in answer.content
    assert CONTENT[100:105] in answer.content


@pytest.mark.parametrize("asked", ["bytes=200-", "bytes=999-1000", "bytes=-0", "bytes=0-1, 500-"])
def test_a_range_beyond_the_end_is_not_satisfiable(gateway: RunningGateway, job: JobRecord, asked: str) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result", headers={"Range": asked})

    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["Content-Range"] == "bytes */200"


@pytest.mark.parametrize(
    "asked",
    ["bytes=", "bytes=x-y", "bytes=5-1", "lines=1-2", "bytes", "bytes=--1", "bytes=1-2-3", f"bytes={'9' * 5000}-"],
)
def test_a_range_that_cannot_be_read_is_ignored(gateway: RunningGateway, job: JobRecord, asked: str) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result", headers={"Range": asked})

    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("if_range", "status"), [(ETAG, 206), ('"other"', 200), (f"W/{ETAG}", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)]
)
def test_a_range_of_another_version_gives_the_whole_file(
    gateway: RunningGateway, job: JobRecord, if_range: str, status: int
) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": if_range}

    assert gateway.http.get(f"/v1/jobs/{job.id}/result", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("if_none_match", "status"),
    [(ETAG, 304), ("*", 304), (f"W/{ETAG}", 304), (f'"x", {ETAG}', 304), ('"x"', 200), ("ab", 200)],
)
def test_a_client_that_has_the_file_is_not_sent_it_again(
    gateway: RunningGateway, job: JobRecord, if_none_match: str, status: int
) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/result", headers={"If-None-Match": if_none_match})

    assert answer.status_code == status
    assert answer.content == (b"" if status == 304 else CONTENT)
    assert answer.headers["ETag"] == ETAG


def test_an_unfinished_job_has_no_result_yet(gateway: RunningGateway) -> None:
    job = gateway.add_job()

    for path in ("result", "report"):
        problem = gateway.http.get(f"/v1/jobs/{job.id}/{path}")
        assert (problem.status_code, problem.json()["code"]) == (409, "not_finished")
        assert problem.json()["job_status"] == "queued"


def test_a_failed_job_answers_with_its_error(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.registry.fail(job.id, JobError(code=FailureCode.NO_FRAMES, message="the video has no frames"))

    problem = gateway.http.get(f"/v1/jobs/{job.id}/result")

    assert (problem.status_code, problem.json()["code"]) == (409, "job_failed")
    assert problem.json()["error"] == {"code": "no_frames", "message": "the video has no frames"}


def test_a_canceled_job_says_so(gateway: RunningGateway) -> None:
    job = gateway.add_job()
    gateway.registry.cancel(job.id)

    problem = gateway.http.get(f"/v1/jobs/{job.id}/result")

    assert (problem.status_code, problem.json()["code"]) == (409, "job_canceled")


def test_what_a_canceled_job_had_finished_is_there_once_it_is_put_together(gateway: RunningGateway) -> None:
    # Given a job that is to keep it
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)

    # When it is asked for before and after
    before = gateway.http.get(f"/v1/jobs/{job.id}/result")
    gateway.keep_partial_result(job.id, b"the beginning")
    after = gateway.http.get(f"/v1/jobs/{job.id}/result")
    seen = gateway.http.get(f"/v1/jobs/{job.id}").json()

    # Then
    assert (before.status_code, before.json()["code"]) == (409, "not_finished")
    assert (after.status_code, after.content) == (200, b"the beginning")
    assert (seen["status"], seen["partial_result"], seen["result"]["frames"]) == ("canceled", "kept", 10)
    assert gateway.http.get(f"/v1/jobs/{job.id}/report").status_code == 200


@pytest.mark.parametrize(
    ("outcome", "words"),
    [(PartialResult.NOTHING_FINISHED, "before its first segment"), (PartialResult.FAILED, "could not be put together")],
)
def test_a_canceled_job_without_anything_to_keep_says_so(
    gateway: RunningGateway, outcome: PartialResult, words: str
) -> None:
    job = gateway.add_job()
    gateway.registry.cancel(job.id, keep_partial=True)
    gateway.registry.end_partial_result(job.id, outcome)

    problem = gateway.http.get(f"/v1/jobs/{job.id}/result").json()

    assert problem["code"] == "job_canceled"
    assert words in problem["detail"]


def test_a_result_that_was_removed_is_gone(gateway: RunningGateway, job: JobRecord) -> None:
    gateway.storage.folder(job.id).result(Container.MP4).unlink()

    problem = gateway.http.get(f"/v1/jobs/{job.id}/result")

    assert (problem.status_code, problem.json()["code"]) == (410, "result_expired")


def test_the_report_is_what_the_worker_wrote(gateway: RunningGateway, job: JobRecord) -> None:
    answer = gateway.http.get(f"/v1/jobs/{job.id}/report")

    assert (answer.status_code, answer.json()) == (200, {"kept": []})


def test_the_report_of_an_earlier_version_is_given_as_it_is(gateway: RunningGateway, job: JobRecord) -> None:
    # Given a report as it was written before it had a version
    earlier = {"container": "mp4", "codec": "h264", "frames": 30, "timestamps": "exact", "streams": [], "tag": "x"}
    gateway.storage.folder(job.id).report.write_text(json.dumps(earlier))

    answer = gateway.http.get(f"/v1/jobs/{job.id}/report")

    assert (answer.status_code, answer.json()) == (200, earlier)


def test_a_job_of_before_there_were_these_options_is_still_shown(gateway: RunningGateway) -> None:
    # Given a record that knows the first five options only
    job = gateway.add_job()
    path = gateway.storage.folder(job.id).record
    record = json.loads(path.read_text())
    first = ("preset", "container", "codec", "crf", "encoder_preset")
    record["options"] = {name: record["options"][name] for name in first}
    path.write_text(json.dumps(record))
    gateway.redis.flushdb()

    answer = gateway.http.get(f"/v1/jobs/{job.id}")

    assert answer.status_code == 200
    assert answer.json()["options"]["on_error"] == "fail"
    assert answer.json()["options"]["drop_unsupported"] is False


NAMES_FROM_HELL = [
    "../../etc/passwd",
    "..\\..\\windows\\system32",
    'a";filename="evil.exe',
    "a\r\nSet-Cookie: x=1",
    "x" * 5000,
    "映画 – Пример.mp4",
    "\u202egpj.exe",
    "con:|?*<>.mp4",
    ".",
    "...",
    "",
    "%00%0d%0a",
    "concat:a|b",
    "a%d.mp4",
]


@pytest.mark.parametrize("name", NAMES_FROM_HELL)
def test_no_name_breaks_out_of_the_header_or_the_folder(gateway: RunningGateway, name: str) -> None:
    # Given a job with such a source name
    job = gateway.http.put("/v1/uploads/clip", content=b"abc")
    job = gateway.http.post("/v1/jobs", json={"upload_id": "clip", "filename": name}).json()
    gateway.finish_job(job["id"], CONTENT)

    # When
    answer = gateway.http.get(f"/v1/jobs/{job['id']}/result")

    # Then the download has one harmless name
    disposition = answer.headers["Content-Disposition"]
    plain, _, encoded = disposition.removeprefix('attachment; filename="').partition("\"; filename*=UTF-8''")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert not set(plain + encoded) & set('"\\/\r\n;')
    assert plain.endswith("_2x.mp4")
    assert encoded.endswith("_2x.mp4")
    assert len(disposition) < 1000
    # And storage has the names it always has
    assert all(path.startswith(f"jobs/{job['id']}/") for path in gateway.files())
