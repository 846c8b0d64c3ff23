"""What is handed out of a job while it is rendered: the playlist and its parts, pictures, the source."""

import base64
import hashlib

import pytest

from tests.app.conftest import RunningGateway, StartGateway
from worker.contract.job import JobRecord
from worker.contract.queue import TaskQueue
from worker.contract.storage import JobFolder
from worker.contract.stream import LiveFacts, PreviewFacts, StreamSegment

HEADER = b"what a player reads first"
FACTS = LiveFacts(segment_suffix=".mp4", borders_seconds=(0.0, 4.0, 8.004, 10.5), why_not_streamed=None)
WHOLE = ["stream/00000.m4s", "stream/00001.m4s", "stream/00002.m4s"]


def plan(gateway: RunningGateway, record: JobRecord, facts: LiveFacts = FACTS) -> JobFolder:
    """As far as a worker has come when it has laid out the work."""
    folder = gateway.storage.folder(record.id)
    folder.make_live()
    folder.live_facts.write_text(facts.model_dump_json())
    return folder


def finish(folder: JobFolder, index: int) -> None:
    """Publish a segment: its packets are its number in letters, between what belongs to its own file alone."""
    folder.make_segments()
    folder.stream_header.write_bytes(HEADER)
    packets = f"segment {index} of the film".encode()
    content = b"own" + packets[:9] + b"other" + packets[9:] + b"end"
    ranges = [(3, 9), (17, len(packets) - 9)]
    folder.stream_segment(index).write_text(described(index, ranges, len(content)))
    folder.still(f"{index:05d}", "source").write_bytes(f"source {index}".encode())
    folder.still(f"{index:05d}", "result").write_bytes(f"result {index}".encode())
    folder.segment(index, ".mp4").write_bytes(content)


def described(index: int, ranges: list[tuple[int, int]], file_bytes: int) -> str:
    head = base64.b64encode(f"moof {index} ".encode())
    return StreamSegment(head=head, file_bytes=file_bytes, ranges=tuple(ranges)).model_dump_json()


def playlist(gateway: RunningGateway, record: JobRecord) -> list[str]:
    answer = gateway.http.get(f"/v1/jobs/{record.id}/stream.m3u8")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/vnd.apple.mpegurl"
    return answer.text.splitlines()


def parts(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("stream/")]


def test_the_playlist_grows_with_the_job_and_ends_with_it(gateway: RunningGateway) -> None:
    # given a job of three segments, of which the first and the last are finished, and the other one is about to be
    record = gateway.add_job()
    folder = plan(gateway, record)
    finish(folder, 0)
    finish(folder, 2)
    folder.stream_segment(1).write_text(described(1, [(0, 1)], 1))
    # then a player gets what it can play without a gap, from the beginning
    lines = playlist(gateway, record)
    assert lines == [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        "#EXT-X-TARGETDURATION:5",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "#EXT-X-START:TIME-OFFSET=0,PRECISE=YES",
        '#EXT-X-MAP:URI="stream/header.mp4"',
        "#EXTINF:4.000000,",
        "stream/00000.m4s",
    ]
    # when the gap is closed, what was there stays as it is
    finish(folder, 1)
    longer = playlist(gateway, record)
    assert longer[: len(lines)] == lines
    assert parts(longer) == WHOLE
    assert longer[-2:] == ["#EXTINF:2.496000,", "stream/00002.m4s"]
    # and when the job has ended, so has the list
    gateway.registry.cancel(record.id)
    assert playlist(gateway, record) == [*longer, "#EXT-X-ENDLIST"]


