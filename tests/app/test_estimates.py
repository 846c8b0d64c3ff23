"""What a job would take, from what segments have cost."""

import pytest

from tests.app.conftest import SOURCE_INFO, RunningGateway, StartGateway
from worker.contract.job import DEFAULT_PRESET, JobOptions, VideoCodec
from worker.contract.speeds import note_segment

HD = {"width": 1280, "height": 720, "frames": 100}
HD_PIXELS = 1280 * 720 * 100


def note_cost(gateway: RunningGateway, seconds_for_hd: float, options: JobOptions | None = None) -> None:
    note_segment(
        gateway.redis,
        options or JobOptions(),
        VideoCodec.H264,
        pixels=HD_PIXELS,
        seconds=seconds_for_hd,
        size_bytes=5_000_000,
    )


def test_what_was_never_measured_is_null(gateway: RunningGateway) -> None:
    assert gateway.http.post("/v1/estimate", json=HD).json() == {
        "frames": 100,
        "seconds": None,
        "wait_seconds": None,
        "frames_per_second": None,
        "result_bytes": None,
        "basis": "unknown",
    }


@pytest.mark.parametrize(
    ("length", "frames"),
    [
        ({"frames": 200}, 200),
        ({"duration_seconds": 10, "frame_rate": 20}, 200),
        ({"duration_seconds": 6.66, "frame_rate": 29.97}, 200),
        ({"duration_seconds": 6.66, "frame_rate": "30000/1001"}, 200),
        ({"duration_seconds": 6.66}, 200),
        ({"duration_seconds": 1001, "frame_rate": 29.97}, 30000),
        ({"duration_seconds": 0.001}, 1),
    ],
)
def test_what_was_measured_is_scaled_to_the_video(
    gateway: RunningGateway, length: dict[str, float], frames: int
) -> None:
    # Given that 100 frames of 1280x720 took 40 seconds and 5 MB
    note_cost(gateway, 40)

    # When a quarter of the picture is asked for
    seen = gateway.http.post("/v1/estimate", json={"width": 640, "height": 360} | length).json()

    # Then
    assert seen == {
        "frames": frames,
        "seconds": pytest.approx(frames / 10, abs=0.1),
        "wait_seconds": 0,
        "frames_per_second": 10,
        "result_bytes": pytest.approx(frames * 12_500),
        "basis": "measured",
    }


def test_other_options_are_not_taken_for_the_measured_ones(gateway: RunningGateway) -> None:
    note_cost(gateway, 40)

    other_networks = gateway.http.post("/v1/estimate", json=HD | {"preset": "paper"}).json()
    other_codec = gateway.http.post("/v1/estimate", json=HD | {"container": "webm"}).json()

    assert (other_networks["basis"], other_networks["seconds"]) == ("unknown", None)
    assert (other_codec["seconds"], other_codec["result_bytes"]) == (40, None)


def test_every_worker_takes_its_share(gateway: RunningGateway) -> None:
    # Given two live workers, as RQ registers them
    note_cost(gateway, 40)
    for name in ("one", "two"):
        gateway.redis.sadd("rq:workers:vsr", f"rq:worker:{name}")
        gateway.redis.hset(f"rq:worker:{name}", "state", "idle")

    assert gateway.http.post("/v1/estimate", json=HD).json()["seconds"] == 20


def test_jobs_that_are_there_take_turns_with_it(gateway: RunningGateway) -> None:
    # Given a short job of which two thirds are left, one that is far longer, and one that nobody has looked into
    note_cost(gateway, 40)
    source = SOURCE_INFO.model_copy(update={"width": 1280, "height": 720})
    for frames, frames_done in ((30, 10), (5000, 0)):
        job = gateway.add_job()
        gateway.registry.start(job.id, source.model_copy(update={"frames": frames}))
        gateway.registry.start_rendering(job.id, frames, 1, {})
        gateway.registry.note_segment_progress(job.id, 0, frames_done)
    gateway.add_job()
    # And one that has ended
    gateway.finish_job(gateway.add_job().id, b"result")

    # When
    seen = gateway.http.post("/v1/estimate", json=HD).json()

    # Then the first adds its own rest, and each of the others what this one takes itself
    assert (seen["seconds"], seen["wait_seconds"]) == (40, 8 + 40 + 40)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"width": 1280, "height": 720},
        HD | {"duration_seconds": 3},
        HD | {"frames": 0},
        HD | {"width": 0},
        HD | {"quality": "best"},
        HD | {"more": 1},
        {"width": 1280, "height": 720, "duration_seconds": float("nan")},
        {"width": 1280, "height": 720, "duration_seconds": 1, "frame_rate": float("nan")},
        {"width": 1280, "height": 720, "duration_seconds": float("inf")},
    ],
)
def test_a_wrong_question_is_refused(gateway: RunningGateway, body: dict[str, object]) -> None:
    answer = gateway.http.post("/v1/estimate", content=repr(body).replace("'", '"').replace("nan", "NaN"))

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_preset_that_there_is_not_is_refused(gateway: RunningGateway) -> None:
    answer = gateway.http.post("/v1/estimate", json=HD | {"preset": "best"})

    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_preset")
    assert DEFAULT_PRESET in answer.json()["known_presets"]


def test_an_estimate_needs_a_key(start_gateway: StartGateway) -> None:
    assert start_gateway(api_keys="first-key").http.post("/v1/estimate", json=HD).status_code == 401
