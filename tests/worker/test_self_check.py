"""The self-check: results that are not what they should be show in its figures."""

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions
from worker.contract.report import QualityReport
from worker.pipeline import render_segment
from worker.plan import make_plan
from worker.self_check import SegmentFigures, SelfCheck, gather, read_figures
from worker.settings import VideoLimits
from worker.upscaler import FrameBatch, PixelRepeater, Upscaler
from worker.video.encode import encode_frames
from worker.video.frames import RgbFrame
from worker.video.values import FrameTable

MakeVideo = Callable[..., Path]
FINE = JobOptions(crf=8, encoder_preset="veryfast")


def table_of(frames: int) -> FrameTable:
    return FrameTable(
        pts=tuple(range(frames)), stamps=None, crc32=(0,) * frames, time_base=Fraction(1, 25), last_duration=1
    )


def quality_of(
    source: Path, folder: Path, upscalers: Sequence[Upscaler], segment_frames: int, cuts: Collection[int] = ()
) -> QualityReport:
    """Render the segments of `source` by these upscalers in turn, as several workers would."""
    plan = make_plan(source, FINE, VideoLimits(), source.suffix, segment_frames=segment_frames)
    figures = []
    for segment in plan.segments:
        target = folder / f"{segment.index}.mp4"
        upscaler = upscalers[segment.index % len(upscalers)]
        render_segment(
            plan, segment.index, source, target, upscaler, batch_frames=4, figures=target.with_suffix(".json")
        )
        figures.append(read_figures(target.with_suffix(".json")))
    firsts = [segment.first for segment in plan.segments]
    return gather(figures, firsts, frozenset({*plan.survey.cuts, *cuts}), plan.survey.frames)


class Shifted(PixelRepeater):
    """Everything lies one pixel of the result too far to the right."""

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        return np.roll(super().__call__(previous_lr, center_lr, next_lr), 1, axis=2)


class Brightened(PixelRepeater):
    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        return (super().__call__(previous_lr, center_lr, next_lr).astype(np.uint16) + 6).clip(0, 255).astype(np.uint8)


class Tiling(PixelRepeater):
    """Works in tiles of 32 px, and makes every second one brighter by `levels`."""

    tile_px = 32

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        result = super().__call__(previous_lr, center_lr, next_lr).astype(np.int16)
        for left in range(64, result.shape[2], 128):
            result[:, :, left : left + 64] += self.levels
        return result.clip(0, 255).astype(np.uint8)


