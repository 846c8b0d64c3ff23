"""One segment: the right neighbours for every frame, whole batches, nothing half published."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from worker.cage import Uncaged
from worker.contract.failure import JobFailureError
from worker.contract.job import JobOptions
from worker.pipeline import (
    SegmentOrder,
    StageTimes,
    Triplet,
    frames_of,
    in_batches,
    render_segment,
    render_segments,
    upscale,
    with_neighbours,
)
from worker.plan import Plan, make_plan
from worker.settings import VideoLimits
from worker.upscaler import FrameBatch, PixelRepeater, Upscaler
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
    upscaled = list(frames_of(upscale(in_batches(triplets, 4), recorder, told.append, lambda: None)))
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
    assert set(times.seconds) == {"decode", "infer", "wait", "encode", "check"}
    assert all(seconds > 0 for seconds in times.seconds.values())


class StopError(Exception):
    pass


def test_a_canceled_segment_stops_between_batches_and_leaves_nothing(
    make_video: MakeVideo, tmp_path: Path, pixel_repeater: Upscaler
) -> None:
    # given a cancellation once eight of 40 frames are done
    source = make_video("clip.mp4", frames=40)
    told: list[int] = []
    batches: list[int] = []

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
            on_batch=batches.append,
            check_canceled=check_canceled,
        )
    # then no more was begun than lies between networks and encoder, and no file is left
    assert sum(batches) <= 8 + 4 * 4
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


TOO_LONG_SECONDS = 20.0


class Blocking:
    """Repeats pixels; before its call of this number (from zero) it waits for something that others do meanwhile."""

    fingerprint = maker = "blocking"

    def __init__(self, call: int, until: threading.Event) -> None:
        self.calls = 0
        self.threads = set[str]()
        self._call, self._until = call, until

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        self.threads.add(threading.current_thread().name)
        if self.calls == self._call:
            assert self._until.wait(TOO_LONG_SECONDS), "the others stood still while the networks ran"
        self.calls += 1
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)


def test_frames_are_decoded_and_encoded_while_the_networks_run(make_video: MakeVideo, tmp_path: Path) -> None:
    # given networks that are not done with their third batch before all others are done with what they have
    source = make_video("clip.mp4", frames=40)
    decoded, done = [0], [0]
    both = threading.Event()

    def note() -> None:
        # two batches and a halo are taken, one waits; of the next one all frames are there but the last, at least
        if decoded[0] >= 19 and done[0] == 8:
            both.set()

    def decode(*arguments: object, **more: object) -> Iterator[Frame]:
        for frame in Uncaged.frames(*arguments, **more):  # type: ignore[arg-type]
            decoded[0] += 1
            note()
            yield frame

    def on_frames_done(frames_done: int) -> None:
        done[0] = frames_done
        note()

    networks = Blocking(2, both)
    # when a segment is rendered, then the networks go on in the end; they ran in this thread alone
    target = tmp_path / "0.mp4"
    render_segment(
        plan_of(source, 40),
        0,
        source,
        target,
        networks,
        batch_frames=4,
        on_frames_done=on_frames_done,
        decode=decode,
    )
    assert target.exists()
    assert networks.threads == {threading.current_thread().name}


def test_the_decoder_is_never_far_ahead(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video("clip.mp4", frames=60)
    decoded = [0]
    furthest: list[int] = []

    def decode(*arguments: object, **more: object) -> Iterator[Frame]:
        for frame in Uncaged.frames(*arguments, **more):  # type: ignore[arg-type]
            decoded[0] += 1
            yield frame

    class Slow(PixelRepeater):
        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            time.sleep(0.02)
            furthest.append(decoded[0] - 2 * len(furthest))
            return super().__call__(previous_lr, center_lr, next_lr)

    render_segment(plan_of(source, 60), 0, source, tmp_path / "0.mp4", Slow(), batch_frames=2, decode=decode)
    # one batch in the networks, one between, one in the decoder's hands, and a frame after that
    assert max(furthest) <= 2 + 2 + 2 + 1


def test_the_next_segment_begins_before_the_last_one_ends(make_video: MakeVideo, tmp_path: Path) -> None:
    # given a segment whose end waits for the next one to be under way
    source = make_video("clip.mp4", frames=40)
    plan = plan_of(source, 20)
    under_way = threading.Event()
    ended: list[int] = []

    def wait_at_the_end(frames_done: int) -> None:
        if frames_done == 20:
            assert under_way.wait(TOO_LONG_SECONDS), "the next segment did not begin"

    orders = [
        SegmentOrder(
            index,
            tmp_path / f"{index}.mp4",
            on_frames_done=wait_at_the_end if index == 0 else lambda frames_done: under_way.set(),
            on_published=partial(ended.append, index),
        )
        for index in (0, 1)
    ]
    # when both are rendered
    render_segments(plan, orders, source, PixelRepeater(), batch_frames=4)
    # then both are there, and the same as each alone
    assert sorted(ended) == [0, 1]
    for order in orders:
        alone = tmp_path / "alone.mp4"
        render_segment(plan, order.index, source, alone, PixelRepeater(), batch_frames=4)
        assert order.target.read_bytes() == alone.read_bytes()


def test_the_networks_time_is_that_of_all_segments_together(make_video: MakeVideo, tmp_path: Path) -> None:
    source = make_video("clip.mp4", frames=40)
    # given segments that take long to be encoded, so that the next one is under way for long
    orders = [
        SegmentOrder(index, tmp_path / f"{index}.mp4", on_frames_done=lambda frames_done: time.sleep(0.01))
        for index in range(4)
    ]
    began = time.perf_counter()
    render_segments(plan_of(source, 10), orders, source, PixelRepeater(), batch_frames=4)
    took = time.perf_counter() - began
    # infer and wait are the whole time, though segments overlap
    told = sum(order.times.seconds[stage] for order in orders for stage in ("infer", "wait"))
    assert 0 < told <= took


def test_the_time_of_steps_is_not_that_of_a_segment_that_was_given_up(make_video: MakeVideo, tmp_path: Path) -> None:
    # given networks that say how long they took, and a segment that was given up when they had
    class Telling(PixelRepeater):
        def __init__(self) -> None:
            self.seconds = 0.0

        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            self.seconds += 1.0
            return super().__call__(previous_lr, center_lr, next_lr)

        def take_step_seconds(self) -> dict[str, float]:
            taken, self.seconds = self.seconds, 0.0
            return {"hat": taken}

    def give_up() -> None:
        if networks.seconds:
            raise StopError

    source, networks, times = make_video("clip.mp4", frames=20), Telling(), StageTimes()
    plan = plan_of(source, 20)
    with pytest.raises(StopError):
        render_segment(plan, 0, source, tmp_path / "0.mp4", networks, batch_frames=4, check_canceled=give_up)
    assert networks.seconds > 0
    # when it is rendered again
    render_segment(plan, 0, source, tmp_path / "0.mp4", networks, batch_frames=4, times=times)
    # then that time is of the five batches of this one alone
    assert times.seconds["hat"] == 5.0


@pytest.mark.parametrize(
    "place", ["decode", "on_frame_decoded", "network", "on_batch", "check_canceled", "on_frames_done", "on_published"]
)
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, MemoryError])
def test_an_error_anywhere_comes_to_the_caller_and_leaves_no_thread_and_no_half(
    make_video: MakeVideo, tmp_path: Path, place: str, error: type[BaseException]
) -> None:
    # given three segments, and an error in the middle of the second one
    source = make_video("clip.mp4", frames=60)
    plan = plan_of(source, 20)
    folder = tmp_path / "segments"
    folder.mkdir()
    threads_before = set(threading.enumerate())
    at: list[str] = []

    def fail_at(here: str, *_: object) -> None:
        at.append(here)
        frames_each = {"network": 4, "on_batch": 4, "check_canceled": 4, "on_published": 40}.get(here, 1)
        if here == place and at.count(here) * frames_each > 30:
            raise error

    def decode(*arguments: object, **more: object) -> Iterator[Frame]:
        for frame in Uncaged.frames(*arguments, **more):  # type: ignore[arg-type]
            fail_at("decode")
            yield frame

    class Network(PixelRepeater):
        def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
            fail_at("network")
            return super().__call__(previous_lr, center_lr, next_lr)

    orders = [
        SegmentOrder(
            index,
            folder / f"{index}.mp4",
            on_frames_done=partial(fail_at, "on_frames_done"),
            on_published=partial(fail_at, "on_published"),
        )
        for index in range(3)
    ]
    # when they are rendered, then it is the caller's
    with pytest.raises(error) as caught:
        render_segments(
            plan,
            orders,
            source,
            Network(),
            batch_frames=4,
            on_batch=partial(fail_at, "on_batch"),
            check_canceled=partial(fail_at, "check_canceled"),
            on_frame_decoded=partial(fail_at, "on_frame_decoded"),
            decode=decode,
        )
    assert caught.type is error
    # and the first segment, which the networks were done with, is there whole; of the others nothing is left behind
    assert set(threading.enumerate()) == threads_before
    names = sorted(path.name for path in folder.iterdir())
    assert "0.mp4" in names or place == "check_canceled"  # it is asked while a segment is read back, too
    assert names in ([], ["0.mp4"], ["0.mp4", "1.mp4"])


@pytest.mark.parametrize("reason", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_a_wait_for_a_decoder_that_stands_still(
    make_video: MakeVideo, tmp_path: Path, reason: signal.Signals
) -> None:
    # In a process of its own: to pytest's a signal is news of its own.
    scene = multiprocessing.get_context("spawn").Process(
        target=_signal_while_the_decoder_stands_still, args=(make_video("clip.mp4", frames=20), tmp_path, reason)
    )
    scene.start()
    scene.join(3 * TOO_LONG_SECONDS)  # of which it takes some to import torch
    if scene.is_alive():
        scene.kill()
        pytest.fail("the wait did not end")
    assert scene.exitcode == 0


def _signal_while_the_decoder_stands_still(source: Path, folder: Path, reason: signal.Signals) -> None:
    # given a decoder that waits without an end, as a cage's does, and a signal that raises in the main thread
    threads_before = set(threading.enumerate())
    stopped = threading.Event()

    def decode(*arguments: object, check: Callable[[], None], **more: object) -> Iterator[Frame]:
        try:
            for looks in count():
                if looks == 50:
                    os.kill(os.getpid(), reason)
                check()
                time.sleep(0.001)
                yield from ()
        finally:
            stopped.set()

    def stop(number: int, frame: object) -> None:
        raise StopError

    signal.signal(reason, stop)
    # when a segment is rendered, then it ends, with the decoder
    with pytest.raises(StopError):
        render_segment(plan_of(source, 20), 0, source, folder / "0.mp4", PixelRepeater(), batch_frames=4, decode=decode)
    assert stopped.is_set()
    assert set(threading.enumerate()) == threads_before
    assert not list(folder.glob("0.mp4*"))


def test_stage_times_are_of_each_stage_alone() -> None:
    # given a stage that waits and one that pulls from it
    clock = StageTimes()
    slow = clock.timed("slow", (number for number in range(3) if sum(range(200_000)) or True))
    list(clock.timed("quick", slow))
    # then the wait is counted once, where it happened
    assert clock.seconds["slow"] > clock.seconds["quick"]
