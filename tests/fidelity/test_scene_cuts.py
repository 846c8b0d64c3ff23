"""No frame ever sees another shot: the result on one side of a cut does not depend on what lies on the other."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.fidelity.charts import chart, write_chart
from tests.fidelity.row import SEGMENT_FRAMES, options
from tests.fidelity.witness import Witness, ffmpeg
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings
from worker.upscaler import FrameBatch

CUT = 11
FRAMES = 24
Picture = npt.NDArray[np.float64]


class NeighbourMixer:
    """Enlarges by repeating pixels of the mean of all three frames: a neighbour of another shot shows everywhere."""

    fingerprint = "neighbour-mixer"

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        mean = (previous_lr.astype(np.uint32) + center_lr + next_lr) // 3
        return mean.astype(center_lr.dtype).repeat(2, axis=1).repeat(2, axis=2)


def dark_stripes(number: int, width: int, height: int) -> Picture:
    stripes = (np.arange(width) + number) // 8 % 2 * 0.25
    return np.broadcast_to(stripes[None, :, None], (height, width, 3))


def bright_field(number: int, width: int, height: int) -> Picture:
    return np.full((height, width, 3), 0.95) - [0.0, 0.0, number % 4 / 20]


def frames_of_result(folder: Path, before: object, after: object) -> list[bytes]:
    """Upscale a video of two shots; the decoded frames of the result, each as its bytes."""
    folder.mkdir()

    def picture(number: int, width: int, height: int) -> Picture:
        shot = before if number < CUT else after
        return shot(number, width, height)  # type: ignore[no-any-return, operator]

    source = write_chart(folder / "source.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv444p", picture=picture, frames=FRAMES)
    output = folder / "result.mkv"
    outcome = upscale_file(
        source,
        output,
        options(codec="ffv1"),
        settings=WorkerSettings(device="cpu", segment_frames=SEGMENT_FRAMES),
        limits=VideoLimits(),
        load_upscaler=lambda preset: NeighbourMixer(),
    )
    assert outcome.report is not None
    assert [cut.frame for cut in outcome.report.scene_cuts] == [CUT]
    video = Witness(output).video
    raw = ffmpeg("-i", output, "-f", "rawvideo", "-")
    size = len(raw) // len(video.frames)
    return [raw[place : place + size] for place in range(0, len(raw), size)]


@pytest.mark.parametrize("replacement", [dark_stripes, bright_field])
def test_what_lies_behind_a_cut_leaves_no_trace_before_it(tmp_path: Path, replacement: object) -> None:
    # Given a video of two shots, and one whose second shot is another
    def other(number: int, width: int, height: int) -> Picture:
        return chart(number, width, height)[:, ::-1] * 0.2 + 0.75

    # When both are upscaled by a network that shows its neighbours
    one = frames_of_result(tmp_path / "one", chart, replacement)
    two = frames_of_result(tmp_path / "two", chart, other)

    # Then the first shot is the same to the last bit, and the second is not
    assert one[:CUT] == two[:CUT]
    assert all(mine != others for mine, others in zip(one[CUT:], two[CUT:], strict=True))


@pytest.mark.parametrize("replacement", [dark_stripes, bright_field])
def test_what_lies_before_a_cut_leaves_no_trace_behind_it(tmp_path: Path, replacement: object) -> None:
    def other(number: int, width: int, height: int) -> Picture:
        return chart(number, width, height)[:, ::-1] * 0.2 + 0.75

    one = frames_of_result(tmp_path / "one", replacement, chart)
    two = frames_of_result(tmp_path / "two", other, chart)
    assert one[CUT:] == two[CUT:]
    assert all(mine != others for mine, others in zip(one[:CUT], two[:CUT], strict=True))


def test_the_stand_in_would_show_a_neighbour_of_another_shot(tmp_path: Path) -> None:
    """The proof of the proof: inside a shot, a frame that changes changes its neighbours' results, and only theirs."""

    def changed(number: int, width: int, height: int) -> Picture:
        return chart(number, width, height) * (0.9 if number == 4 else 1)

    one = frames_of_result(tmp_path / "one", chart, dark_stripes)
    two = frames_of_result(tmp_path / "two", changed, dark_stripes)
    assert [number for number in range(FRAMES) if one[number] != two[number]] == [3, 4, 5]