def test_a_part_is_put_together_of_its_file(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    folder = plan(gateway, record)
    finish(folder, 0)
    path = f"/v1/jobs/{record.id}"
    header = gateway.http.get(f"{path}/stream/header.mp4")
    part = gateway.http.get(f"{path}/stream/00000.m4s")
    assert (header.status_code, header.content) == (200, HEADER)
    assert (part.status_code, part.content) == (200, b"moof 0 segment 0 of the film")
    assert part.headers["Content-Length"] == str(len(part.content))
    assert part.headers["Cache-Control"] == "no-store"


def test_the_stream_of_a_succeeded_job_is_read_out_of_its_result(gateway: RunningGateway) -> None:
    # given a job whose segments are gone, as its result has their packets
    record = gateway.add_job()
    folder = plan(gateway, record)
    folder.stream_header.write_bytes(HEADER)
    result = b"headerABsoundCDend"
    all_ranges = [[(6, 1)], [(7, 1), (13, 1)], [(14, 1)]]
    lines = [described(index, ranges, len(result)) for index, ranges in enumerate(all_ranges)]
    folder.stream_in_result.write_text("".join(f"{line}\n" for line in lines))
    gateway.finish_job(record.id, result)
    # then it can be watched as before
    listed = playlist(gateway, record)
    assert parts(listed) == WHOLE
    assert listed[-1] == "#EXT-X-ENDLIST"
    found = [gateway.http.get(f"/v1/jobs/{record.id}/{part}").content for part in WHOLE]
    assert found == [b"moof 0 A", b"moof 1 BC", b"moof 2 D"]


def test_a_file_that_is_another_by_now_is_not_read(gateway: RunningGateway) -> None:
    # given a segment that was removed, and one that was made anew in another way
    record = gateway.add_job()
    folder = plan(gateway, record)
    finish(folder, 0)
    finish(folder, 1)
    folder.segment(0, ".mp4").unlink()
    folder.segment(1, ".mp4").write_bytes(b"another")
    # then neither is given out as what it was
    for name in ("00000.m4s", "00001.m4s", "00002.m4s", "00003.m4s"):
        answer = gateway.http.get(f"/v1/jobs/{record.id}/stream/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "nothing_finished")


@pytest.mark.parametrize("name", ["..%2Fjob.json", "facts.json", "00000.json", "0.m4s", "00000.mp4", "header.mp4%00"])
def test_nothing_else_of_the_folder_can_be_had(gateway: RunningGateway, name: str) -> None:
    record = gateway.add_job()
    finish(plan(gateway, record), 0)
    answer = gateway.http.get(f"/v1/jobs/{record.id}/stream/{name}")
    assert answer.status_code in (404, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_before_the_first_segment_there_is_nothing_to_watch(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    path = f"/v1/jobs/{record.id}"
    for step in (lambda: None, lambda: plan(gateway, record)):
        step()
        for name, code in [("stream.m3u8", "nothing_finished"), ("stream/header.mp4", "nothing_finished")]:
            answer = gateway.http.get(f"{path}/{name}")
            assert (answer.status_code, answer.json()["code"]) == (404, code)
        answer = gateway.http.get(f"{path}/thumbnail")
        assert (answer.status_code, answer.json()["code"]) == (404, "no_picture")
        assert answer.json()["job_status"] == "queued"


def test_what_no_browser_plays_says_so(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    why = "No browser plays ffv1 as a stream: submit with codec h264 to watch it."
    plan(gateway, record, FACTS.model_copy(update={"why_not_streamed": why}))
    answer = gateway.http.get(f"/v1/jobs/{record.id}/stream.m3u8")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_streamable")
    assert answer.json()["detail"] == why


@pytest.mark.parametrize(
    ("at_seconds", "nearest"), [(None, 0), (0.0, 0), (1.9, 0), (2.1, 1), (5.9, 1), (6.1, 2), (1e6, 2)]
)
def test_the_nearest_picture_is_given_of_source_and_result_alike(
    gateway: RunningGateway, at_seconds: float | None, nearest: int
) -> None:
    record = gateway.add_job()
    folder = plan(gateway, record)
    for index in range(3):
        finish(folder, index)
    for of in ("source", "result"):
        asked = {"of": of} | ({} if at_seconds is None else {"at_seconds": str(at_seconds)})
        answer = gateway.http.get(f"/v1/jobs/{record.id}/thumbnail", params=asked)
        assert (answer.status_code, answer.content) == (200, f"{of} {nearest}".encode())
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert float(answer.headers["VSR-At-Seconds"]) == FACTS.borders_seconds[nearest]


@pytest.mark.parametrize("asked", [{"of": "both"}, {"at_seconds": "-1"}, {"at_seconds": "nan"}, {"at_seconds": "inf"}])
def test_a_picture_of_no_time_is_refused(gateway: RunningGateway, asked: dict[str, str]) -> None:
    record = gateway.add_job()
    finish(plan(gateway, record), 0)
    answer = gateway.http.get(f"/v1/jobs/{record.id}/thumbnail", params=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("film.mp4", "video/mp4"), ("FILM.MOV", "video/quicktime"), ("page.html", "application/octet-stream")],
)
def test_the_source_comes_back_in_ranges_and_never_as_a_page(
    gateway: RunningGateway, name: str, media_type: str
) -> None:
    record = gateway.add_job(name, b"0123456789")
    path = f"/v1/jobs/{record.id}/source"
    whole = gateway.http.get(path)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["Content-Type"] == media_type
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Content-Disposition"].startswith("attachment")
    part = gateway.http.get(path, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    again = gateway.http.get(path, headers={"If-None-Match": whole.headers["ETag"]})
    assert again.status_code == 304
    beyond = gateway.http.get(path, headers={"Range": "bytes=99-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")


def test_a_source_that_is_still_fetched_is_not_there_yet(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    fetched = record.model_copy(update={"source_url": "https://example.org/film.mp4", "source_sha256": ""})
    gateway.registry.change(record.id, lambda job: fetched.model_copy(update={"revision": job.revision}))
    answer = gateway.http.get(f"/v1/jobs/{record.id}/source")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_finished")


# --- previews ---------------------------------------------------------------------------------------------------------


def take_preview(gateway: RunningGateway, record: JobRecord, **facts: object) -> None:
    """What a worker does with one that waits: it leaves what became of it, and the queue knows that it has ended."""
    folder = gateway.storage.folder(record.id)
    folder.make_live()
    folder.preview.write_bytes(b"two seconds")
    for of in ("source", "result"):
        folder.still("preview", of).write_bytes(f"{of} of the preview".encode())  # type: ignore[arg-type]
    content = {"at_seconds": 5.5, "frames": 50, "sha256": "cd" * 32} | facts
    folder.preview_facts.write_text(PreviewFacts.model_validate(content).model_dump_json())
    gateway.redis.hset(f"rq:job:{record.id}-preview", "status", "finished")
    gateway.redis.delete("rq:queue:vsr")


def waiting(gateway: RunningGateway) -> list[str]:
    return [name.decode() for name in gateway.redis.lrange("rq:queue:vsr", 0, -1)]  # type: ignore[union-attr]


def test_a_preview_is_made_before_all_else_and_then_handed_out(gateway: RunningGateway) -> None:
    # given a job behind another one
    other, record = gateway.add_job(), gateway.add_job("holiday film.mov")
    queue = TaskQueue(gateway.redis)
    queue.enqueue_plan(other.id)
    queue.enqueue_plan(record.id)
    path = f"/v1/jobs/{record.id}/preview"
    none = gateway.http.get(path)
    assert (none.status_code, none.json()["code"]) == (404, "no_preview")
    # when its preview is asked for
    asked = gateway.http.post(path, json={"at_seconds": 5.5})
    # then it is the next to be made
    assert (asked.status_code, asked.json()) == (202, {"url": path, "at_seconds": 5.5})
    assert asked.headers["Location"] == path
    assert waiting(gateway) == [f"{record.id}-preview", f"{other.id}-plan", f"{record.id}-plan"]
    # and until then there is none
    for again in (gateway.http.get(path), gateway.http.post(path, json={"at_seconds": 1})):
        assert (again.status_code, again.json()["code"]) == (409, "preview_under_way")
        assert again.headers["Retry-After"] == "1"
    # and when it is there, a browser gets it in ranges
    take_preview(gateway, record)
    made = gateway.http.get(path)
    assert (made.status_code, made.content) == (200, b"two seconds")
    assert made.headers["Content-Type"] == "video/mp4"
    assert made.headers["VSR-At-Seconds"] == "5.500000"
    assert 'filename="holiday film_preview.mp4"' in made.headers["Content-Disposition"]
    part = gateway.http.get(path, headers={"Range": "bytes=0-2"})
    assert (part.status_code, part.content) == (206, b"two")
    # and the pictures nearest to it are its own, before any segment is finished
    plan(gateway, record)
    for of in ("source", "result"):
        picture = gateway.http.get(f"/v1/jobs/{record.id}/thumbnail", params={"of": of, "at_seconds": 5})
        assert picture.content == f"{of} of the preview".encode()
        assert picture.headers["VSR-At-Seconds"] == "5.500000"
    # and it can be asked for anew
    assert gateway.http.post(path).json()["at_seconds"] == 0
    assert waiting(gateway) == [f"{record.id}-preview"]


def test_the_job_is_not_touched_by_a_preview(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    before = gateway.http.get(f"/v1/jobs/{record.id}").json()
    content = gateway.storage.folder(record.id).record.read_bytes()
    gateway.http.post(f"/v1/jobs/{record.id}/preview", json={"at_seconds": 1})
    assert gateway.http.get(f"/v1/jobs/{record.id}").json() == before
    assert gateway.storage.folder(record.id).record.read_bytes() == content


def test_of_two_jobs_of_a_key_one_has_its_preview_made(start_gateway: StartGateway) -> None:
    gateway = start_gateway(api_keys=["first-key", "second-key"])
    one, other = ({"X-API-Key": key} for key in ("first-key", "second-key"))
    owners = [hashlib.sha256(key.encode()).hexdigest()[:12] for key in ("first-key", "second-key")]
    first, second, anothers = (gateway.add_job(owner=owners[number]) for number in (0, 0, 1))
    assert gateway.http.post(f"/v1/jobs/{first.id}/preview", headers=one).status_code == 202
    # given that one of a key's is made, the next has to wait
    refused = gateway.http.post(f"/v1/jobs/{second.id}/preview", headers=one)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_previews")
    assert refused.headers["Retry-After"]
    # but that of another key has not
    assert gateway.http.post(f"/v1/jobs/{anothers.id}/preview", headers=other).status_code == 202
    take_preview(gateway, first)
    assert gateway.http.post(f"/v1/jobs/{second.id}/preview", headers=one).status_code == 202


def test_a_preview_that_failed_says_why(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    error = {"code": "corrupt_frame", "message": "frame 7 cannot be decoded"}
    take_preview(gateway, record, error=error)
    answer = gateway.http.get(f"/v1/jobs/{record.id}/preview")
    assert (answer.status_code, answer.json()["code"]) == (409, "preview_failed")
    assert answer.json()["detail"] == "frame 7 cannot be decoded"
    assert answer.json()["error"] == error
    plan(gateway, record)
    assert gateway.http.get(f"/v1/jobs/{record.id}/thumbnail").status_code == 404


def test_an_ended_job_gets_no_new_preview_and_keeps_its_last(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    take_preview(gateway, record)
    gateway.registry.cancel(record.id)
    refused = gateway.http.post(f"/v1/jobs/{record.id}/preview")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_ended")
    assert gateway.http.get(f"/v1/jobs/{record.id}/preview").content == b"two seconds"
    assert waiting(gateway) == []


@pytest.mark.parametrize(
    "body", [b'{"at_seconds": -1}', b'{"at_seconds": "NaN"}', b'{"at": 1}', b"[]", b'{"at_seconds": 1e999}']
)
def test_a_preview_of_no_time_is_refused(gateway: RunningGateway, body: bytes) -> None:
    record = gateway.add_job()
    answer = gateway.http.post(f"/v1/jobs/{record.id}/preview", content=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert waiting(gateway) == []


def test_a_deleted_job_takes_its_preview_along(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    gateway.http.post(f"/v1/jobs/{record.id}/preview")
    assert gateway.http.delete(f"/v1/jobs/{record.id}").status_code == 204
    assert waiting(gateway) == []


LIVE = ["preview", "stream.m3u8", "stream/header.mp4", "stream/00000.m4s", "thumbnail", "source"]


@pytest.mark.parametrize("name", LIVE)
def test_what_has_expired_is_gone(gateway: RunningGateway, name: str) -> None:
    record = gateway.add_job()
    finish(plan(gateway, record), 0)
    gateway.registry.cancel(record.id)
    removed = {"media_removed_at": record.created_at}
    gateway.registry.change(record.id, lambda job: job.model_copy(update=removed))
    answer = gateway.http.get(f"/v1/jobs/{record.id}/{name}")
    assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")


@pytest.mark.parametrize("name", LIVE)
def test_another_key_sees_none_of_it(start_gateway: StartGateway, name: str) -> None:
    gateway = start_gateway(api_keys=["first-key", "second-key"])
    record = gateway.add_job(owner="0" * 12)
    finish(plan(gateway, record), 0)
    without = gateway.http.get(f"/v1/jobs/{record.id}/{name}")
    assert without.status_code == 401
    other = gateway.http.get(f"/v1/jobs/{record.id}/{name}", headers={"X-API-Key": "second-key"})
    assert (other.status_code, other.json()["code"]) == (404, "job_not_found")


def test_a_deleted_job_leaves_nothing_to_watch(gateway: RunningGateway) -> None:
    record = gateway.add_job()
    finish(plan(gateway, record), 0)
    assert gateway.http.delete(f"/v1/jobs/{record.id}").status_code == 204
    assert gateway.files() == []
    assert gateway.http.get(f"/v1/jobs/{record.id}/stream.m3u8").status_code == 404
