"""Rows: when every frame is shown."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from tests.fidelity.charts import COPY, FRAMES, LOSSLESS_H264, tone, write_chart
from tests.fidelity.row import Row, Upscaled, options
from tests.fidelity.witness import Stream, Witness, ffmpeg

_YUV = ("-pix_fmt", "yuv420p")
_B_FRAMES = ("-c:v", "libx264", "-preset", "veryfast", "-qp", "1", "-bf", "3", "-x264-params", "b-adapt=0", *_YUV)
_SOUND = ("-c:a", "aac", "-b:a", "96k")


def steps(stream: Stream) -> list[Fraction]:
    times = stream.frame_times
    return [after - before for before, after in pairwise(times)]


def is_reordered(stream: Stream) -> bool:
    shown = [packet.pts for packet in stream.packets if packet.pts is not None]
    return shown != sorted(shown)


def write_variable_rate_with_b_frames(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *(*tone(), "-vf", "settb=1/90000,setpts='floor(90000*(0.04*N+0.013*sin(1.7*N)))'", "-fps_mode", "passthrough"),
        *("-enc_time_base:v", "1/90000", "-video_track_timescale", "90000", *_B_FRAMES, *_SOUND),
    )
    video = Witness(path).video
    assert len(set(steps(video))) > FRAMES // 2
    assert is_reordered(video)
    return path


def assert_variable_rate_with_b_frames(upscaled: Upscaled) -> None:
    assert steps(upscaled.result.video) == steps(upscaled.source.video)


def write_encoded_with_b_frames(folder: Path) -> Path:
    """The same at a constant rate; what the row is about is the result, whose codec reorders by three frames."""
    path = write_chart(folder / "source.mp4", *_B_FRAMES)
    assert is_reordered(Witness(path).video)
    return path


def assert_encoded_with_b_frames(upscaled: Upscaled) -> None:
    assert is_reordered(upscaled.result.video)


def write_negative_start(folder: Path) -> Path:
    """A broadcast whose clock of 33 bits turns over in its middle; before that, FFmpeg counts from below zero."""
    path = write_chart(
        folder / "source.ts",
        *(*tone(), *LOSSLESS_H264, *_YUV, "-c:a", "ac3"),
        *("-output_ts_offset", str(2**33 / 90000 - 0.4), "-muxdelay", "0", "-muxpreload", "0"),
    )
    video = Witness(path).video
    assert video.frame_times[0] < 0 < video.frame_times[-1]
    return path


def write_video_behind_sound(folder: Path) -> Path:
    plain = write_chart(folder / "plain.mp4", *LOSSLESS_H264, *_YUV)
    path = folder / "source.mp4"
    ffmpeg("-itsoffset", "0.32", "-i", plain, *tone(1.3), "-map", "0:v", "-map", "1:a", "-c:v", "copy", *_SOUND, path)
    source = Witness(path)
    assert source.video.frame_times[0] == Fraction(32, 100)
    assert source.of_kind("audio")[0].visible_packets[0].pts == 0
    return path


def assert_video_behind_sound(upscaled: Upscaled) -> None:
    assert upscaled.result.video.frame_times[0] == Fraction(32, 100)


def write_sound_behind_video(folder: Path) -> Path:
    sound = folder / "sound.m4a"
    ffmpeg(*tone(0.6), *_SOUND, sound)
    plain = write_chart(folder / "plain.mkv", *LOSSLESS_H264, *_YUV)
    path = folder / "source.mkv"
    ffmpeg("-i", plain, "-itsoffset", "0.257", "-i", sound, "-map", "0:v", "-map", "1:a", *COPY, path)
    [audio] = Witness(path).of_kind("audio")
    assert audio.packets[0].pts is not None
    assert audio.packets[0].pts > Fraction(1, 5)
    return path


def write_edit_list(folder: Path) -> Path:
    """Trimmed without encoding anew: the frames before the first one to be shown lie in the file, hidden."""
    whole = write_chart(folder / "whole.mp4", *tone(1.9), *_B_FRAMES, *_SOUND, frames=48)
    path = folder / "source.mp4"
    ffmpeg("-ss", "0.5", "-i", whole, *COPY, path)
    source = Witness(path)
    assert any(packet.is_hidden for packet in source.video.packets)
    assert len(source.video.frames) < len(source.video.packets)
    return path


def assert_edit_list(upscaled: Upscaled) -> None:
    shown = [packet for packet in upscaled.source.video.packets if not packet.is_hidden]
    assert len(upscaled.result.video.frames) == len(shown)


def write_29_97(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *LOSSLESS_H264, *_YUV, rate="30000/1001")
    assert set(steps(Witness(path).video)) == {Fraction(1001, 30000)}
    return path


def assert_29_97(upscaled: Upscaled) -> None:
    assert set(steps(upscaled.result.video)) == {Fraction(1001, 30000)}
    assert upscaled.result.video.facts["avg_frame_rate"] == "30000/1001"


def write_23_976(folder: Path) -> Path:
    path = write_chart(folder / "source.mov", *LOSSLESS_H264, *_YUV, rate="24000/1001")
    assert set(steps(Witness(path).video)) == {Fraction(1001, 24000)}
    return path


def assert_23_976(upscaled: Upscaled) -> None:
    assert set(steps(upscaled.result.video)) == {Fraction(1001, 24000)}


def write_23_976_in_milliseconds(folder: Path) -> Path:
    path = write_chart(folder / "source.mkv", *LOSSLESS_H264, *_YUV, rate="24000/1001")
    assert set(steps(Witness(path).video)) == {Fraction(41, 1000), Fraction(42, 1000)}
    return path


def write_gaps(folder: Path) -> Path:
    path = write_chart(
        folder / "source.mp4",
        *("-vf", "setpts='PTS+62*gte(N,9)+18*gte(N,17)'", "-fps_mode", "passthrough", *LOSSLESS_H264, *_YUV),
    )
    assert sorted(set(steps(Witness(path).video)))[1:] == [Fraction(76, 100), Fraction(252, 100)]
    return path


def write_one_frame(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *tone(0.3), *LOSSLESS_H264, *_YUV, *_SOUND, frames=1)
    assert len(Witness(path).video.frames) == 1
    return path


def write_two_frames(folder: Path) -> Path:
    path = write_chart(folder / "source.mp4", *_B_FRAMES, frames=2)
    assert len(Witness(path).video.frames) == 2
    return path


def assert_last_frame_lasts(upscaled: Upscaled) -> None:
    """A player would otherwise show it for no time at all."""
    last, last_before = (max(w.video.packets, key=_shown_at) for w in (upscaled.result, upscaled.source))
    assert last.duration == last_before.duration


def _shown_at(packet: object) -> Fraction:
    return packet.pts or Fraction(0)  # type: ignore[attr-defined]


def write_long_frame_at_the_end(folder: Path) -> Path:
    path = folder / "source.mp4"
    plain = write_chart(folder / "plain.mp4", *LOSSLESS_H264, *_YUV)
    ffmpeg("-i", plain, *COPY, "-bsf:v", "setts=duration=if(eq(N\\,23)\\,12800\\,DURATION)", path)
    assert Witness(path).video.packets[-1].duration == 1
    return path


ROWS = (
    Row(write_variable_rate_with_b_frames, assert_variable_rate_with_b_frames),
    Row(
        write_encoded_with_b_frames,
        assert_encoded_with_b_frames,
        options=options(encoder_preset="veryfast", quality=None, crf=1),
    ),
    Row(write_negative_start),
    Row(write_negative_start, suffix=".mp4", name="negative_start_in_mp4"),
    Row(write_video_behind_sound, assert_video_behind_sound),
    Row(write_video_behind_sound, assert_video_behind_sound, suffix=".mkv", name="video_behind_sound_in_mkv"),
    Row(write_sound_behind_video),
    Row(write_edit_list, assert_edit_list),
    Row(write_edit_list, assert_edit_list, suffix=".mkv", name="edit_list_in_mkv"),
    Row(write_29_97, assert_29_97),
    Row(write_23_976, assert_23_976),
    Row(write_23_976_in_milliseconds),
    Row(write_gaps),
    Row(write_one_frame),
    Row(write_two_frames),
    Row(write_long_frame_at_the_end, assert_last_frame_lasts),
)
