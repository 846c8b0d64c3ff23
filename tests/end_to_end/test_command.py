"""The `vsr` command as people type it: its answers, its exit codes, and what it leaves behind."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from app.exit_codes import ExitCode
from tests.end_to_end.conftest import write_moving_video
from tests.worker.conftest import write_video
from worker.exit_codes import ExitCode as WorkerExitCode

VSR = [sys.executable, "-m", "app.cli"]


def vsr(*arguments: str | Path, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*VSR, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_video_is_upscaled_once_and_the_second_run_says_so(tmp_path: Path) -> None:
    # Given a video
    write_moving_video(tmp_path / "clip.mp4", frames=5)

    # When it is upscaled twice, and once more with other options
    command = ("upscale", "clip.mp4", "--preset", "tiny-random", "--encoder-preset", "ultrafast")
    first = vsr(*command, folder=tmp_path)
    made_at = (tmp_path / "clip_2x.mp4").stat().st_mtime_ns
    second = vsr(*command, folder=tmp_path)
    other = vsr(*command, "--crf", "30", folder=tmp_path)

    # Then
    assert (first.returncode, first.stdout.strip()) == (ExitCode.OK, "clip_2x.mp4")
    assert (second.returncode, second.stdout.strip()) == (
        ExitCode.OK,
        "clip_2x.mp4 is already finished: nothing to do",
    )
    assert other.returncode == ExitCode.NOT_POSSIBLE
    assert "with other options" in other.stderr
    assert (tmp_path / "clip_2x.mp4").stat().st_mtime_ns == made_at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip_2x.mp4"]


def test_json_is_all_that_is_printed_when_asked_for(tmp_path: Path) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=3)
    done = vsr("upscale", "clip.mp4", "--preset", "tiny-random", "--json", folder=tmp_path)
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert (answer["output"], answer["already_done"], answer["report"]["frames"]["result"]) == ("clip_2x.mp4", False, 3)


def test_what_was_not_simply_kept_is_one_line_and_the_report_has_the_rest(tmp_path: Path) -> None:
    # Given a video, of which one result keeps everything and another is of another codec
    write_moving_video(tmp_path / "clip.mp4", frames=6)
    command = ("upscale", "clip.mp4", "--preset", "repeat-pixels", "--encoder-preset", "ultrafast")

    # When
    kept = vsr(*command, folder=tmp_path)
    changed = vsr(
        *(*command, "changed.mkv", "--codec", "ffv1", "--quality", "lossless", "--report", "changed.json"),
        folder=tmp_path,
    )
    page = vsr("report", "changed.json", folder=tmp_path)
    as_json = vsr("report", "changed.json", "--json", folder=tmp_path)

    # Then
    assert (kept.stdout, "kept" in kept.stderr) == ("clip_2x.mp4\n", False)
    assert changed.stderr.splitlines()[-1].startswith("not simply kept: codec h264 -> ffv1; frame times rounded")
    assert page.returncode == ExitCode.OK
    assert "6 frames in, 6 out; times rounded" in page.stdout
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "changed.json").read_text())
    # And repeated pixels come back as they went in
    assert json.loads(as_json.stdout)["quality"]["psnr_db"] > 40


@pytest.mark.parametrize("content", [None, '{"container": "mp4", "frames": 3}'])
def test_what_is_no_report_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    done = vsr("report", "old.json", folder=tmp_path)
    assert done.returncode in (ExitCode.SYSTEM, ExitCode.NOT_POSSIBLE)
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_result_that_would_lose_something_needs_consent(tmp_path: Path) -> None:
    # Given a video with a subtitle that mp4 cannot hold
    write_video(tmp_path / "film.mkv", frames=4, time_base=Fraction(1, 1000), subtitle_codec="subrip")
    command = ("upscale", "film.mkv", "film.mp4", "--preset", "repeat-pixels", "--encoder-preset", "ultrafast")

    # When
    refused = vsr(*command, folder=tmp_path)
    agreed = vsr(*command, "--drop-unsupported", folder=tmp_path)

    # Then
    assert refused.returncode == ExitCode.NOT_POSSIBLE
    assert "subrip" in refused.stderr
    assert "--drop-unsupported" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert agreed.returncode == ExitCode.OK
    assert "subtitle stream 1 (subrip) dropped" in agreed.stderr


def test_pictures_are_a_container_too_and_contradictions_are_refused(tmp_path: Path) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=3)
    command = ("upscale", "clip.mp4", "--preset", "repeat-pixels", "--encoder-preset", "ultrafast")
    pictures = vsr(*command, "pictures/", folder=tmp_path)
    both = vsr(*command, "clip.mov", "--container", "mkv", folder=tmp_path)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3, pictures.stderr
    assert both.returncode == ExitCode.USAGE
    assert "leave one out" in both.stderr


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"a letter to a friend, not a film\n" * 99, "not a video"),
        ("list.mp4", b"ffconcat version 1.0\nfile secret.mp4\n", "playlist"),
        ("stream.mkv", b"#EXTM3U\n#EXTINF:4,\nsecret.ts\n", "playlist"),
    ],
)
def test_what_is_not_a_video_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    # Given
    (tmp_path / name).write_bytes(content)

    # When
    done = vsr("upscale", name, "--preset", "tiny-random", folder=tmp_path)

    # Then
    assert done.returncode == ExitCode.BAD_INPUT
    assert done.stdout == ""
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_gpu_that_is_asked_for_and_missing_is_an_error_not_a_cpu_run(tmp_path: Path) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=2)
    # An empty list hides every GPU, so that this holds on a machine that has one.
    done = vsr(
        *("upscale", "clip.mp4", "--preset", "tiny-random", "--device", "cuda"),
        folder=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == ExitCode.NOT_POSSIBLE
    assert "cuda was asked for" in done.stderr
    assert not (tmp_path / "clip_2x.mp4").exists()


def test_an_output_that_no_container_of_ours_fits_is_refused_with_the_choices(tmp_path: Path) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=2)
    done = vsr("upscale", "clip.mp4", "clip.avi", "--preset", "tiny-random", folder=tmp_path)
    assert done.returncode == ExitCode.NOT_POSSIBLE
    assert ".mp4, .mkv, .mov, .webm" in done.stderr


def test_a_service_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    # Port 9 of loopback: nothing listens there.
    done = vsr("list", "--url", "http://127.0.0.1:9", folder=tmp_path)
    assert done.returncode == ExitCode.SERVICE
    assert done.stderr.startswith("vsr: no service answers at http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("command", "settings", "exit_code", "named"),
    [
        ("worker", {"VSR_REDIS_URL": "localhost:6379"}, WorkerExitCode.REDIS_UNREACHABLE, "VSR_REDIS_URL"),
        ("serve", {"VSR_STORAGE_DIR": "/proc/x"}, ExitCode.SYSTEM, "VSR_STORAGE_DIR"),
    ],
)
def test_a_service_with_a_wrong_address_or_folder_says_so_in_one_line(
    tmp_path: Path, command: str, settings: dict[str, str], exit_code: int, named: str
) -> None:
    done = vsr(command, folder=tmp_path, **settings)
    assert done.returncode == exit_code
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=2)
    done = vsr("upscale", "clip.mp4", "--preset", "tiny-random", "--report", "no/such.json", folder=tmp_path)
    assert done.returncode == ExitCode.SYSTEM
    assert done.stderr.splitlines()[-1] == "vsr: no/such.json: No such file or directory"
    assert "Traceback" not in done.stderr


def test_a_worker_without_redis_says_what_to_set(tmp_path: Path) -> None:
    done = vsr("gateway", folder=tmp_path)
    assert done.returncode == ExitCode.SYSTEM
    assert "VSR_REDIS_URL" in done.stderr
