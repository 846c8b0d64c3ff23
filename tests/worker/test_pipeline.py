"""One segment: the right neighbours for every frame, whole batches, nothing half published."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from worker.contract.failure import JobFailureError
from worker.contract.job import JobOptions
from worker.pipeline import StageTimes, Triplet, render_segment, upscale, with_neighbours
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits
from worker.upscaler import FrameBatch, Upscaler
from worker.video.frames import Frame

MakeVideo = Callable[..., Path]


def frames(*levels: int) -> Iterator[Frame]:
    return (Frame(np.full((2, 2, 3), level, np.uint8)) for level in levels)


def levels(triplets: Iterator[Triplet]) -> list[tuple[int, ...]]:
    return [tuple(int(frame.rgb[0, 0, 0]) for frame in triplet) for triplet in triplets]


class Recorder:
    """Repeats pixels, and remembers the level of every frame that it was shown."""

    fingerprint = "recorder"

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int, int]]] = []

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        seen = zip(*(batch[:, 0, 0, 0].tolist() for batch in (previous_lr, center_lr, next_lr)), strict=True)
        self.batches.append(list(seen))
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)


def test_halo_frames_are_neighbours_only() -> None:
    triplets = with_neighbours(frames(1, 2, 3, 4), 10, (), 11, 13)
    assert levels(triplets) == [(1, 2, 3), (2, 3, 4)]


def test_at_the_ends_of_the_video_the_frame_stands_in_for_its_missing_neighbour() -> None:
    triplets = with_neighbours(frames(1, 2, 3), 0, (), 0, 3)
    assert levels(triplets) == [(1, 1, 2), (1, 2, 3), (2, 3, 3)]


def test_a_single_frame_is_its_own_neighbour_twice() -> None:
    assert levels(with_neighbours(frames(7), 0, (), 0, 1)) == [(7, 7, 7)]


def test_frames_on_both_sides_of_a_cut_do_not_see_the_other_shot() -> None:
    # given a shot that ends at frame 11, and another from 12 on; the segment is 11 to 13, its halo 10 and 14
    triplets = with_neighbours(frames(1, 2, 30, 40, 50), 10, {12}, 11, 14)
    assert levels(triplets) == [(1, 2, 2), (30, 30, 40), (30, 40, 50)]


@pytest.mark.parametrize(("first", "cuts", "expected"), [(11, {11}, (1, 1, 2)), (10, {11}, (2, 2, 3))])
def test_a_cut_at_the_edge_of_a_segment_is_one_too(first: int, cuts: set[int], expected: tuple[int, int, int]) -> None:
    # given a segment of the one frame 11, with or without a halo before it
    assert levels(with_neighbours(frames(1, 2, 3), first, cuts, 11, 12)) == [expected]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_the_network_always_sees_whole_batches(count: int) -> None:
    # given any number of triplets
    recorder = Recorder()
    triplets = with_neighbours(frames(*range(count)), 0, (), 0, count)
    # when they are upscaled in fours
    told: list[int] = []
    upscaled = list(upscale(triplets, recorder, 4, told.append, lambda: None))
    # then the last batch is filled with its last triplet, and the filling is neither given out nor counted
    assert sum(told) == count
    assert [int(frame.rgb[0, 0, 0]) for frame in upscaled] == list(range(count))
    assert {len(batch) for batch in recorder.batches} == {4}
    assert len(recorder.batches) == -(-count // 4)


def plan_of(source: Path, segment_frames: int) -> Plan:
    options = JobOptions(encoder_preset="ultrafast")
    return make_plan(source, options, VideoLimits(), segment_frames=segment_frames)


def test_segments_together_show_the_network_what_one_run_would(make_video: MakeVideo, tmp_path: Path) -> None:
    def grey(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        return np.full((height, width, 3), 40 + 4 * number, np.uint8)

    source = make_video("greys.mp4", frames=40, picture=grey, options={"crf": "0", "preset": "ultrafast"})
    # given what the network sees when the video is one segment
    whole = Recorder()
    render_segment(plan_of(source, 40), 0, source, tmp_path / "whole.mp4", whole, batch_frames=1)
    # when the video is cut into segments that are rendered in any order
    parts = {index: Recorder() for index in (2, 0, 3, 1)}
    plan = plan_of(source, 10)
    for index, recorder in parts.items():
        render_segment(plan, index, source, tmp_path / f"{index}.mp4", recorder, batch_frames=1)
    # then it sees the same triplets: the neighbours across the cuts too
    assert [batch for index in range(4) for batch in parts[index].batches] == whole.batches
    assert len(whole.batches) == 40


def test_progress_is_told_frame_by_frame(make_video: MakeVideo, tmp_path: Path, pixel_repeater: Upscaler) -> None:
    source = make_video("clip.mp4", frames=10)
    told: list[int] = []
    times = StageTimes()
    render_segment(
        plan_of(source, 10),
        0,
        source,
        tmp_path / "0.mp4",
        pixel_repeater,
        batch_frames=4,
        on_frames_done=told.append,
        times=times,
    )
    assert told == list(range(1, 11))
    assert set(times.seconds) == {"decode", "infer", "encode", "check"}
    assert all(seconds > 0 for seconds in times.seconds.values())


class StopError(Exception):
    pass


def test_a_canceled_segment_stops_between_batches_and_leaves_nothing(
    make_video: MakeVideo, tmp_path: Path, pixel_repeater: Upscaler
) -> None:
    # given a cancellation before the third batch of four frames
    source = make_video("clip.mp4", frames=40)
    told: list[int] = []

    def check_canceled() -> None:
        if told and told[-1] >= 8:
            raise StopError

    # when the segment is rendered
    folder = tmp_path / "segments"
    folder.mkdir()
    with pytest.raises(StopError):
        render_segment(
            plan_of(source, 40),
            0,
            source,
            folder / "0.mp4",
            pixel_repeater,
            batch_frames=4,
            on_frames_done=told.append,
            check_canceled=check_canceled,
        )
    # then no more was done, and no file is left
    assert told[-1] == 8
    assert list(folder.iterdir()) == []


def test_a_network_that_fails_leaves_no_segment(make_video: MakeVideo, tmp_path: Path) -> None:
    class Broken:
        fingerprint = "broken"

        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            raise RuntimeError("out of order")

    source = make_video("clip.mp4", frames=5)
    (tmp_path / "segments").mkdir()
    with pytest.raises(RuntimeError, match="out of order"):
        render_segment(plan_of(source, 5), 0, source, tmp_path / "segments" / "0.mp4", Broken(), batch_frames=4)
    assert list((tmp_path / "segments").iterdir()) == []


def test_a_source_that_changed_after_planning_fails_the_segment(
    make_video: MakeVideo, tmp_path: Path, pixel_repeater: Upscaler
) -> None:
    source = make_video("clip.mp4", frames=40)
    plan = plan_of(source, 10)
    make_video("clip.mp4", frames=40, picture=lambda n, w, h: np.zeros((h, w, 3), np.uint8))
    (tmp_path / "segments").mkdir()
    with pytest.raises(JobFailureError, match="no longer decode"):
        render_segment(plan, 2, source, tmp_path / "segments" / "2.mp4", pixel_repeater, batch_frames=4)
    assert list((tmp_path / "segments").iterdir()) == []


def test_stage_times_are_of_each_stage_alone() -> None:
    # given a stage that waits and one that pulls from it
    clock = StageTimes()
    slow = clock.timed("slow", (number for number in range(3) if sum(range(200_000)) or True))
    list(clock.timed("quick", slow))
    # then the wait is counted once, where it happened
    assert clock.seconds["slow"] > clock.seconds["quick"]
