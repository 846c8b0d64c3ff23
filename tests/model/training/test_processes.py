"""Training as real processes: killed, asked to stop, and several of them as one."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import load_checkpoint, read_passport, save_checkpoint
from model.hat import HAT
from model.presets import PRESETS
from model.training.config import TrainConfig, TrainingError
from model.training.loop import train
from model.training.presets import TRAIN_PRESETS
from model.training.ranks import Ranks
from model.training.stop_signals import StopSignals

REPOSITORY = Path(__file__).parents[3]

# Trains what config.json says, and prints each step as it is reported.
PROGRAM = """
import json, sys
from model.hat import HATConfig
from model.training.loop import TrainConfig, TrainingStoppedError, train
from model.unet import UNetConfig

fields = json.loads(sys.argv[1])
fields |= {"hat": HATConfig(**fields["hat"]), "unet": UNetConfig(**fields["unet"]), "betas": tuple(fields["betas"])}
try:
    train(TrainConfig(**fields), lambda now: print(now.step, flush=True))
except TrainingStoppedError as stopped:
    sys.exit(str(stopped))
"""


@pytest.fixture
def config(two_conditions_folder: Path, tmp_path: Path, hat: HAT) -> TrainConfig:
    """A second stage with all that our presets switch on, its reports and checkpoints out of step."""
    hat_weights = save_checkpoint(tmp_path / "hat.safetensors", hat, None, {}).path
    return replace(
        TRAIN_PRESETS["compact-unet"](two_conditions_folder, tmp_path / "run", hat_weights),
        hat=PRESETS["tiny-random"].hat,
        unet=PRESETS["tiny-random"].unet,
        batch_size=4,
        patch_px=16,
        steps=200,
        cached_centers=2,
        report_every=7,
        checkpoint_every=20,
        validation_frames=2,
        device="cpu",
    )


@contextmanager
def running(config: TrainConfig, *launcher: str) -> Iterator[subprocess.Popen[str]]:
    program = Path(config.run_folder).with_suffix(".py")
    program.write_text(PROGRAM)
    command = [sys.executable, *launcher, str(program), json.dumps(asdict(config))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    assert process.stderr is not None
    raise AssertionError(f"ended before step {step}: {process.stderr.read()}")


def losses_of(config: TrainConfig) -> list[tuple[int, float]]:
    lines = (Path(config.run_folder) / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]


def test_a_run_killed_and_later_asked_to_stop_ends_with_the_losses_and_weights_of_an_undisturbed_one(
    config: TrainConfig, tmp_path: Path
) -> None:
    # given what the run gives when nothing happens to it
    same = replace(config, run_folder=str(tmp_path / "undisturbed"))
    with running(same) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    # when it is killed at some point between two checkpoints
    with running(config) as process:
        wait_for_step(process, 42)
        process.kill()
    assert not (Path(config.run_folder) / "weights.safetensors").exists()

    # and, started again, is asked to stop at another
    with running(config) as process:
        wait_for_step(process, 91)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=120)
    stopped_at = torch.load(Path(config.run_folder) / "checkpoint.pt")["step"]
    assert f"stopped at step {stopped_at}: the same command goes on from there" in message
    assert 91 <= stopped_at < 200

    # and is started a third time
    with running(config) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    # then all losses and weights are those of the undisturbed run, to the bit
    one, other = (read_passport(Path(run.run_folder) / "weights.safetensors") for run in (same, config))
    assert one.sha256 == other.sha256
    assert losses_of(config) == losses_of(same)


def test_ctrl_c_asks_once_and_insists_the_second_time() -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    # and afterwards it means what it always means
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_processes_train_as_one(config: TrainConfig, tmp_path: Path) -> None:
    # given what one process makes of twenty steps, without the rounding of bfloat16
    config = replace(config, steps=20, report_every=1, bfloat16=False)
    alone = replace(config, run_folder=str(tmp_path / "alone"))
    info = train(alone)

    # when torchrun starts two processes that share each batch, and the caching of HAT's outputs
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    with running(config, *launcher) as process:
        output, errors = process.communicate(timeout=180)

    # then the first alone reported, and losses and weights are those of one process
    assert process.returncode == 0, errors
    assert [int(line) for line in output.split()] == list(range(1, 21))
    for (step, loss), (same_step, same_loss) in zip(losses_of(config), losses_of(alone), strict=True):
        assert step == same_step
        assert loss == pytest.approx(same_loss, rel=1e-4)
    _, _, together = load_checkpoint(Path(config.run_folder) / "weights.safetensors")
    _, _, unet = load_checkpoint(info.path)
    assert together is not None
    assert unet is not None
    for key, value in unet.state_dict().items():
        assert torch.allclose(value, together.state_dict()[key], atol=1e-4), key


def test_batch_normalisation_over_several_cpu_processes_is_refused() -> None:
    ranks = Ranks(0, 2, torch.device("cpu"))

    with pytest.raises(
        TrainingError, match="normalises over the batch, which several processes can share on GPUs only"
    ):
        ranks.parallel(torch.nn.BatchNorm2d(3))


def test_a_batch_that_two_processes_cannot_share_is_refused(config: TrainConfig) -> None:
    from model.data import Dataset
    from model.training.loop import settled

    with pytest.raises(TrainingError, match="a batch of 5 cannot be shared by 2 processes"):
        settled(replace(config, batch_size=5), Dataset.open(config.data_folder), Ranks(0, 2, torch.device("cpu")))
