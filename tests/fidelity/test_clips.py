"""Real videos, from telephones, cameras, studios and screens, through the command's code."""

from pathlib import Path

import pytest

from tests.fidelity.comparison import (
    assert_decoding_order,
    assert_doubled,
    assert_report_agrees,
    assert_same_chapters,
    assert_same_facts,
    assert_same_frame_times,
    assert_same_streams,
    assert_same_tags,
)
from tests.fidelity.product import upscale
from tests.fidelity.row import Row
from tests.fidelity.witness import Witness

REPOSITORY = Path(__file__).parents[2]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "data" / "clips"
CLIPS = sorted(SHARED_CLIPS.iterdir() if SHARED_CLIPS.is_dir() else (REPOSITORY / "examples").glob("*.mp4"))


def row_of(clip: Path) -> Row:
    """What is particular about a clip, and no fault: colours that nobody named, and a size that makes players guess."""
    video = Witness(clip).video.facts
    changes = {}
    if video["codec_name"] == "vp8":
        changes["color_space"] = "bt470bg"  # by its specification; Debian's ffprobe does not say so
    elif "color_space" not in video and video["height"] < 720 <= 2 * video["height"]:
        changes["color_space"] = "smpte170m"
    return Row(lambda folder: clip, changes=changes)


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
    assert_same_facts(row, source.video, result.video)
    assert_report_agrees(row, upscaled)
    # A real picture has few flat places, and those not quite: filters of chroma smooth what is left there.
    last = len(source.video.frames) - 1
    within_levels = 1 if source.pixels.depth == 8 else 4
    assert_doubled(source.pixels, result.pixels, within_levels, (0, last // 2, last), flat_share=0.001)
