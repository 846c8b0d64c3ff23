"""`vsr train`: first HAT alone, then the U-Net behind the frozen HAT. The loop stands in plain sight in `train`.

A run folder holds all that a run left behind:

    config.json         the TrainConfig, the commit and the torch version
    metrics.jsonl       one JSON object per report: step, loss, learning_rate, patches_per_second; psnr_y_db when validated
    checkpoint.pt       networks, optimiser, random state and step, replaced atomically; a run resumes from it
    weights.safetensors the finished network
"""

import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from model import losses
from model.data import Batch, TripletSampler, read_manifest, read_sequence
from model.hat import HAT, HATConfig, start_as_bilinear
from model.metrics import psnr_y


class TrainingError(Exception):
    """A run that cannot start or must not go on."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. `patch_px` is the side of the low-resolution patch."""

    stage: Literal["hat", "unet"]
    data_folder: str
    run_folder: str
    hat: HATConfig
    steps: int
    batch_size: int
    patch_px: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    loss: Literal["mse", "mae", "mae_ssim"]
    alpha: float = 0.8
    betas: tuple[float, float] = (0.9, 0.999)
    bfloat16: bool = False
    seed: int = 0
    report_every: int = 50
    checkpoint_every: int = 500
    validation_frames: int = 36


def compact_hat(data_folder: Path, run_folder: Path, hat: HATConfig) -> TrainConfig:
    """First stage of the shipped preset: patches and rates that two CPU cores finish in under an hour."""
    return TrainConfig(
        stage="hat",
        data_folder=str(data_folder),
        run_folder=str(run_folder),
        hat=hat,
        steps=9000,
        batch_size=16,
        patch_px=32,
        learning_rate=1e-3,
        schedule="cosine",
        loss="mae",
        bfloat16=True,
    )


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows. `psnr_y_db` is None between validations."""

    step: int
    steps: int
    loss: float
    patches_per_second: float
    psnr_y_db: float | None


def train(config: TrainConfig, on_progress: Callable[[Progress], None] | None = None) -> Path:
    """Run, or go on with, the training that `config` describes; returns the finished weights' path."""
    run_folder = Path(config.run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    network = HAT(config.hat)
    start_as_bilinear(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=config.betas)
    sampler = TripletSampler.from_folder(Path(config.data_folder), config.patch_px, config.seed)
    validation = validation_set(Path(config.data_folder), config.validation_frames)

    checkpoint = run_folder / "checkpoint.pt"
    step = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.generator.set_state(state["sampler"])
        step = state["step"]
    write_config(config, run_folder)

    network.train()
    reported_at, reported_step, loss_sum = time.monotonic(), step, 0.0
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        batch = sampler.batch(config.batch_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            output = network(batch.center_lr)
        loss = loss_of(config, output.float(), batch.target)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {step + 1}; {checkpoint} is intact")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        loss_sum += loss.item()

        validated = None
        if step % config.checkpoint_every == 0 or step == config.steps:
            network.eval()
            validated = mean_psnr_y(network, validation)
            network.train()
            save_atomically(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "sampler": sampler.generator.get_state(),
                    "step": step,
                },
                checkpoint,
            )
        if step % config.report_every == 0 or step == config.steps:
            seconds = time.monotonic() - reported_at
            rate = (step - reported_step) * config.batch_size / seconds
            progress = Progress(step, config.steps, loss_sum / (step - reported_step), rate, validated)
            report(run_folder, progress, learning_rate(config, step))
            if on_progress is not None:
                on_progress(progress)
            reported_at, reported_step, loss_sum = time.monotonic(), step, 0.0
    return checkpoint


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: constant, or a hundred steps of warm-up and half a cosine down to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    warm_up = min(1.0, (step + 1) / 100)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def loss_of(config: TrainConfig, output: Tensor, target: Tensor) -> Tensor:
    """The configured loss."""
    if config.loss == "mse":
        return losses.mse(output, target)
    if config.loss == "mae":
        return losses.mae(output, target)
    return losses.mae_ssim(output, target, config.alpha)


def validation_set(data_folder: Path, frames: int) -> list[Batch]:
    """The middle triplet of `frames` held-out sequences, evenly spread over the manifest."""
    entries = [entry for entry in read_manifest(data_folder) if entry.split == "val"]
    chosen = entries[:: max(1, len(entries) // frames)][:frames]
    batches = []
    for entry in chosen:
        lr, hr = read_sequence(data_folder, entry)
        t = lr.shape[0] // 2
        triplet = lr[t - 1 : t + 2].float().unsqueeze(1) / 255
        batches.append(Batch(triplet[0], triplet[1], triplet[2], hr[t : t + 1].float() / 255))
    return batches


def mean_psnr_y(network: nn.Module, validation: list[Batch]) -> float | None:
    """Mean PSNR-Y in dB over the validation frames, None when there are none."""
    if not validation:
        return None
    with torch.inference_mode():
        values = [psnr_y(network(batch.center_lr).clamp(0, 1), batch.target, border_px=4).item() for batch in validation]
    return sum(values) / len(values)


def report(run_folder: Path, progress: Progress, rate: float) -> None:
    """Append one line to metrics.jsonl."""
    line = {"step": progress.step, "loss": progress.loss, "learning_rate": rate}
    line["patches_per_second"] = round(progress.patches_per_second, 2)
    if progress.psnr_y_db is not None:
        line["psnr_y_db"] = progress.psnr_y_db
    with (run_folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def save_atomically(state: dict[str, object], path: Path) -> None:
    """Write beside, then rename, so that a run killed while saving keeps its last checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def write_config(config: TrainConfig, run_folder: Path) -> None:
    """Write what is needed to repeat the run."""
    commit = subprocess.run(  # noqa: S607 git comes from the PATH
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    description = {"config": asdict(config), "commit": commit or None, "torch": torch.__version__}
    (run_folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
