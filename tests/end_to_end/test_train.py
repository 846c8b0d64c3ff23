"""A stranger's own videos: prepared, trained on, and the result used, as it is typed."""

import json
import sys
from pathlib import Path

import pytest

from app.cli import main
from app.exit_codes import ExitCode
from tests.end_to_end.conftest import write_moving_video
from worker.cpu_environment import CPU_ENVIRONMENT


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command starts anew when its environment is not set."""
    for name, value in CPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


# As little as the smallest preset can be trained with.
BRIEFLY = ["--steps", "2", "--batch-size", "2", "--patch", "16", "--device", "cpu"]


def vsr(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["vsr", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three videos of one's own, after the first of the two commands."""
    (tmp_path / "my-videos").mkdir()
    for number in range(3):
        write_moving_video(tmp_path / f"my-videos/{number}.mp4", 25, width=64 + 16 * number)
    assert vsr(monkeypatch, "prepare", tmp_path / "my-videos", tmp_path / "data", "--workers", "1") == 0
    return tmp_path / "data"


def test_a_unet_trained_on_ones_own_videos_is_a_preset_to_upscale_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # when the second command trains, which then prints where the weights are
    run = tmp_path / "runs" / "mine"
    assert vsr(monkeypatch, "train", "compact-unet", data, run, *BRIEFLY) == 0
    assert capsys.readouterr().out.strip().endswith("weights.safetensors")

    # and they are imported
    weights_dir = ["--weights-dir", tmp_path / "weights"]
    assert vsr(monkeypatch, "weights", "import", run / "weights.safetensors", "--name", "mine", *weights_dir) == 0

    # then a video can be upscaled with them
    source, result = tmp_path / "my-videos" / "0.mp4", tmp_path / "result.mp4"
    assert vsr(monkeypatch, "upscale", source, result, "--preset", "mine", "--device", "cpu", *weights_dir) == 0
    assert result.stat().st_size > 0


def test_what_is_typed_is_what_is_trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # when a run is described by options
    run = tmp_path / "run"
    options = ["--learning-rate", "2e-4", "--seed", "5", "--loss", "mae_ssim", "--alpha", "0.6", "--no-neighbours"]
    assert vsr(monkeypatch, "train", "compact-unet", data, run, *BRIEFLY, *options, "--condition", "clean@0.5") == 0

    # then its folder says so
    config = json.loads((run / "config.json").read_text())["config"]
    expected = {
        "steps": 2,
        "batch_size": 2,
        "patch_px": 16,
        "device": "cpu",
        "learning_rate": 2e-4,
        "seed": 5,
        "loss": "mae_ssim",
        "alpha": 0.6,
        "neighbours": "current",
        "conditions": {"clean": 0.5},
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compact", "DATA", "RUN"], ExitCode.USAGE, "there is no 'compact': choose one of paper, paper-residual"),
        (
            ["compact-hat", "DATA", "RUN", "--hat", "a.safetensors"],
            ExitCode.USAGE,
            "compact-hat trains a HAT",
        ),
        (
            ["compact-unet", "DATA", "RUN", "--condition", "clean@1", "--condition", "clean@2"],
            ExitCode.USAGE,
            "named twice",
        ),
        (["compact-unet", "DATA", "RUN", "--seed", str(2**63)], ExitCode.USAGE, "Invalid value for '--seed'"),
        (["compact-unet", "DATA", "RUN", "--alpha", "0.5"], ExitCode.BAD_INPUT, "the loss 'mae' has no alpha"),
        (["compact-hat", "DATA", "RUN", "--no-neighbours"], ExitCode.BAD_INPUT, "only a U-Net can be trained without"),
        (["compact-unet", "nowhere", "RUN"], ExitCode.BAD_INPUT, "no manifest.json in nowhere"),
        (["compact-unet", "DATA", "RUN", "--condition", "jpeg"], ExitCode.BAD_INPUT, "has no condition 'jpeg'"),
        (["compact-unet", "DATA", "RUN", "--patch", "999"], ExitCode.BAD_INPUT, "three frames of at least 999x999"),
        (["compact-unet", "DATA", "RUN", "--loss", "encoder", "--alpha", "0.8"], ExitCode.BAD_INPUT, "takes 0 to 0.1"),
        (["paper", "DATA", "RUN"], ExitCode.BAD_INPUT, "name the weights of a trained one (--hat)"),
        (
            ["paper", "DATA", "RUN", "--hat", "none.safetensors"],
            ExitCode.NOT_POSSIBLE,
            "no weight file none.safetensors",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    arguments: list[str],
    code: ExitCode,
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"DATA": data, "RUN": tmp_path / "run"}
    capsys.readouterr()

    # when it is tried
    ended = vsr(monkeypatch, "train", *(places.get(argument, argument) for argument in arguments), *BRIEFLY[:2])

    # then the reason is named, and nothing is left
    errors = capsys.readouterr().err
    assert (ended, message in " ".join(errors.split())) == (code, True), errors
    assert not (tmp_path / "run").exists()
