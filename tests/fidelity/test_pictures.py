"""A zip of PNG pictures as result and as source."""

import json
import zipfile
from fractions import Fraction
from pathlib import Path

from tests.fidelity.charts import FRAMES
from tests.fidelity.comparison import assert_doubled
from tests.fidelity.row import SEGMENT_FRAMES, options
from tests.fidelity.times import write_variable_rate_with_b_frames
from tests.fidelity.witness import Witness, decode
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

SETTINGS = WorkerSettings(device="cpu", segment_frames=SEGMENT_FRAMES)


def test_a_zip_of_pictures_holds_every_frame_and_its_exact_time(tmp_path: Path) -> None:
    # Given a video of variable rate
    source = Witness(write_variable_rate_with_b_frames(tmp_path))

    # When its result shall be pictures
    archive = tmp_path / "result.zip"
    upscale_file(
        source.path, archive, options(quality=None, drop_unsupported=True), settings=SETTINGS, limits=VideoLimits()
    )

    # Then there is one for each frame, which other programs read, beside its time as other programs read it
    with zipfile.ZipFile(archive) as pictures:
        pictures.extractall(tmp_path / "pictures")
        facts = json.loads(pictures.read("sequence.json"))
        lines = pictures.read("timestamps.txt").decode().splitlines()
    names = sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
    assert len(names) == FRAMES
    assert lines[0] == "# timestamp format v2"
    assert [
        abs(Fraction(line) / 1000 - time) < Fraction(1, 10**9)
        for line, time in zip(lines[1:], source.video.frame_times, strict=True)
    ] == [True] * FRAMES
    assert [pts * Fraction(facts["time_base"]) for pts in facts["pts"]] == source.video.frame_times

    # And they are the source's, twice the size
    sequence = Witness(tmp_path / "pictures" / names[0])
    before = decode(source.path, source.video, "rgb24")
    after = decode(tmp_path / "pictures" / "frame-%06d.png", sequence.video)
    assert_doubled(before, after, within_levels=1)


def test_a_zip_of_pictures_is_a_source_with_the_same_times(tmp_path: Path) -> None:
    # Given pictures that this program made of a video of variable rate
    source = Witness(write_variable_rate_with_b_frames(tmp_path))
    archive = tmp_path / "pictures.zip"
    upscale_file(
        source.path, archive, options(quality=None, drop_unsupported=True), settings=SETTINGS, limits=VideoLimits()
    )

    # When they are upscaled once more, to a video
    output = tmp_path / "result.mkv"
    outcome = upscale_file(archive, output, options(), settings=SETTINGS, limits=VideoLimits())

    # Then
    result = Witness(output)
    assert outcome.report is not None
    assert [result.video.facts[side] for side in ("width", "height")] == [256, 192]
    off = [
        abs(after - before) for after, before in zip(result.video.frame_times, source.video.frame_times, strict=True)
    ]
    assert max(off) <= Fraction(1, 2000)
