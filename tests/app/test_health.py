"""Alive, ready, and which models are loaded."""

from pathlib import Path

import pytest
from redis import Redis

from app.embedded_redis import EmbeddedRedis
from tests.app.conftest import RunningGateway, StartGateway, wait_until
from worker.contract.cage_gaps import announce_cage_gap, is_there_a_cage_gap
from worker.contract.job import now
from worker.contract.presets import LoadedModel, announce_loaded


def register_worker(redis: Redis, name: str, state: str, ttl_seconds: int = 60) -> None:
    """What RQ writes for a live worker process."""
    redis.sadd("rq:workers:vsr", f"rq:worker:{name}")
    redis.hset(f"rq:worker:{name}", "state", state)
    redis.expire(f"rq:worker:{name}", ttl_seconds)


def test_a_service_is_ready_without_workers_and_says_that_there_are_none(gateway: RunningGateway, redis: Redis) -> None:
    # Given
    before = gateway.http.get("/readyz")

    # When a worker comes, and another has died long ago
    register_worker(redis, "alive", "idle")
    redis.sadd("rq:workers:vsr", "rq:worker:dead")
    after = gateway.http.get("/readyz")

    # Then
    assert (before.status_code, before.json()["workers"]) == (200, 0)
    assert before.json()["warnings"] == ["no live worker: jobs are accepted and wait"]
    assert after.json() == {"status": "ready", "missing": [], "warnings": [], "workers": 1}


def test_a_worker_whose_cage_is_not_whole_is_told_until_it_is_gone(gateway: RunningGateway, redis: Redis) -> None:
    # Given a worker that says so, for a few of its heartbeats
    register_worker(redis, "alive", "idle")
    announce_cage_gap(redis, ttl_seconds=1)

    # When it says so no more
    warned = gateway.http.get("/readyz")
    wait_until(lambda: not is_there_a_cage_gap(redis))
    silent = gateway.http.get("/readyz")

    # Then the service is ready with and without the warning
    assert (warned.json()["status"], silent.json()["status"]) == ("ready", "ready")
    [warning] = warned.json()["warnings"]
    assert "less protection" in warning
    assert silent.json()["warnings"] == []


def test_a_missing_redis_is_named_while_the_process_is_alive(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        gateway = start_gateway(redis_url=server.url)

    # When
    ready, alive = gateway.http.get("/readyz"), gateway.http.get("/healthz")

    # Then
    assert ready.status_code == 503
    assert (ready.json()["status"], ready.json()["missing"]) == ("not_ready", ["redis does not answer"])
    assert ready.json()["workers"] is None
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})


def test_a_gateway_starts_without_redis_and_is_ready_once_it_comes(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given a gateway that was started first
    server = EmbeddedRedis(tmp_path / "own-redis")
    gateway = start_gateway(redis_url=server.url)
    before = gateway.http.get("/readyz").status_code

    # When
    with server:
        after = gateway.http.get("/readyz").status_code

    # Then
    assert (before, after) == (503, 200)


def test_a_storage_that_is_nearly_full_is_named(start_gateway: StartGateway) -> None:
    ready = start_gateway(min_free_bytes=2**62).http.get("/readyz")

    assert ready.status_code == 503
    assert ready.json()["missing"] == [f"storage has less than {2**62} bytes free"]


def test_a_storage_that_went_away_is_named(gateway: RunningGateway) -> None:
    gateway.storage.uploads.rmdir()

    assert gateway.http.get("/readyz").json()["missing"] == ["storage is not writable"]


@pytest.mark.parametrize(
    ("setting", "value", "warning"),
    [
        ("maxmemory-policy", "allkeys-lru", "redis may forget jobs when its memory is full"),
        ("appendonly", "no", "redis forgets its queue in a crash"),
    ],
)
def test_a_redis_that_may_lose_jobs_is_warned_about(
    gateway: RunningGateway, redis: Redis, setting: str, value: str, warning: str
) -> None:
    # Given
    before = redis.config_get(setting)[setting]
    redis.config_set(setting, value)
    try:
        # When
        ready = gateway.http.get("/readyz")
    finally:
        redis.config_set(setting, before)

    # Then it is ready all the same
    assert ready.status_code == 200
    assert ready.json()["warnings"][0].startswith(warning)


def test_models_tell_which_are_loaded(gateway: RunningGateway, redis: Redis) -> None:
    # Given a worker with one of them
    announce_loaded(
        redis, LoadedModel(preset="compact", scale=2, description="", device="cpu", loaded_at=now()), ttl_seconds=60
    )

    # When
    models = {model["preset"]: model for model in gateway.http.get("/v1/models").json()["models"]}

    # Then
    assert set(models) == {"aligned", "balanced", "compact", "paper", "paper-residual"}
    assert (models["compact"]["loaded"], models["compact"]["scale"], models["compact"]["device"]) == (True, 2, "cpu")
    assert (models["paper"]["loaded"], models["paper"]["scale"]) == (False, None)
    assert models["paper"]["description"]
