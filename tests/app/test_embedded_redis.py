"""The server of day one: nobody installs it, and it loses nothing."""

import os
import signal
import stat
from pathlib import Path

import pytest
from redis import Redis

from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError


def test_what_was_accepted_survives_the_death_of_the_server(tmp_path: Path) -> None:
    # Given a server that holds a value
    with EmbeddedRedis(tmp_path / "redis") as server:
        Redis.from_url(server.url).set("job", "accepted")
        assert server.pid is not None

        # When it is killed, and another is started on the same folder
        os.kill(server.pid, signal.SIGKILL)
        os.waitpid(server.pid, 0)
        with EmbeddedRedis(tmp_path / "redis") as successor:
            value = Redis.from_url(successor.url).get("job")

    # Then
    assert value == b"accepted"


def test_only_this_user_can_open_the_socket(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        mode = stat.S_IMODE(server.socket.stat().st_mode)
        folder_mode = stat.S_IMODE(server.socket.parent.stat().st_mode)
    assert mode == 0o700
    assert folder_mode == 0o700


def test_it_refuses_new_keys_rather_than_forgetting_old_ones(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        configuration = Redis.from_url(server.url).config_get("maxmemory-policy", "appendonly")
    assert configuration == {"maxmemory-policy": "noeviction", "appendonly": "yes"}


def test_a_second_service_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    # Given a running server; when a second one is to use the same folder; then it says so and leaves the first alone
    with EmbeddedRedis(tmp_path / "redis") as first:
        with pytest.raises(EmbeddedRedisError, match="already running"):
            EmbeddedRedis(tmp_path / "redis").start()
        assert Redis.from_url(first.url).ping()


def test_a_folder_whose_path_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedRedisError, match="too long"):
        EmbeddedRedis(tmp_path / ("x" * 120)).start()
