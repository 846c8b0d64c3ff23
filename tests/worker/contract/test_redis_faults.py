"""A Redis that takes no data for now is told apart from a bug of ours."""

from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from app.embedded_redis import EmbeddedRedis
from worker.contract.redis_faults import is_unavailable


@pytest.mark.parametrize(
    ("error", "unavailable"),
    [
        (RedisConnectionError("Connection refused"), True),
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), True),
        (ResponseError("Command # 1 (HSET a b c) of pipeline caused error: MISCONF Errors writing"), True),
        (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
        (ResponseError("unknown command 'MISCONF '"), False),
    ],
)
def test_what_passes_is_told_apart_from_what_does_not(error: RedisError, unavailable: bool) -> None:
    assert is_unavailable(error) is unavailable


@pytest.mark.parametrize("setting", [("min-replicas-to-write", 1), ("maxmemory", 1)])
def test_a_server_that_takes_no_writes_is_known_from_its_own_words(tmp_path: Path, setting: tuple[str, int]) -> None:
    # Given a server without the copies, or without the memory, that it demands
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as redis:
        redis.config_set(*setting)

        # When it is written to, plainly and in a transaction
        with pytest.raises(RedisError) as plain:
            redis.set("key", "value")
        with redis.pipeline() as pipe:
            pipe.set("key", "value")
            with pytest.raises(RedisError) as queued:
                pipe.execute()

    # Then
    assert is_unavailable(plain.value)
    assert is_unavailable(queued.value)
