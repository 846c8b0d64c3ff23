"""Times survive being written down, however odd they are."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from worker.video.values import FrameTable

TIME_BASES = st.builds(Fraction, st.integers(1, 1001), st.integers(1, 2**31 - 1))


@given(pts=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50, unique=True), time_base=TIME_BASES)
def test_a_table_of_frames_comes_back_from_json_to_the_last_tick(pts: list[int], time_base: Fraction) -> None:
    table = FrameTable(pts=tuple(sorted(pts)), stamps=None, crc32=(0,) * len(pts), time_base=time_base, last_duration=1)
    back = FrameTable.model_validate_json(table.model_dump_json())
    assert back == table
    assert back.time_base == time_base
    assert [back.stamp(number) for number in range(len(back))] == sorted(pts)


@given(numerator=st.integers(-(10**30) + 1, 10**30 - 1), denominator=st.integers(1, 10**30 - 1))
def test_a_fraction_is_exact_in_json(numerator: int, denominator: int) -> None:
    ratio = Fraction(numerator, denominator)
    table = FrameTable(pts=(0,), stamps=None, crc32=(0,), time_base=ratio, last_duration=1)
    assert FrameTable.model_validate_json(table.model_dump_json()).time_base == ratio
