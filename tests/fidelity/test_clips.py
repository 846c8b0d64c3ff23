"""Real videos, from telephones, cameras, studios and screens, through the command's code."""

from pathlib import Path

import numpy as np
import pytest

from tests.fidelity.comparison import (
    assert_decoding_order,
    assert_report_agrees,
    assert_same_chapters,
    assert_same_facts,
    assert_same_frame_times,
    assert_same_streams,
    assert_same_tags,
)
from tests.fidelity.product import upscale
from tests.fidelity.row import Row, options
from tests.fidelity.witness import Witness, decode

REPOSITORY = Path(__file__).parents[2]
SHARED_CLIPS = REPOSITORY.parent / "shared" / "data" / "clips"
CLIPS = sorted(SHARED_CLIPS.iterdir() if SHARED_CLIPS.is_dir() else (REPOSITORY / "examples").glob("*.mp4"))


def row_of(clip: Path) -> Row:
    """What is particular about a clip, and no fault: colours that nobody named, and a size that makes players guess."""
    witness = Witness(clip)
    video = witness.video.facts
    changes = {}
    if video["codec_name"] == "vp8":
        changes["color_space"] = "bt470bg"  # by its specification; Debian's ffprobe does not say so
    elif "color_space" not in video and video["height"] < 720 <= 2 * video["height"]:
        changes["color_space"] = "smpte170m"
    # Windows Media sound has a place in Windows Media files alone.
    outcomes = {sound.index: "converted" for sound in witness.of_kind("audio") if "wma" in sound.facts["codec_name"]}
    return Row(lambda folder: clip, changes=changes, outcomes=outcomes, options=options(quality="high"))


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
    assert_brightness_doubled(source, result)


def assert_brightness_doubled(source: Witness, result: Witness) -> None:
    """Frame by frame the source's own, with what the codec costs; chroma of real pictures is smoothed on its way."""
    before, after = (decode(it.path, it.video, filters="select='not(mod(n,20))'") for it in (source, result))
    assert len(after) == len(before) == -(-len(source.video.frames) // 20)
    for number in range(len(before)):
        doubled = before[number][0].repeat(2, axis=0).repeat(2, axis=1)
        off = np.abs(after[number][0] - doubled).mean() / 2 ** (before.depth - 8)
        assert off < 2, f"frame {20 * number} is off by {off:.1f} of 256 levels on average"
