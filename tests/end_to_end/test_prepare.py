"""`vsr prepare` as people type it: what it prints, how it ends, and that it goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import main
from app.exit_codes import ExitCode
from tests.end_to_end.conftest import wait_for, write_moving_video

REPOSITORY = Path(__file__).parents[2]
Prepare = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Type the command in `tmp_path`, here in this process; returns its code, and the lines of its two outputs."""

    def typed(*arguments: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["vsr", "prepare", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(str(ended.value.code or 0)), printed.out.splitlines(), printed.err.splitlines()

    return typed


def test_splits_conditions_and_what_was_skipped_are_printed(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number, frames in enumerate((25, 30, 24)):
        write_moving_video(tmp_path / "videos" / f"{number}.mp4", frames, width=128)
    (tmp_path / "videos" / "broken.mp4").write_text("no video")

    code, out, _ = prepare(
        "videos", "data", "--degrade", "h264:crf=18-34", "--degrade", "jpeg:quality=75", "--workers", "1"
    )

    assert code == ExitCode.OK
    assert out == [
        "data: 1 train, 1 val, 0 test",
        "conditions: clean, h264:crf=18-34, jpeg:quality=75",
        "skipped 2.mp4: it has 24 frames, 25 are needed",
        "skipped broken.mp4: the file is not a video that can be read: Invalid data found when processing input",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "data"], ExitCode.BAD_INPUT, "nowhere does not exist"),
        (["clip.mp4", "data", "--workers", "1"], ExitCode.BAD_INPUT, "clip.mp4: it has 5 frames, 25 are needed"),
        (["clip.mp4", "data", "--degrade", "vhs"], ExitCode.NOT_POSSIBLE, "there is no 'vhs'"),
        (["clip.mp4", "data", "--size", "33"], ExitCode.NOT_POSSIBLE, "the size has to be an even number"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    prepare: Prepare, tmp_path: Path, arguments: list[str], code: ExitCode, said: str
) -> None:
    write_moving_video(tmp_path / "clip.mp4", frames=5)

    ended, out, err = prepare(*arguments)

    assert (ended, out) == (code, [])
    assert err[-1].startswith("vsr: ")
    assert said in err[-1]
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_ctrl_c_is_no_error_and_the_same_command_goes_on(prepare: Prepare, tmp_path: Path) -> None:
    # given a command with two helpers, and some of eight videos done
    (tmp_path / "videos").mkdir()
    for number in range(8):
        write_moving_video(tmp_path / "videos" / f"{number:02d}.mp4", frames=60, width=256)
    arguments = ["videos", "data", "--sequences-per-video", "2", "--degrade", "vp9:crf=30", "--workers"]
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli", "prepare", *arguments, "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        journal = tmp_path / "data" / "unfinished.jsonl"
        wait_for("the first video", lambda: journal.exists() and journal.read_text().count("\n") > 2)

        # when the terminal sends an interrupt to all of them
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()

    # then it says what to do, without a traceback, and doing so ends the work
    assert process.returncode == ExitCode.INTERRUPTED
    assert "interrupted: the same command goes on where it was" in said
    assert "Traceback" not in said
    code, out, _ = prepare(*arguments, "1")
    assert (code, out[0]) == (ExitCode.OK, "data: 12 train, 2 val, 2 test")
