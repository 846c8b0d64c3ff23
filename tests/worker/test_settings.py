"""A child process sees the settings of its parent, whatever the environment says."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from worker.contract.settings import RedisSettings
from worker.settings import VideoLimits, WorkerSettings, as_environment


def test_settings_arrive_in_a_child_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given settings that differ from the environment's
    monkeypatch.setenv("VSR_PRESET", "paper")
    settings = WorkerSettings(preset="tiny-random", device="cpu", tile_px=64, weights_dir=tmp_path, lease_seconds=2.5)
    limits = VideoLimits(max_frames=7)
    redis = RedisSettings(redis_url=SecretStr("redis://:secret@localhost"))

    # When they go through the environment
    for name, value in as_environment(settings, limits, redis, OMP_NUM_THREADS="3").items():
        monkeypatch.setenv(name, value)

    # Then
    assert WorkerSettings() == settings
    assert VideoLimits() == limits
    assert RedisSettings() == redis


def test_the_keys_to_the_service_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_API_KEYS", "hunter2")
    monkeypatch.setenv("VSR_API_KEY", "hunter2")
    assert "hunter2" not in as_environment(WorkerSettings()).values()


def test_what_is_not_set_is_not_handed_on() -> None:
    assert "VSR_TILE_PX" not in as_environment(WorkerSettings(tile_px=None))
    assert as_environment(OMP_NUM_THREADS="3")["OMP_NUM_THREADS"] == "3"


def test_the_secret_that_signs_webhooks_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_WEBHOOK_SECRET", "hunter2")
    assert "hunter2" not in as_environment(WorkerSettings()).values()
