"""`vsr upscale` without the command line: resume, recognise, refuse, clean up."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from worker.cage import Cage, CagedProcess, Place
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions, Progress, VideoCodec
from worker.contract.report import Report
from worker.local import WORKSPACE_SUFFIX, Outcome, OutputExistsError, default_output, upscale_file
from worker.plan import Plan
from worker.settings import VideoLimits, WorkerSettings
from worker.upscaler import FrameBatch, Upscaler

MakeVideo = Callable[..., Path]
FAST = JobOptions(encoder_preset="ultrafast")


class InterruptedUpscaler:
    """Repeats pixels until it has seen so many batches; then the user presses Ctrl-C."""

    def __init__(self, batches: int, fingerprint: str = "pixel-repeater") -> None:
        self.batches = batches
        self.fingerprint = fingerprint

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture
def run(pixel_repeater: Upscaler) -> Callable[..., Outcome]:
    """Upscale a file with the pixel repeater or another upscaler."""

    def upscale(
        source: Path,
        output: Path,
        options: JobOptions = FAST,
        *,
        upscaler: Upscaler = pixel_repeater,
        overwrite: bool = False,
        segment_frames: int | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Outcome:
        return upscale_file(
            source,
            output,
            options,
            settings=WorkerSettings(batch_frames=4, segment_frames=segment_frames),
            limits=VideoLimits(),
            load_upscaler=lambda preset: upscaler,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    return upscale


@pytest.fixture
def long_video(make_video: MakeVideo) -> Path:
    """Four segments of 24 frames, at 6 frames per second."""
    return make_video("long.mp4", frames=96, pts=[number * 2133 for number in range(96)], audio_tracks=1)


def test_the_output_is_named_after_the_source() -> None:
    assert default_output(Path("a/clip.mp4")) == Path("a/clip_2x.mp4")
    assert default_output(Path("a/clip.MOV")) == Path("a/clip_2x.MOV")
    assert default_output(Path("a/clip.wmv")) == Path("a/clip_2x.mkv")
    assert default_output(Path("a/clip.m4v")) == Path("a/clip_2x.mp4")
    assert default_output(Path("a/clip")) == Path("a/clip_2x.mkv")


def test_the_output_s_container_holds_the_codec_asked_for() -> None:
    assert default_output(Path("clip.mp4"), VideoCodec.HEVC) == Path("clip_2x.mp4")
    assert default_output(Path("clip.webm"), VideoCodec.H264) == Path("clip_2x.mkv")
    assert default_output(Path("clip.mp4"), VideoCodec.PNG) == Path("clip_2x.zip")


def test_a_finished_run_leaves_the_result_alone(long_video: Path, run: Callable[..., Outcome], tmp_path: Path) -> None:
    output = tmp_path / "out" / "result.mp4"
    output.parent.mkdir()
    outcome = run(long_video, output)
    assert not outcome.already_done
    assert outcome.report is not None
    assert outcome.report.frames.result == 96
    assert set(outcome.report.stage_seconds) == {"plan", "decode", "infer", "wait", "encode", "check", "assemble"}
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.avi"])
def test_a_local_run_gives_the_same_bytes_as_a_job_of_the_service(
    make_video: MakeVideo,
    run: Callable[..., Outcome],
    upscale: Callable[..., tuple[Path, Report, Plan]],
    tmp_path: Path,
    name: str,
) -> None:
    # given a source, and the result of a job whose options leave the container open
    codec = {"codec": "mpeg4", "options": {}} if name.endswith("avi") else {}
    source = make_video(name, time_base=Fraction(1, 25) if codec else Fraction(1, 1000), **codec)
    of_the_service, _, _ = upscale(source, FAST)
    # when the same is done here, with an output name
    outcome = run(source, default_output(source))
    # then the files are the same
    assert outcome.output.read_bytes() == of_the_service.read_bytes()
    assert outcome.output.suffix == of_the_service.suffix


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_a_second_run_finds_the_result_finished(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"result.{suffix}"
    source = make_video("clip.mp4")
    run(source, output)
    before = (output.stat().st_mtime_ns, output.read_bytes())
    outcome = run(source, output)
    assert outcome.already_done
    assert outcome.report is None
    assert (output.stat().st_mtime_ns, output.read_bytes()) == before


def test_what_a_run_left_that_was_ended_behind_its_result_is_cleared_up(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    # given a result that is in its place, and still the folder of its work
    source, output = make_video("clip.mp4"), tmp_path / "result.mp4"
    run(source, output)
    workspace = output.with_name(output.name + WORKSPACE_SUFFIX)
    (workspace / "segments").mkdir(parents=True)
    # when the same is asked for again
    assert run(source, output).already_done
    # then only the result is left
    assert not workspace.exists()


def test_an_interrupted_run_goes_on_where_it_stopped_and_gives_the_same_bytes(
    long_video: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    # given an undisturbed result, and a run that Ctrl-C ends in its third segment
    undisturbed = tmp_path / "undisturbed.mp4"
    run(long_video, undisturbed)
    output = tmp_path / "result.mp4"
    with pytest.raises(KeyboardInterrupt):
        run(long_video, output, upscaler=InterruptedUpscaler(batches=14))
    assert not output.exists()
    assert len(list((tmp_path / "result.mp4.vsr-work" / "segments").glob("*.mp4"))) == 2
    # when the same command runs again
    told: list[Progress] = []
    outcome = run(long_video, output, on_progress=told.append)
    # then it starts behind the two finished segments
    assert outcome.resumed_segments == 2
    assert (told[0].frames_done, told[0].segments_done) == (48, 2)
    assert (told[-1].frames_done, told[-1].segments_done) == (96, 4)
    # and the result is the same, byte for byte
    assert output.read_bytes() == undisturbed.read_bytes()
    assert not (tmp_path / "result.mp4.vsr-work").exists()


_RUN_SLOWLY = """
import sys, time
from pathlib import Path
from worker.contract.job import JobOptions
from worker.local import upscale_file
from worker.settings import VideoLimits, WorkerSettings

