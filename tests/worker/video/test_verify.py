"""What the check of the finished file compares that no muxer of ours can be made to get wrong."""

from array import array
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest

from worker.contract.failure import JobFailureError
from worker.contract.job import Container
from worker.video.packets import StreamContents, read_contents
from worker.video.values import FrameTable
from worker.video.verify import Timing, check_video_times

MakeVideo = Callable[..., Path]
MILLISECOND = Fraction(1, 1000)


def table(*milliseconds: int) -> FrameTable:
    return FrameTable(
        pts=milliseconds, stamps=None, crc32=(0,) * len(milliseconds), time_base=MILLISECOND, last_duration=40
    )


def contents(*milliseconds: int, disorder: int | None = None) -> StreamContents:
    return StreamContents(MILLISECOND, framed=False, pts=array("q", milliseconds), disorder=disorder)


def test_decoding_times_that_go_back_are_found(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a broadcast of ten frames that begins again
    once = make_video("once.ts", frames=10, time_base=Fraction(1, 90000)).read_bytes()
    (tmp_path / "twice.ts").write_bytes(2 * once)
    found = []
    for name in ("once.ts", "twice.ts"):
        with av.open(str(tmp_path / name)) as container:
            found.append(read_contents(container, [container.streams[0]])[0].disorder)
    assert found == [None, 10]


def test_decoding_times_must_rise_where_the_container_holds_them() -> None:
    with pytest.raises(JobFailureError, match="packet 2 of the picture is to be decoded before the one before it"):
        check_video_times(contents(0, 40, 80, disorder=2), table(0, 40, 80), Container.MP4)
    # and Matroska holds none: its readers guess
    assert check_video_times(contents(0, 40, 80, disorder=2), table(0, 40, 80), Container.MKV) == Timing(
        Fraction(0), Fraction(0)
    )


def test_only_matroska_may_begin_later_and_by_a_second_at_most() -> None:
    late = check_video_times(contents(500, 540), table(0, 40), Container.MKV)
    assert late.shift == Fraction(1, 2)
    for milliseconds, container in ((500, Container.MP4), (1200, Container.MKV)):
        with pytest.raises(JobFailureError, match="frame 0 is at"):
            check_video_times(contents(milliseconds, milliseconds + 40), table(0, 40), container)
