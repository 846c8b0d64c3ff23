"""`vsr evaluate` as it is typed: a table, JSON and a page of pictures; one line for what cannot be done."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from app.cli import main
from app.exit_codes import ExitCode
from model.data import DecodedSequence, write_dataset
from worker.cpu_environment import CPU_ENVIRONMENT

# Small enough to be quick, timed on a small frame.
QUICK = ["--preset", "tiny-random", "--device", "cpu", "--frame-size", "16x12", "--timed-frames", "1"]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command starts anew when its environment is not set."""
    for name, value in CPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    sequences = [
        DecodedSequence(
            f"kind/{n}", f"source-{n}", "CC0", "val", torch.randint(256, (5, 3, 32, 32), generator=generator).byte()
        )
        for n in range(2)
    ]
    write_dataset(sequences, tmp_path / "data-set", seed=0)
    return tmp_path / "data-set"


def vsr(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["vsr", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0


def write_video(path: Path, frames: int) -> None:
    """A square that moves over a gradient, 64x48 px."""
    rows, columns = np.mgrid[0:48, 0:64]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.stack([rows * 2, columns * 2, rows + columns], axis=-1)
            picture[16:32, number : number + 16] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


def test_a_data_set_gives_tables_json_and_a_page_of_pictures(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"

    code = vsr(monkeypatch, "evaluate", data_set, *QUICK, "--frames-per-sequence", "2", "--out", out)

    assert code == ExitCode.OK
    printed = capsys.readouterr().out
    assert "### clean, all: 2 sequences, 4 frames" in printed
    assert "### Cost for a frame of 16x12 px" in printed
    assert (out / "report.md").read_text().strip() == printed.strip()
    content = json.loads((out / "report.json").read_text())
    assert content["provenance"]["command"].startswith(f"vsr evaluate {data_set} --preset tiny-random")
    assert {row["method"] for row in content["means"]} >= {"bicubic", "HAT alone (tiny-random)", "truth"}
    assert (out / "index.html").is_file()
    assert len(list((out / "pictures").glob("*.png"))) > 10


def test_videos_of_the_users_own_are_data_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a folder with a usable video and one that is too short
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "mine.mp4", 30)
    write_video(videos / "short.mp4", 3)

    # when it is evaluated clean and compressed, as JSON
    code = vsr(
        monkeypatch,
        "evaluate",
        "--data",
        videos,
        *QUICK,
        "--condition",
        "clean",
        "--condition",
        "h264:crf=28",
        "--json",
    )

    # then whole frames of the first count, and the second is listed
    assert code == ExitCode.OK
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content["provenance"]["split"] == "all"
    assert {(row["condition"], row["frames"]) for row in content["sequences"]} == {("clean", 23), ("h264:crf=28", 23)}
    assert "skipped short.mp4" in printed.err


def test_a_sweep_makes_the_papers_table_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [
        DecodedSequence(split, split, "CC0", split, torch.randint(256, (3, 3, 128, 128), generator=generator).byte())
        for split in ("train", "val")
    ]
    write_dataset(sequences, tmp_path / "data-set", seed=0)
    sweep = ["--sweep", "--tables", "I", "--seeds", "1", "--steps", "1", "--device", "cpu", "--out", tmp_path / "out"]

    code = vsr(monkeypatch, "evaluate", tmp_path / "data-set", *sweep)

    assert code == ExitCode.OK
    printed = capsys.readouterr().out
    assert "### Table I: MSE or MAE; clean" in printed
    assert "| MAE | " in printed
    assert (tmp_path / "out" / "sweep.md").read_text().strip() == printed.strip()
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "test"], ExitCode.BAD_INPUT, "has no sequence in the split 'test', only in val"),
        (["--condition", "vp9:crf=40"], ExitCode.BAD_INPUT, "has no condition 'vp9:crf=40', only clean"),
        (["--preset", "best"], ExitCode.NOT_POSSIBLE, "there is no preset 'best', only"),
        (["--preset", "paper"], ExitCode.NOT_POSSIBLE, "preset 'paper' needs weights that are not shipped"),
        (["--weights", "none.safetensors"], ExitCode.NOT_POSSIBLE, "there is no weight file none.safetensors"),
        (["--frame-size", "big"], ExitCode.USAGE, "'big' is not a size such as 320x180"),
        (["--preset", "tiny-random", "--preset", "tiny-random"], ExitCode.USAGE, "two of the networks are called"),
        (["--sweep"], ExitCode.USAGE, "a sweep takes one --preset of `vsr train`"),
        (["--sweep", "--out", "x", "--preset", "compact-hat"], ExitCode.USAGE, "cannot train 'compact-hat'"),
        (["--sweep", "--out", "x", "--tables", "IV"], ExitCode.USAGE, "there is no table 'IV'"),
        (["--steps", "5"], ExitCode.USAGE, "--steps and --hat are of a sweep"),
        (["--seeds", "2"], ExitCode.USAGE, "--steps and --hat are of a sweep"),
        (["--tables", "I"], ExitCode.USAGE, "--steps and --hat are of a sweep"),
        (["--data", "other"], ExitCode.USAGE, "name the data once"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str],
    code: ExitCode,
    message: str,
    data_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VSR_WEIGHTS_DIR", str(tmp_path / "no-weights"))
    monkeypatch.setenv("COLUMNS", "400")  # The parser's own messages are put in a box.

    assert vsr(monkeypatch, "evaluate", data_set, *arguments) == code

    assert message in capsys.readouterr().err


def test_data_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vsr(monkeypatch, "evaluate", tmp_path / "nowhere", *QUICK) == ExitCode.BAD_INPUT
    assert "no manifest.json in" in capsys.readouterr().err
