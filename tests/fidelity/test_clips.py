"""Real videos, from telephones, cameras, studios and screens, through the command's code."""

from pathlib import Path

import pytest

from tests.fidelity.comparison import (
    assert_decoding_order,
    assert_doubled,
    assert_report_agrees,
    assert_same_chapters,
    assert_same_frame_times,
    assert_same_streams,
    assert_same_tags,
    facts_of,
)
from tests.fidelity.product import upscale
from tests.fidelity.row import Row

REPOSITORY = Path(__file__).parents[2]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "data" / "clips"
CLIPS = sorted(SHARED_CLIPS.iterdir() if SHARED_CLIPS.is_dir() else (REPOSITORY / "examples").glob("*.mp4"))


def row_of(clip: Path) -> Row:
    """Whatever is particular about a clip."""
    if clip.suffix == ".wmv":
        return Row(lambda folder: clip, outcomes={})
    return Row(lambda folder: clip)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.stem)
def test_a_real_clip_keeps_everything_but_its_pixels(clip: Path, tmp_path: Path) -> None:
    row = row_of(clip)
    upscaled = upscale(row, clip, tmp_path, segment_frames=32)
    source, result = upscaled.source, upscaled.result
    assert_same_frame_times(source, result)
    assert_decoding_order(result)
    assert_same_streams(row, source, result)
    assert_same_tags(row, source, result)
    assert_same_chapters(source, result)
    assert facts_of(result.video) == facts_of(source.video) | dict(row.changes)
    assert_report_agrees(row, upscaled)
    # A real picture has few flat places, and chroma of 4:2:0 is smoothed: only those are compared.
    last = len(source.video.frames) - 1
    assert_doubled(source.pixels, result.pixels, 1, (0, last // 2, last), flat_share=0.001)
