"""Decoding from any point gives the frames that the survey saw, or says that it cannot."""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.survey import survey
from worker.video.values import Survey

MakeVideo = Callable[..., Path]
LIMITS = VideoLimits()

SOURCES: dict[str, dict[str, object]] = {
    "closed.mp4": {"options": {"preset": "ultrafast", "g": "10"}},
    "deep-b-frames.mp4": {"options": {"preset": "medium", "bf": "8", "b-pyramid": "normal", "g": "20"}},
    "open-gop.mkv": {
        "time_base": Fraction(1, 1000),
        "options": {"preset": "medium", "bf": "4", "g": "8", "x264-params": "open-gop=1:scenecut=0"},
    },
    "one-key-frame.mp4": {"options": {"preset": "ultrafast", "g": "1000"}},
    "late-start.mov": {"pts": [5000 + 512 * number for number in range(60)]},
    "broadcast.ts": {"time_base": Fraction(1, 90000), "options": {"preset": "medium", "g": "12"}},
    "old.avi": {"time_base": Fraction(1, 25), "codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "web.webm": {"time_base": Fraction(1, 1000), "codec": "libvpx", "options": {"g": "10"}},
}


def decode(source: Path, facts: Survey, first: int, stop: int) -> list[object]:
    return [frame.rgb for frame in decode_frames(source, facts, first, stop, max_pixels=LIMITS.max_pixels)]


@pytest.mark.parametrize("name", SOURCES)
def test_every_range_is_the_same_as_in_one_run(make_video: MakeVideo, name: str) -> None:
    # given all frames, decoded from start to end
    source = make_video(name, frames=60, **SOURCES[name])
    facts = survey(source, LIMITS)
    everything = decode(source, facts, 0, len(facts.frames))
    assert len(everything) == len(facts.frames) == 60
    # then any range, reached by seeking, is a part of them
    for first in range(0, 60, 7):
        part = decode(source, facts, first, min(first + 9, 60))
        for number, frame in enumerate(part, start=first):
            assert np.array_equal(frame, everything[number]), number


@pytest.mark.parametrize("name", ["broadcast.ts", "stream.flv", "film.mkv", "film.mp4"])
def test_the_way_to_a_range_does_not_grow_with_the_video(make_video: MakeVideo, name: str) -> None:
    # given key frames further apart than codecs reorder frames, in a container that does not know them, and others
    time_base = Fraction(1, 90000 if name == "broadcast.ts" else 1000)
    options = {"preset": "veryfast", "bf": "2", "g": "50", "x264-params": "scenecut=0"}
    source = make_video(name, frames=420, time_base=time_base, options=options)
    facts = survey(source, LIMITS)
    # when a range near its end is decoded
    decoded: list[None] = []
    everything = decode_frames(
        source, facts, 399, 409, max_pixels=LIMITS.max_pixels, on_progress=lambda: decoded.append(None)
    )
    assert len(list(everything)) == 10
    # then what lies before it was not, but for what follows the key frame before it, or the one before that
    assert len(decoded) <= 10 + 2 * 50


LEAVES_DECODERS_AMID_A_VIDEO = """
import sys
from pathlib import Path
from worker.settings import VideoLimits
from worker.video.decode import decode_frames
from worker.video.survey import survey

source = Path(sys.argv[1])
facts = survey(source, VideoLimits())
for round in range(150):
    first = round * 7 % (len(facts.frames) - 2)
    assert len(list(decode_frames(source, facts, first, first + 2, max_pixels=10**8))) == 2
"""


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("video.mkv", "libsvtav1", {"preset": "10", "svtav1-params": "lp=2"}),
        ("video.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_decoders_with_threads_can_be_left_amid_a_video(
    make_video: MakeVideo, name: str, codec: str, options: dict[str, str]
) -> None:
    # given a codec whose decoder works ahead in threads
    source = make_video(
        name, frames=60, width=320, height=240, time_base=Fraction(1, 1000), codec=codec, options=options
    )
    # when short parts of it are decoded, each left at its end, in a process of its own that can be ended if it hangs
    command = [sys.executable, "-c", LEAVES_DECODERS_AMID_A_VIDEO, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # then it comes to an end
    assert done.returncode == 0, done.stderr


def test_a_source_that_has_changed_is_noticed(make_video: MakeVideo) -> None:
    facts = survey(make_video("video.mp4", frames=60), LIMITS)
    changed = make_video("video.mp4", frames=60, picture=lambda n, w, h: np.full((h, w, 3), n, np.uint8))
    with pytest.raises(JobFailureError, match="no longer decode") as failure:
        decode(changed, facts, 30, 40)
    assert failure.value.code is FailureCode.CORRUPT_FRAME


def test_a_source_that_has_become_shorter_is_noticed(make_video: MakeVideo) -> None:
    facts = survey(make_video("video.mp4", frames=60), LIMITS)
    shorter = make_video("video.mp4", frames=50)
    with pytest.raises(JobFailureError) as failure:
        decode(shorter, facts, 45, 60)
    assert failure.value.code is FailureCode.CORRUPT_FRAME
