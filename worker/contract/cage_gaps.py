"""Whether every live worker reads videos in a whole cage, for those who ask the gateway.

vsr:cage-gap     string  1; set by workers whose cage lacks a protection, expires unless their heartbeats renew it
"""

from redis import Redis

_KEY = "vsr:cage-gap"


def announce_cage_gap(redis: Redis, ttl_seconds: int) -> None:
    """Called with every heartbeat of such a worker; `ttl_seconds` spans a few of them."""
    redis.set(_KEY, 1, ex=ttl_seconds)


def is_there_a_cage_gap(redis: Redis) -> bool:
    """Whether a live worker's cage lacks a protection, or one's did a moment ago. Which, its log and metrics tell."""
    return bool(redis.exists(_KEY))
