"""With reuse_result the same work is not done twice for one owner; without it, and for everybody else, it is."""

import hashlib
import json

import httpx2
import pytest

from tests.app.conftest import RunningGateway, StartGateway
from worker.contract.job import JobStatus, now
from worker.contract.presets import LoadedModel, announce_loaded

KEY, OTHER_KEY = "first-key", "second-key"
CONTENT = b"video bytes"


@pytest.fixture
def shared(start_gateway: StartGateway) -> RunningGateway:
    gateway = start_gateway(api_keys=f"{KEY},{OTHER_KEY}")
    announce(gateway, "2:weights")
    return gateway


def announce(gateway: RunningGateway, network: str | None) -> None:
    """What a worker with networks in its memory says."""
    model = LoadedModel(
        preset="aligned", scale=2, description="", device="cpu", loaded_at=now(), network=network
    )  # fmt: skip
    announce_loaded(gateway.redis, model, ttl_seconds=60)


def submit(
    gateway: RunningGateway,
    key: str = KEY,
    content: bytes = CONTENT,
    headers: dict[str, str] | None = None,
    **fields: str,
) -> httpx2.Response:
    return gateway.http.post(
        "/v1/jobs",
        files={"file": ("clip.mp4", content)},
        data={"reuse_result": "true"} | fields,
        headers={"X-API-Key": key},
    )


def finish(gateway: RunningGateway, job_id: str, network: str | None = "2:weights") -> None:
    """As a worker does it, with a report that names the networks."""
    gateway.finish_job(job_id, b"result")
    report = json.loads(REPORT) | {"network": network}
    gateway.storage.folder(job_id).report.write_text(json.dumps(report))


FACTS = {
    "container": "mp4", "size_bytes": 6, "sha256": "ab" * 32, "duration_seconds": 1.2, "frames": 30,
    "frame_rate": "25/1", "time_base": "1/12800", "codec": "h264", "width": 64, "height": 48,
    "pixel_format": "yuv420p", "bit_depth": 8, "transparency": False, "sample_aspect_ratio": None,
    "clean_aperture": None, "rotation": None, "display_matrix": None, "field_order": "progressive",
    "colour_range": None, "colour_matrix": None, "colour_primaries": None, "colour_transfer": None,
    "chroma_location": None, "mastering_display": None, "content_light": None, "chapters": 0,
}  # fmt: skip
REPORT = json.dumps(
    {
        "source": FACTS,
        "result": FACTS,
        "properties": [],
        "streams": [],
        "frames": {"source": 30, "result": 30},
        "timestamps": {"exact": True, "largest_rounding_seconds": 0, "shift_seconds": 0, "words": "exact"},
        "sound_offsets": [],
        "scene_cuts": [],
        "losses": [],
        "lost_in_container": [],
        "notes": [],
        "quality": {
            "frames_compared": 0, "psnr_db": None, "worst_psnr_db": None, "worst_frame": None,
            "tile_borders": None, "segment_borders": None,
        },
        "stage_seconds": {},
        "frames_per_second": None,
        "tag": "twostep-vsr 0",
    }
)  # fmt: skip


def test_the_same_video_again_is_answered_with_the_job_that_has_its_result(shared: RunningGateway) -> None:
    # Given
    first = submit(shared)
    finish(shared, first.json()["id"])

    # When it comes as a form again, and as an upload
    by_form = submit(shared)
    shared.http.put("/v1/uploads/clip", content=CONTENT, headers={"X-API-Key": KEY})
    body = {"upload_id": "clip", "reuse_result": True}
    by_upload = shared.http.post("/v1/jobs", json=body, headers={"X-API-Key": KEY})

    # Then nothing is done, and the upload is used up
    assert (first.status_code, first.json()["result_is_reused"]) == (202, False)
    for answer in (by_form, by_upload):
        assert answer.status_code == 200
        assert answer.headers["Location"] == first.headers["Location"]
        assert (answer.json()["status"], answer.json()["result_is_reused"]) == ("succeeded", True)
    assert shared.storage.job_ids() == [first.json()["id"]]
    assert len(list(shared.storage.jobs.iterdir())) == 1
    assert list(shared.storage.uploads.iterdir()) == []
    again = shared.http.post("/v1/jobs", json=body, headers={"X-API-Key": KEY})
    assert (again.status_code, again.json()["code"]) == (404, "upload_not_found")


