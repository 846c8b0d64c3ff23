"""A finished segment is ours: nothing else is opened in its place."""

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.settings import VideoLimits
from worker.video.read_segment import read_segment
from worker.video.survey import survey


def test_a_playlist_in_the_place_of_a_segment_opens_no_other_file(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    # Given a neighbour's video, and where a segment is expected, a list that names it
    neighbour = make_video("neighbour.mp4", frames=3)
    picture = survey(neighbour, VideoLimits()).picture
    segment = tmp_path / "00000.mp4.host.1.abcd.part"
    segment.write_text(f"ffconcat version 1.0\nfile '{neighbour.name}'\n")
    # Then it is not opened; the neighbour's own file would be
    with pytest.raises(JobFailureError) as caught:
        list(read_segment(segment, picture, 3, {0}))
    assert caught.value.code is FailureCode.VERIFICATION_FAILED
    assert len(list(read_segment(neighbour, picture, 3, {0}))) == 1
