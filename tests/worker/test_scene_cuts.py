"""Cuts are found, motion and brightness are not taken for them, and each frame is judged by its past alone."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from worker.contract.job import JobOptions
from worker.plan import Plan
from worker.scene_cuts import CutDetector
from worker.settings import VideoLimits
from worker.upscaler import FrameBatch
from worker.video.survey import survey

Image = np.ndarray


def texture(seed: int, height: int = 120, width: int = 400) -> Image:
    """Smooth blobs of many colours, others for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return coarse.repeat(20, axis=0).repeat(20, axis=1)


def still(seed: int, frames: int) -> list[Image]:
    """A camera that stands still, with noise."""
    chance = np.random.default_rng(seed + 1000)
    picture = texture(seed)[:, :160].astype(np.int16)
    return [np.clip(picture + chance.integers(-8, 9, picture.shape), 0, 255).astype(np.uint8) for _ in range(frames)]


def pan(seed: int, frames: int, speed: int) -> list[Image]:
    return [texture(seed)[:, speed * number : speed * number + 160] for number in range(frames)]


def cuts_in(frames: list[Image]) -> list[int]:
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector.begins_shot(frame)]


def test_hard_cuts_are_found_where_they_are() -> None:
    assert cuts_in(still(1, 8) + still(2, 5) + still(3, 2) + still(4, 1)) == [8, 13, 15]


def test_a_cut_out_of_a_pan_and_into_one_is_found() -> None:
    assert cuts_in(pan(1, 10, speed=4) + still(2, 5) + pan(3, 10, speed=4)) == [10, 15]


@pytest.mark.parametrize("speed", [1, 5, 10])
def test_a_pan_is_no_cut(speed: int) -> None:
    assert cuts_in(pan(1, 12, speed)) == []


def test_getting_dark_slowly_is_no_cut() -> None:
    picture = texture(1)[:, :160]
    assert cuts_in([(picture * (1 - number / 30)).astype(np.uint8) for number in range(30)]) == []


def test_the_depth_of_the_video_does_not_matter() -> None:
    frames = still(1, 4) + still(2, 4)

    assert cuts_in([frame.astype(np.uint16) * 257 for frame in frames]) == cuts_in(frames) == [4]


def test_a_frame_is_judged_by_its_past_alone() -> None:
    frames = still(1, 6) + still(2, 6)

    assert [cuts_in(frames[:end]) for end in (6, 7, 12)] == [[], [6], [6]]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 300), (63, 65), (480, 854)])
def test_frames_of_any_size_are_judged(height: int, width: int) -> None:
    dark, bright = (np.full((height, width, 3), level, dtype=np.uint8) for level in (10, 200))

    assert cuts_in([dark, dark, dark, bright, bright]) == [3]


def test_what_is_before_a_cut_does_not_decide_where_the_next_ones_are() -> None:
    # given a shot of one frame between two others, or a flicker, behind shots of any kind
    behind = still(2, 1) + still(3, 2) + still(2, 1) + still(3, 4)
    found = [
        [cut - 6 for cut in cuts_in(before + behind) if cut >= 6]
        for before in (still(1, 6), pan(4, 6, speed=10), still(7, 3) + still(8, 3))
    ]
    assert found[0][0] == 0
    assert found[1:] == found[:1] * 2


@pytest.mark.parametrize(("black", "white", "dtype"), [(16, 235, np.uint8), (0, 255, np.uint8), (64, 940, np.uint16)])
def test_luma_alone_is_judged_like_colours(black: int, white: int, dtype: type) -> None:
    for frames in (still(1, 8) + still(2, 5) + pan(3, 6, speed=5), pan(5, 9, speed=10)):
        detector = CutDetector()
        found = []
        for number, frame in enumerate(frames):
            luma = frame @ np.array([0.299, 0.587, 0.114]) / 255 * (white - black) + black
            if detector.begins_shot_luma(luma.round().astype(dtype), black, white):
                found.append(number)
        assert found == cuts_in(frames)


def test_the_cuts_of_real_clips_are_found(real_clips: list[Path]) -> None:
    # given the real clips, whose cuts a person has looked for
    cuts = {"06_big-buck-bunny_animation_aac.mp4": (92,), "10_roadtrip_10bit_vp9.webm": (42,)}
    cuts |= {"08_caminandes-to-face_vfr_audio.mp4": (66,)}

    assert {clip.name: survey(clip, VideoLimits()).cuts for clip in real_clips} == {
        clip.name: cuts.get(clip.name, ()) for clip in real_clips
    }


class NeighbourMixer:
    """Shows a third of each neighbour: whatever a frame sees of another shot is seen in the result."""

    fingerprint = "neighbour-mixer"

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        mixed = (previous_lr.astype(np.uint16) + center_lr + next_lr) // 3
        return mixed.astype(center_lr.dtype).repeat(2, axis=1).repeat(2, axis=2)


def test_a_shot_comes_out_the_same_beside_any_other(
    make_video: Callable[..., Path], upscale: Callable[..., tuple[Path, object, Plan]]
) -> None:
    # given one shot behind two different ones, and before two different ones; segments end in and at shots
    def film(before: int, behind: int) -> Image:
        shots = pan(before, 15, speed=3) + pan(behind, 15, speed=3)
        source = make_video(
            f"{before}-{behind}.mkv",
            time_base=Fraction(1, 1000),
            frames=30,
            width=160,
            height=120,
            codec="ffv1",
            options={},
            pixel_format="bgr0",
            picture=lambda number, width, height: np.ascontiguousarray(shots[number]),
        )
        options = JobOptions(codec="ffv1", container="mkv")
        result, _, plan = upscale(source, options, upscaler=NeighbourMixer(), segment_frames=5)
        assert plan.survey.cuts == (15,)
        with av.open(str(result)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    behind_one, behind_another, before_another = film(1, 2), film(3, 2), film(1, 4)

    # then it is the same in every bit, and the other one is not
    assert np.array_equal(behind_one[15:], behind_another[15:])
    assert np.array_equal(behind_one[:15], before_another[:15])
    assert not np.array_equal(behind_one[14], behind_another[14])