def test_nothing_is_reused_unasked_or_across_keys_or_where_anything_differs(shared: RunningGateway) -> None:
    # Given a finished job
    first = submit(shared).json()["id"]
    finish(shared, first)

    # When others come that are nearly the same
    answers = {
        "unasked": submit(shared, reuse_result="false"),
        "another key": submit(shared, OTHER_KEY),
        "other bytes": submit(shared, content=CONTENT + b"."),
        "other options": submit(shared, crf="20"),
    }

    # Then each is a job of its own
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 202)
    assert len(shared.storage.job_ids()) == 5


@pytest.mark.parametrize(
    "why", ["failed", "expired", "file gone", "report gone", "other networks", "no worker", "old worker"]
)
def test_a_result_that_is_not_there_or_would_be_another_today_is_not_reused(shared: RunningGateway, why: str) -> None:
    # Given a job that ended
    job = submit(shared).json()["id"]
    folder = shared.storage.folder(job)
    if why == "failed":
        shared.registry.cancel(job)
    else:
        finish(shared, job)
    match why:
        case "expired":
            shared.registry.change(job, lambda one: one.model_copy(update={"media_removed_at": now()}))
        case "file gone":
            (folder.path / "result.mp4").unlink()
        case "report gone":
            folder.report.unlink()
        case "other networks":
            announce(shared, "2:other-weights")
        case "no worker":
            shared.redis.delete("vsr:models:aligned")
        case "old worker":
            announce(shared, None)

    # When
    answer = submit(shared)

    # Then
    assert answer.status_code == 202
    assert answer.json()["id"] != job


def test_a_repeated_request_gets_the_reused_job_again(shared: RunningGateway) -> None:
    # Given a request with an Idempotency-Key that got an earlier job
    first = submit(shared).json()["id"]
    finish(shared, first)
    once = {"Idempotency-Key": "once"}
    shared.http.put("/v1/uploads/clip", content=CONTENT, headers={"X-API-Key": KEY})

    # When it is repeated, its upload being used up
    answers = [
        shared.http.post(
            "/v1/jobs", json={"upload_id": "clip", "reuse_result": True}, headers={"X-API-Key": KEY} | once
        )
        for _ in range(2)
    ]

    # Then
    assert [(answer.status_code, answer.json()["id"]) for answer in answers] == [(200, first)] * 2
    assert shared.storage.job_ids() == [first]


def test_without_keys_results_are_reused_too_and_found_again_after_redis_was_emptied(gateway: RunningGateway) -> None:
    # Given
    job = gateway.http.post("/v1/jobs", files={"file": ("a.mp4", CONTENT)}).json()["id"]
    finish(gateway, job)
    gateway.redis.flushall()
    gateway.registry.change(job, lambda current: current)  # as the reconciler does
    announce(gateway, "2:weights")

    # When
    answer = gateway.http.post("/v1/jobs", files={"file": ("b.mp4", CONTENT)}, data={"reuse_result": "true"})

    # Then
    assert (answer.status_code, answer.json()["id"]) == (200, job)


def test_a_deleted_job_leaves_nothing_to_reuse(shared: RunningGateway) -> None:
    # Given
    job = submit(shared).json()["id"]
    finish(shared, job)

    # When
    shared.http.delete(f"/v1/jobs/{job}", headers={"X-API-Key": KEY})

    # Then
    assert shared.registry.with_result_of(hashlib.sha256(CONTENT).hexdigest(), None) == []
    assert not [key for key in shared.redis.scan_iter() if b"vsr:results" in key]
    again = shared.registry.get(submit(shared).json()["id"])
    assert again is not None
    assert again.status is JobStatus.QUEUED
