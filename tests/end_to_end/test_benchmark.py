"""`vsr benchmark` as people call it: every figure has its name, and an interruption is no error."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from app.exit_codes import ExitCode
from tests.end_to_end.conftest import PRESET, write_moving_video
from tests.end_to_end.test_command import VSR, vsr

SMALL = ("--size", "64x48", "--frames", "4", "--runs", "2")


def test_networks_and_a_whole_video_are_measured(tmp_path: Path) -> None:
    # Given a video; when it is measured with it, and without
    video = write_moving_video(tmp_path / "clip.mp4", frames=5)
    with_video = vsr("benchmark", video, "--preset", PRESET, *SMALL, "--json", "--threads", "1", folder=tmp_path)
    without = vsr("benchmark", "--preset", PRESET, *SMALL, folder=tmp_path)

    # Then every part of the networks has its times, and the video its stages
    measured = json.loads(with_video.stdout)
    assert with_video.returncode == without.returncode == ExitCode.OK, with_video.stderr + without.stderr
    assert measured["machine"]["threads"] == 1
    assert measured["machine"]["environment"]["MALLOC_TRIM_THRESHOLD_"]
    assert [(one["preset"], one["way"], one["part"]) for one in measured["networks"]] == [
        (PRESET, way, part) for way in ("cpu-bf16-torch", "cpu-f32-torch") for part in ("HAT", "U-Net", "both steps")
    ]
    for one in measured["networks"]:
        assert 0 < one["fastest_ms"] <= one["median_ms"] <= one["slowest_ms"]
    (pipeline,) = measured["pipeline"]
    assert pipeline["frames"] == 5
    assert {"plan", "decode", "infer", "encode", "check", "assemble"} <= set(pipeline["stage_ms"])
    assert 0 < pipeline["device_busy"] < 1
    assert 0 < pipeline["first_frame_seconds"] < pipeline["wall_seconds"]
    assert pipeline["peak_memory_mib"] > 0

    # And people read the same, with a test pattern, from a machine that has a name
    assert "4 frames of 64x48" in without.stdout
    assert "both steps" in without.stdout
    assert without.stdout.splitlines()[-1].startswith(f"With {PRESET} a video of 10 minutes, 720p")
    assert list(tmp_path.iterdir()) == [video]


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--size", "large"), ExitCode.USAGE, "is not a size"),
        (("--size", "65x48"), ExitCode.USAGE, "of even numbers"),
        (("--preset", "repeat-pixels", *SMALL), ExitCode.NOT_POSSIBLE, "vsr: repeat-pixels has no networks to measure"),
        (("--preset", "nothing", *SMALL), ExitCode.NOT_POSSIBLE, "there is no preset 'nothing'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    words: tuple[str, ...], code: ExitCode, why: str, tmp_path: Path
) -> None:
    done = vsr("benchmark", *words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr


def test_an_interruption_ends_it(tmp_path: Path) -> None:
    # Given a measurement that would take for ever
    command = [*VSR, "benchmark", "--preset", PRESET, *SMALL[:4], "--runs", "100000000"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("networks alone"):
                break

        # When it is interrupted
        running.send_signal(signal.SIGINT)

        # Then it ends with one line
        assert running.stderr.read().splitlines()[-1] == "interrupted: nothing was measured to its end"
    assert running.returncode == ExitCode.INTERRUPTED
