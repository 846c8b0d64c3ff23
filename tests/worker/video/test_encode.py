"""The same frames give the same bytes: what resuming, several workers and the service's results stand on."""

import hashlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from worker.contract.job import Container, JobOptions, VideoCodec

Render = Callable[..., Any]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("codec", list(VideoCodec))
def test_a_segment_has_the_same_bytes_again_and_on_one_core(
    make_video: Callable[..., Path], render: Render, tmp_path: Path, codec: VideoCodec, pixel_format: str
) -> None:
    # given a segment, rendered twice on all cores
    source = make_video("clip.mkv", time_base=Fraction(1, 1000), frames=24, pixel_format=pixel_format, width=160)
    container = Container.ZIP if codec is VideoCodec.PNG else None
    options = JobOptions(codec=codec, container=container, encoder_preset="faster", drop_unsupported=True)
    digests = set()
    cores = os.sched_getaffinity(0)
    for allowed in (cores, cores, {min(cores)}):
        os.sched_setaffinity(0, allowed)
        try:
            _, [segment] = render(source, options)
        finally:
            os.sched_setaffinity(0, cores)
        digests.add(hashlib.sha256(segment.read_bytes()).hexdigest())
        segment.unlink()
    # then it is the same, and on a single core too
    assert len(digests) == 1
