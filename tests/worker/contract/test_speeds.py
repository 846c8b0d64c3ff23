"""What is remembered of the segments' cost."""

import pytest
from redis import Redis

from worker.contract.job import JobOptions, VideoCodec
from worker.contract.speeds import bytes_per_pixel, note_segment, seconds_per_pixel

OPTIONS = JobOptions(preset="compact")


def note(redis: Redis, pixels: int, seconds: float, size_bytes: int, options: JobOptions = OPTIONS) -> None:
    note_segment(redis, options, VideoCodec.H264, pixels=pixels, seconds=seconds, size_bytes=size_bytes)


def test_nothing_is_known_before_a_segment_was_measured(redis: Redis) -> None:
    assert seconds_per_pixel(redis, OPTIONS) is None
    assert bytes_per_pixel(redis, OPTIONS, VideoCodec.H264) is None


def test_the_first_segment_is_all_that_is_known(redis: Redis) -> None:
    note(redis, 1000, 2.5, 30)

    assert seconds_per_pixel(redis, OPTIONS) == pytest.approx(0.0025)
    assert bytes_per_pixel(redis, OPTIONS, VideoCodec.H264) == pytest.approx(0.03)
    assert all(redis.ttl(key) > 0 for key in redis.scan_iter("vsr:*"))


def test_segments_count_by_their_length_and_the_older_the_less(redis: Redis) -> None:
    note(redis, 1000, 1, 10)
    note(redis, 3000, 9, 60)

    assert seconds_per_pixel(redis, OPTIONS) == pytest.approx((0.9 * 1 + 9) / (0.9 * 1000 + 3000))
    assert bytes_per_pixel(redis, OPTIONS, VideoCodec.H264) == pytest.approx((0.9 * 10 + 60) / (0.9 * 1000 + 3000))


def test_a_faster_machine_shows_within_a_few_dozen_segments(redis: Redis) -> None:
    for _ in range(100):
        note(redis, 1000, 10, 10)
    for _ in range(30):
        note(redis, 1000, 1, 10)

    assert seconds_per_pixel(redis, OPTIONS) == pytest.approx(0.001, rel=0.5)


@pytest.mark.parametrize(
    ("other", "knows_speed", "knows_size"),
    [
        (JobOptions(preset="compact", codec=VideoCodec.H264, quality="balanced"), True, True),
        (JobOptions(preset="compact", quality="high"), True, False),
        (JobOptions(preset="compact", crf=20), True, False),
        (JobOptions(preset="paper"), False, True),
        (JobOptions(preset="compact", reuse=True), False, True),
    ],
)
def test_what_costs_something_else_is_remembered_apart(
    redis: Redis, other: JobOptions, knows_speed: bool, knows_size: bool
) -> None:
    note(redis, 1000, 1, 10)

    assert (seconds_per_pixel(redis, other) is not None) is knows_speed
    assert (bytes_per_pixel(redis, other, VideoCodec.H264) is not None) is knows_size
    assert bytes_per_pixel(redis, other, VideoCodec.AV1) is None
