"""How fast this service has been lately, from the segments that it finished: what estimates are made of.

vsr:speed:{preset}[:reuse]       hash  pixels of the source, and the seconds that one worker took for them
vsr:size:{codec}:{quality}       hash  pixels of the source, and the bytes that their picture became

With every segment the sums before it lose a tenth: so they follow a change of machines or weights within a few dozen
segments, and a short segment counts less than a long one. Lost with Redis, they come back with the next segment.
"""

from typing import cast

from redis import Redis

from worker.contract.job import JobOptions, VideoCodec

_KEPT_SECONDS = 90 * 24 * 3600

# KEYS: a hash. ARGV: pixels, what they cost, for how long to keep it.
_NOTE = """
local pixels, cost = unpack(redis.call('HMGET', KEYS[1], 'pixels', 'cost'))
redis.call('HSET', KEYS[1], 'pixels', 0.9 * (pixels or 0) + ARGV[1], 'cost', 0.9 * (cost or 0) + ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""


def note_segment(
    redis: Redis, options: JobOptions, codec: VideoCodec, *, pixels: int, seconds: float, size_bytes: int
) -> None:
    """A segment is finished. `pixels`: of the source, all its frames together; `codec`: of the result."""
    note = redis.register_script(_NOTE)
    for key, cost in ((_speed_key(options), seconds), (_size_key(options, codec), size_bytes)):
        note(keys=[key], args=[pixels, cost, _KEPT_SECONDS])


def seconds_per_pixel(redis: Redis, options: JobOptions) -> float | None:
    """Of one worker. None: it has not been measured."""
    return _per_pixel(redis, _speed_key(options))


def bytes_per_pixel(redis: Redis, options: JobOptions, codec: VideoCodec) -> float | None:
    """Of the result's picture, for each pixel of the source. None: it has not been measured."""
    return _per_pixel(redis, _size_key(options, codec))


def _per_pixel(redis: Redis, key: str) -> float | None:
    pixels, cost = cast(list[bytes | None], redis.hmget(key, "pixels", "cost"))
    return float(cost) / float(pixels) if pixels and cost else None


def _speed_key(options: JobOptions) -> str:
    return f"vsr:speed:{options.preset}:reuse" if options.reuse else f"vsr:speed:{options.preset}"


def _size_key(options: JobOptions, codec: VideoCodec) -> str:
    quality = options.quality or "balanced" if options.crf is None else options.crf
    return f"vsr:size:{codec}:{quality}"