def test_a_good_result_is_close_to_the_source_and_has_no_seams(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video("good.mp4", frames=40)
    quality = quality_of(source, tmp_path, [PixelRepeater()], segment_frames=10)
    assert quality.frames_compared == 8
    assert (quality.psnr_db or 0) > 35
    assert quality.tile_borders is None
    assert quality.segment_borders is not None
    assert quality.segment_borders.seams == 3
    assert quality.segment_borders.ratio < 4
    assert quality.segments_without_figures == 0


def test_a_result_that_is_shifted_by_one_pixel_is_far_from_the_source(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video("shifted.mp4", frames=12)
    good = quality_of(source, tmp_path, [PixelRepeater()], segment_frames=12)
    shifted = quality_of(source, tmp_path, [Shifted()], segment_frames=12)
    assert (shifted.psnr_db or 0) < (good.psnr_db or 0) - 6
    assert shifted.segment_borders is None


def test_segments_that_flicker_show_at_their_borders(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a video whose every second segment comes out brighter
    source = make_video("flicker.mp4", frames=40)
    steady = quality_of(source, tmp_path, [PixelRepeater()], segment_frames=10).segment_borders
    flickering = quality_of(source, tmp_path, [PixelRepeater(), Brightened()], segment_frames=10).segment_borders
    # then its borders stand out, by about the step in brightness
    assert steady is not None
    assert flickering is not None
    assert flickering.at_seams == pytest.approx(6, abs=1.5)
    assert flickering.ratio > 3 * steady.ratio


def test_a_border_at_a_cut_is_left_out(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a step in brightness between the first two of four segments, and nowhere else
    source = make_video("step.mp4", frames=40)
    upscalers = [PixelRepeater(), Brightened(), Brightened(), Brightened()]
    # then it counts, unless another shot begins right there; a cut at the last border hides nothing
    ratios = [
        borders.ratio if (borders := quality_of(source, tmp_path, upscalers, 10, cuts).segment_borders) else 0
        for cuts in ({30}, {10})
    ]
    assert ratios[0] > 3 * ratios[1]


def test_tiles_that_differ_show_at_their_borders(make_video: MakeVideo, tmp_path: Path) -> None:
    def smooth(number: int, width: int, height: int) -> RgbFrame:
        rows, columns = np.mgrid[0:height, 0:width]
        return np.stack([80 + columns // 2, 80 + rows // 2, 90 + (rows + columns) // 4], axis=-1).astype(np.uint8)

    source = make_video("tiles.mp4", frames=5, width=128, height=64, picture=smooth)
    even = quality_of(source, tmp_path, [Tiling(0)], segment_frames=12).tile_borders
    uneven = quality_of(source, tmp_path, [Tiling(8)], segment_frames=12).tile_borders
    assert even is not None
    assert uneven is not None
    assert 0.7 < even.ratio < 1.4
    assert uneven.ratio > 2 * even.ratio


def test_segments_whose_figures_are_lost_are_counted_and_the_rest_is_told(make_video: MakeVideo) -> None:
    # given figures of three segments of flat frames, those of the second lost
    flat = np.full((48, 64, 3), 100, np.uint8)
    found = [figures_of(flat, flat.repeat(2, 0).repeat(2, 1), first) for first in (0, 5, 10)]
    quality = gather([found[0], None, found[2]], [0, 5, 10], (), table_of(15))
    assert quality.segments_without_figures == 1
    assert quality.frames_compared == 4
    assert quality.psnr_db == 100
    # and no border is judged by one of its sides
    assert quality.segment_borders is None


def figures_of(source: RgbFrame, result: RgbFrame, first: int, *, frames: int = 5) -> SegmentFigures:
    check = SelfCheck(first, first + frames, (), None)
    for number in range(first, first + frames):
        check.note_source(number, source)
    return check.compare((number, result) for number in sorted(check.wanted))


def test_what_the_encoder_lost_is_told_apart(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video("clip.mp4", frames=10)
    losses = {}
    for quality in ("small", "high", "lossless"):
        plan = make_plan(source, JobOptions(quality=quality, encoder_preset="ultrafast"), VideoLimits())
        figures = tmp_path / f"{quality}.json"
        render_segment(plan, 0, source, tmp_path / quality, PixelRepeater(), batch_frames=4, figures=figures)
        losses[quality] = gather([read_figures(figures)], [0], (), plan.survey.frames).encoding_psnr_db or 0
    assert losses["small"] < losses["high"] < losses["lossless"] == 100


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "ffv1", "png"])
def test_lossless_is_so_with_every_codec_that_says_so(make_video: MakeVideo, tmp_path: Path, codec: str) -> None:
    for pixel_format in ("yuv420p", "gray", "yuv444p"):
        source = make_video(f"{pixel_format}.mkv", codec="ffv1", options={}, frames=4, pixel_format=pixel_format)
        container = {"png": "zip", "vp9": "webm"}.get(codec, "mkv")
        options = JobOptions(quality="lossless", codec=codec, container=container, drop_unsupported=True)
        plan = make_plan(source, options, VideoLimits())
        # then its rendering passes the check
        render_segment(plan, 0, source, tmp_path / "segment", PixelRepeater(), batch_frames=4)


def test_a_lossless_result_that_is_not_fails(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an encoder that was asked to lose nothing, and loses something
    source = make_video("clip.mp4", frames=10)
    plan = make_plan(source, JobOptions(quality="lossless", encoder_preset="ultrafast"), VideoLimits())
    lossy = make_plan(source, JobOptions(quality="small", encoder_preset="ultrafast"), VideoLimits()).encoding

    def encode_lossy(
        frames: object, pts: object, picture: object, encoding: object, target: Path, made_by: str
    ) -> object:
        return encode_frames(frames, pts, picture, lossy, target, made_by)  # type: ignore[arg-type]

    monkeypatch.setattr("worker.pipeline.encode_frames", encode_lossy)
    with pytest.raises(JobFailureError, match="shall be lossless") as failure:
        render_segment(plan, 0, source, tmp_path / "segment.mp4", PixelRepeater(), batch_frames=4)
    assert failure.value.code is FailureCode.VERIFICATION_FAILED
    assert list(tmp_path.glob("segment*")) == []


def test_a_border_at_a_scene_cut_is_no_seam() -> None:
    dark, bright = np.full((48, 64, 3), 20, np.uint8), np.full((48, 64, 3), 200, np.uint8)
    figures = [
        figures_of(dark, dark.repeat(2, 0).repeat(2, 1), 0),
        figures_of(bright, bright.repeat(2, 0).repeat(2, 1), 5),
    ]
    assert gather(figures, [0, 5], {5}, table_of(10)).segment_borders is None
    assert gather(figures, [0, 5], (), table_of(10)).segment_borders is not None


def test_deep_video_is_measured_in_the_same_levels() -> None:
    # given the same error of two grey levels, in 8 bits and in 16
    shallow = np.full((20, 30, 3), 100, np.uint8)
    deep = shallow.astype(np.uint16) * 257
    eight = figures_of(shallow, (shallow + 2).astype(np.uint8).repeat(2, 0).repeat(2, 1), 0)
    sixteen = figures_of(deep, (deep + 2 * 257).astype(np.uint16).repeat(2, 0).repeat(2, 1), 0)
    assert eight.psnr_db[0] == pytest.approx(sixteen.psnr_db[0], abs=1e-3) == pytest.approx(42.11, abs=0.01)


def test_the_sample_of_a_long_segment_stays_small() -> None:
    check = SelfCheck(0, 240, (), None)
    flat = np.zeros((4, 4, 3), np.uint8)
    for number in range(240):
        check.note_source(number, flat)
    assert len(check.wanted) <= 18


def test_figures_are_there_before_their_segment(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a rendering that ends right before the segment is published
    source = make_video("clip.mp4", frames=12)
    plan = make_plan(source, FINE, VideoLimits(), source.suffix)
    target, figures = tmp_path / "00000.mp4", tmp_path / "00000.json"
    target.mkdir()  # nothing can be renamed to it
    with pytest.raises(OSError, match="directory"):
        render_segment(plan, 0, source, target, PixelRepeater(), batch_frames=4, figures=figures)
    # then its figures are there, and say what the work cost
    found = read_figures(figures)
    assert found is not None
    assert set(found.stage_seconds) == {"decode", "infer", "wait", "encode", "check"}


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"psnr_db": 3}'])
def test_figures_that_are_missing_or_of_another_version_are_unknown(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "00000.json"
    if content is not None:
        path.write_bytes(content)
    assert read_figures(path) is None
