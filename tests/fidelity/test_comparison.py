"""The proof of the proof: a result that is spoilt in one way only does not pass for a good one."""

from pathlib import Path

import pytest

from tests.fidelity.charts import COPY, LOSSLESS_H264, tone, write_chart
from tests.fidelity.comparison import assert_files_agree
from tests.fidelity.product import upscale
from tests.fidelity.row import Row, Upscaled
from tests.fidelity.streams import chapters_file
from tests.fidelity.witness import Witness, ffmpeg

_COPY = ("-map", "0:v", "-map", "0:a", *COPY)
_PIXELS = (*_COPY, *LOSSLESS_H264, "-fps_mode", "passthrough", "-enc_time_base", "-1")

SPOILT = {
    "one frame less": (*_PIXELS, "-vf", "select='not(eq(n,13))'"),
    "two frames in each other's place": (*_PIXELS, "-vf", "shuffleframes=0 1 2 3 5 4 6 7"),
    "a frame a tick late": (*_COPY, "-bsf:v", "setts=pts=PTS+eq(N\\,13):dts=PTS+eq(N\\,13)"),
    "sound two milliseconds late": (*_COPY, "-bsf:a", "setts=pts=PTS+96:dts=DTS+96"),
    "sound encoded anew": (*_COPY, "-c:a", "aac"),
    "no sound": ("-map", "0:v", *COPY),
    "two levels too bright": (*_PIXELS, "-vf", "lutyuv=y=val+2"),
    "two levels too blue": (*_PIXELS, "-vf", "lutyuv=u=val+2"),
    "one pixel to the right": (*_PIXELS, "-vf", "scroll=hpos=1/128"),
    "mirrored": (*_PIXELS, "-vf", "hflip"),
    "called full range": (*_COPY, "-bsf:v", "h264_metadata=video_full_range_flag=1"),
    "called BT.709": (*_COPY, "-bsf:v", "h264_metadata=matrix_coefficients=1"),
    "oblong pixels": (*_COPY, "-bsf:v", "h264_metadata=sample_aspect_ratio=4/3"),
    "no chapters": (*_COPY, "-map_chapters", "-1"),
    "no title": (*_COPY, "-metadata", "title="),
    "another language": (*_COPY, "-metadata:s:a:0", "language=deu"),
    "another disposition": (*_COPY, "-disposition:a:0", "forced"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Upscaled:
    folder = tmp_path_factory.mktemp("good")
    source = write_chart(
        folder / "source.mp4",
        *(*tone(), "-i", chapters_file(folder), "-map", "0:v", "-map", "1:a", "-map_chapters", "2", *LOSSLESS_H264),
        *("-pix_fmt", "yuv420p", "-c:a", "aac", "-metadata", "title=A title", "-metadata:s:a:0", "language=eng"),
    )
    return upscale(ROW, source, folder)


ROW = Row(lambda folder: folder, outcomes={2: "rewritten"})


@pytest.mark.parametrize("how", [_COPY, _PIXELS], ids=["copied", "encoded anew"])
def test_a_good_result_passes(good: Upscaled, tmp_path: Path, how: tuple[str, ...]) -> None:
    """Also when ffmpeg has written it once more: what fails below is what was spoilt."""
    assert_files_agree(ROW, good.source, good.result)
    again = tmp_path / "again.mp4"
    ffmpeg("-i", good.result.path, *how, again)
    assert_files_agree(ROW, good.source, Witness(again))


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_result_does_not_pass(good: Upscaled, tmp_path: Path, how: str) -> None:
    spoilt = tmp_path / "spoilt.mp4"
    ffmpeg("-i", good.result.path, *SPOILT[how], spoilt)
    with pytest.raises(AssertionError):
        assert_files_agree(ROW, good.source, Witness(spoilt))