class SlowRepeater:
    fingerprint = "pixel-repeater"
    def __call__(self, previous_lr, center_lr, next_lr):
        time.sleep(0.02)
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)

upscale_file(Path(sys.argv[1]), Path(sys.argv[2]), JobOptions(encoder_preset="ultrafast"),
             settings=WorkerSettings(), limits=VideoLimits(), load_upscaler=lambda preset: SlowRepeater())
"""


def test_a_killed_run_is_resumed_to_the_same_bytes_and_leaves_nothing(
    long_video: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    # given an undisturbed result, and a process that SIGKILL ends once its first segment is finished
    undisturbed = tmp_path / "undisturbed.mp4"
    run(long_video, undisturbed)
    output = tmp_path / "result.mp4"
    first_segment = tmp_path / "result.mp4.vsr-work" / "segments" / "00000.mp4"
    with subprocess.Popen([sys.executable, "-c", _RUN_SLOWLY, long_video, output]) as process:
        deadline = time.monotonic() + 60
        while not first_segment.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert first_segment.exists()
    assert not output.exists()
    # when the same is run again
    outcome = run(long_video, output)
    # then the finished segments are used, the result is the same, and no trace of the killed run is left
    assert outcome.resumed_segments >= 1
    assert output.read_bytes() == undisturbed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "result.mp4", "undisturbed.mp4"]


@pytest.mark.parametrize(
    "change", ["source", "options", "options of the cut", "weights", "version", "version of the pipeline"]
)
def test_work_of_an_earlier_run_that_does_not_fit_is_started_over(
    long_video: Path,
    make_video: MakeVideo,
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    # given an interrupted run
    output = tmp_path / "result.mp4"
    with pytest.raises(KeyboardInterrupt):
        run(long_video, output, upscaler=InterruptedUpscaler(batches=14))
    # when something has changed before it is run again
    options, upscaler = FAST, InterruptedUpscaler(batches=1000)
    if change == "source":
        make_video("long.mp4", frames=48, picture=lambda n, w, h: np.full((h, w, 3), n, np.uint8))
    elif change == "options":
        options = FAST.model_copy(update={"crf": 30})
    elif change == "weights":
        upscaler = InterruptedUpscaler(batches=1000, fingerprint="other-weights")
    elif change == "options of the cut":
        pass  # segments of another length, as a setting asks for below
    elif change == "version of the pipeline":
        monkeypatch.setattr("worker.plan.PIPELINE_VERSION", 999)
    else:
        (tmp_path / "result.mp4.vsr-work" / "plan.json").write_text('{"version": 0}')
    segment_frames = 12 if change == "options of the cut" else None
    outcome = run(long_video, output, options, upscaler=upscaler, segment_frames=segment_frames)
    # then nothing of the earlier run is used, and said so
    assert outcome.resumed_segments == 0
    assert outcome.started_over is not None
    assert change.split()[0] in outcome.started_over


def test_a_stranger_s_file_is_not_overwritten_unless_asked(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    source = make_video("clip.mp4")
    output = make_video("mine.mp4")
    treasured = output.read_bytes()
    with pytest.raises(OutputExistsError, match="was not made by vsr"):
        run(source, output)
    assert output.read_bytes() == treasured
    assert not run(source, output, overwrite=True).already_done
    assert output.read_bytes() != treasured


@pytest.mark.parametrize("change", ["source", "options", "cut", "weights"])
def test_a_result_of_something_else_is_not_taken_for_this_one(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, change: str
) -> None:
    output = tmp_path / "result.mp4"
    run(make_video("clip.mp4"), output)
    source = make_video("clip.mp4", frames=13 if change == "source" else 12)
    options = FAST.model_copy(update={"crf": 30}) if change == "options" else FAST
    upscaler = InterruptedUpscaler(1000, "other-weights" if change == "weights" else "pixel-repeater")
    segment_frames = 6 if change == "cut" else None
    with pytest.raises(OutputExistsError, match="another source, or with other options or weights"):
        run(source, output, options, upscaler=upscaler, segment_frames=segment_frames)


def test_a_source_is_never_its_own_output(make_video: MakeVideo, run: Callable[..., Outcome]) -> None:
    source = make_video("clip.mp4")
    with pytest.raises(OutputExistsError, match="the source itself"):
        run(source, source, overwrite=True)


@pytest.mark.parametrize("name", ["result.avi", "result"])
def test_a_container_that_we_do_not_write_is_refused(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, name: str
) -> None:
    with pytest.raises(JobFailureError, match=r"use \.mp4, \.mkv, \.mov, \.webm") as failure:
        run(make_video("clip.mp4"), tmp_path / name)
    assert failure.value.code is FailureCode.UNSUPPORTED_OUTPUT


def test_a_refused_source_leaves_nothing_behind(run: Callable[..., Outcome], tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"nothing like a video")
    with pytest.raises(JobFailureError):
        run(source, tmp_path / "result.mp4")
    assert list(tmp_path.iterdir()) == [source]


def test_real_networks_upscale_a_deep_and_a_plain_video(make_video: MakeVideo, tmp_path: Path) -> None:
    for pixel_format in ("yuv420p", "yuv420p10le"):
        source = make_video("clip.mkv", time_base=Fraction(1, 1000), frames=5, pixel_format=pixel_format)
        outcome = upscale_file(
            source,
            tmp_path / f"{pixel_format}.mkv",
            FAST.model_copy(update={"preset": "tiny-random"}),
            settings=WorkerSettings(device="cpu"),
            limits=VideoLimits(),
        )
        assert outcome.report is not None
        assert (outcome.report.result.width, outcome.report.result.height, outcome.report.result.frames) == (128, 96, 5)


def test_an_unknown_preset_is_refused(make_video: MakeVideo, tmp_path: Path) -> None:
    with pytest.raises(JobFailureError, match="no preset 'nonsense'") as failure:
        upscale_file(
            make_video("clip.mp4"),
            tmp_path / "result.mp4",
            FAST.model_copy(update={"preset": "nonsense"}),
            settings=WorkerSettings(device="cpu"),
            limits=VideoLimits(),
        )
    assert failure.value.code is FailureCode.UNKNOWN_PRESET


@pytest.mark.parametrize("name", ["12:30.mp4", "-y.mp4"])
def test_a_relative_name_is_a_name_and_no_protocol_or_option(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # given a video that FFmpeg would take for a protocol, in the folder where we are
    make_video("clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    # when it is named as a user would, then it is upscaled, and recognised
    output = default_output(Path(name))
    outcome = run(Path(name), output)
    assert (outcome.output, outcome.report is not None) == (output, True)
    assert run(Path(name), output).already_done
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, output.name])


def test_what_is_missing_of_the_cage_is_told_with_the_outcome(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video("clip.mp4", frames=3)
    told = []
    for found in ("no (Function not implemented, kernel 5.4)", "yes"):
        # Given a system that lacks one protection, and one that has all
        in_force = {"seccomp": "yes", "landlock": found}
        monkeypatch.setattr(Cage, "in_force", lambda self, in_force=in_force: in_force)
        # When a video is upscaled
        told.append(run(source, tmp_path / "out.mp4", overwrite=True).missing_protections)
    # Then only the lack is told
    assert told == [{"landlock": "no (Function not implemented, kernel 5.4)"}, {}]


def test_a_file_that_may_not_grow_is_a_full_disk_also_in_the_cage(
    make_video: MakeVideo, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given room for less than the result
    source = make_video("clip.mp4", frames=20)
    limit = CagedProcess.file_size_limit
    monkeypatch.setattr(CagedProcess, "file_size_limit", lambda self, most: limit(self, 1000 if most is None else most))
    # When it is upscaled
    with pytest.raises(JobFailureError) as caught:
        run(source, tmp_path / "out.mp4")
    # Then that is said; what was computed is kept, and with room the result comes
    assert caught.value.code is FailureCode.OUT_OF_DISK
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert run(source, tmp_path / "out.mp4").resumed_segments == 1


def test_a_real_result_may_be_as_large_as_the_disk_lets_it(tmp_path: Path) -> None:
    # Given a cage that reads and one that writes
    limits: dict[str, int] = {}
    place = Place((tmp_path,))
    with Cage(place, "best-effort", VideoLimits(), stall_seconds=60) as reader:
        reader.in_force()
        assert reader.pid is not None
        limits["reader"] = resource.prlimit(reader.pid, resource.RLIMIT_FSIZE)[0]
        with reader.making(tmp_path / "made") as (writer, made):
            made.touch()
            assert isinstance(writer, Cage)
            writer.in_force()
            assert writer.pid is not None
            limits["writer"] = resource.prlimit(writer.pid, resource.RLIMIT_FSIZE)[0]
            made.touch()  # what was there before it is removed
    # Then the first may write nothing, and the other has no limit but this process's own
    assert limits == {"reader": 0, "writer": resource.getrlimit(resource.RLIMIT_FSIZE)[1]}
