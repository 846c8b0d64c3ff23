"""The beginning of a video, as what is kept of a canceled job: as right as a whole result, as far as it goes."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from worker.assemble import assemble
from worker.contract.job import Container, JobOptions
from worker.contract.report import Report
from worker.plan import Plan

MakeVideo = Callable[..., Path]
Render = Callable[..., tuple[Plan, list[Path]]]
Look = Callable[..., Any]

END = Fraction(2, 5)
"""Of the first 10 of 30 frames, in seconds."""


def assemble_first_segment(plan: Plan, source: Path, segments: list[Path], folder: Path) -> tuple[Path, Report]:
    result = folder / f"partial.{plan.container}"
    return result, assemble(plan.cut_to(1), source, segments[:1], result, whole=plan)


@pytest.mark.parametrize("container", [Container.MP4, Container.MOV, Container.MKV, Container.WEBM])
def test_the_first_segment_alone_is_a_playable_video(
    make_video: MakeVideo, render: Render, look: Look, tmp_path: Path, container: Container
) -> None:
    # given a video with two sounds, subtitles and chapters of 0.1 s, of which only 10 of 30 frames are rendered
    source = make_video("film.mkv", frames=30, audio_tracks=2, subtitle_codec="webvtt", chapters=6)
    options = JobOptions(encoder_preset="ultrafast", container=container, drop_unsupported=True)
    plan, segments = render(source, options, segment_frames=10, only=[0])
    # when what is there is assembled
    result, report = assemble_first_segment(plan, source, segments, tmp_path)
    # then another reader finds exactly those frames
    before, after = look(source), look(result)
    assert [round(time, 3) for time in after.frame_times] == before.frame_times[:10]
    # and the sound as far as that, packet by packet where it is copied
    sounds = after.of_type("audio")
    assert len(sounds) == 2
    for original, copy in zip(before.of_type("audio"), sounds, strict=True):
        kept = [time for time in original.times if time < END]
        assert max(copy.times) < END
        if container is not Container.WEBM:
            assert len(copy.times) == len(kept)
    # and the chapters that begin before
    assert [title for _, title in after.chapters] == [f"Chapter {number}" for number in range(4)]
    # and the report says so
    assert (report.frames.source, report.frames.result) == (30, 10)
    assert "the first 10 of 30 frames were finished" in report.notes[-1]
    duration = next(line for line in report.properties if line.name == "duration_seconds")
    assert duration.why == "the job was canceled: only the frames finished from the start are here"


def test_pictures_of_a_canceled_job_are_a_zip_of_its_first(
    make_video: MakeVideo, render: Render, tmp_path: Path
) -> None:
    source = make_video("film.mkv", frames=30, chapters=6)
    plan, segments = render(source, JobOptions(container=Container.ZIP), segment_frames=10, only=[0])
    _, report = assemble_first_segment(plan, source, segments, tmp_path)
    assert (report.frames.result, report.result.chapters, report.source.chapters) == (10, 4, 6)


@pytest.mark.parametrize("container", [Container.MP4, Container.MKV, Container.WEBM])
def test_sound_that_begins_after_the_last_frame_is_left_out(
    make_video: MakeVideo, render: Render, look: Look, tmp_path: Path, container: Container
) -> None:
    # given sound that begins 0.1 s after the last frame that is finished
    source = make_video("late.mkv", frames=30, audio_tracks=1, audio_start_seconds=Fraction(1, 2))
    options = JobOptions(encoder_preset="ultrafast", container=container)
    plan, segments = render(source, options, segment_frames=10, only=[0])
    # when
    result, report = assemble_first_segment(plan, source, segments, tmp_path)
    # then there is none, and the report says why
    assert [stream.type for stream in look(result).streams] == ["video"]
    sound = report.streams[1]
    assert (sound.outcome, sound.why) == ("dropped", "it begins after the last frame that was finished")


def test_a_cover_and_a_font_belong_to_the_beginning_too(
    make_video: MakeVideo, render: Render, look: Look, tmp_path: Path
) -> None:
    source = make_video("film.mkv", frames=30, attachment=b"a font", audio_tracks=1)
    plan, segments = render(source, segment_frames=10, only=[0])
    result, _ = assemble_first_segment(plan, source, segments, tmp_path)
    assert [stream.type for stream in look(result).streams] == ["video", "audio", "attachment"]
    source = make_video("cover.mp4", frames=30, cover=True, audio_tracks=1)
    plan, segments = render(source, segment_frames=10, only=[0])
    result, _ = assemble_first_segment(plan, source, segments, tmp_path)
    assert len(look(result).of_type("video")) == 2


def test_irregular_times_end_with_the_time_of_the_next_frame(
    make_video: MakeVideo, render: Render, look: Look, tmp_path: Path
) -> None:
    # given frames of which the tenth is shown for half a second
    pts = [512 * number for number in range(10)] + [512 * 9 + 6400 + 512 * number for number in range(20)]
    source = make_video("irregular.mp4", frames=30, pts=pts, audio_tracks=1)
    plan, segments = render(source, segment_frames=10, only=[0])
    # when
    result, _ = assemble_first_segment(plan, source, segments, tmp_path)
    # then the sound goes on for as long
    end = Fraction(512 * 9 + 6400, 12800)
    sound = look(result).of_type("audio")[0]
    assert end - Fraction(1024, 48000) <= max(sound.times) < end


def test_all_segments_are_no_beginning(make_video: MakeVideo, render: Render) -> None:
    plan, _ = render(make_video("film.mp4", frames=30), segment_frames=10, only=[])
    assert plan.cut_to(3) is plan
    assert plan.cut_to(2).frames == 20
    assert plan.cut_to(2).survey.frames.last_duration == 512
