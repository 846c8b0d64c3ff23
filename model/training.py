"""`vsr train`: first HAT alone, then the U-Net behind the frozen HAT. The loop stands in plain sight in `train`.

A run folder holds all that a run left behind:

    config.json         the TrainConfig, the commit and the torch version metrics.jsonl       one JSON object per
    report: step, loss, learning_rate, patches_per_second; psnr_y_db when validated checkpoint.pt       network,
    optimiser, random state and step, replaced atomically; a run resumes from it weights.safetensors the finished
    networks
"""

import json
import math
import pickle
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model import losses
from model.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from model.data import CLEAN, Dataset
from model.hat import HAT, HATConfig, start_as_bilinear
from model.metrics import psnr_y
from model.presets import PRESETS
from model.sampling import Batch, TripletSampler
from model.unet import ConditionalUNet, UNetConfig
from model.upscaler import TwoStepUpscaler, resolve_device

# Validation leaves out this many high-resolution pixels at each edge, where there is no context to judge by.
VALIDATION_BORDER_PX = 4


class TrainingError(Exception):
    """A run that cannot start or must not go on."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run.

    Stage "hat" trains `hat`; stage "unet" trains `unet` behind the HAT of the file `hat_weights`. `patch_px` is the
    side of a low-resolution patch. Only the last three fields may change when a run is resumed.
    """

    stage: Literal["hat", "unet"]
    data_folder: str
    run_folder: str
    hat: HATConfig | None
    unet: UNetConfig | None
    hat_weights: str | None
    batch_size: int
    patch_px: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    loss: Literal["mse", "mae", "mae_ssim"]
    steps: int
    alpha: float = 0.8
    betas: tuple[float, float] = (0.9, 0.999)
    bfloat16: bool = True
    seed: int = 0
    validation_frames: int = 36
    device: str = "auto"
    report_every: int = 50
    checkpoint_every: int = 250


# What may differ between a run and its continuation.
RESUMABLE_FIELDS = {"steps", "device", "report_every", "checkpoint_every", "data_folder", "run_folder", "hat_weights"}


def compact_hat(data_folder: Path, run_folder: Path, hat_weights: Path | None = None) -> TrainConfig:
    """First stage of the shipped preset, for two CPU cores and less than an hour. `hat_weights` has no use here."""
    return TrainConfig(
        stage="hat",
        data_folder=str(data_folder),
        run_folder=str(run_folder),
        hat=PRESETS["compact"].hat,
        unet=None,
        hat_weights=None,
        batch_size=16,
        patch_px=32,
        learning_rate=1e-3,
        schedule="cosine",
        loss="mae",
        steps=9000,
    )


def compact_unet(data_folder: Path, run_folder: Path, hat_weights: Path | None = None) -> TrainConfig:
    """Second stage of the shipped preset. Most of a step is the frozen HAT, hence the smaller batch."""
    return TrainConfig(
        stage="unet",
        data_folder=str(data_folder),
        run_folder=str(run_folder),
        hat=None,
        unet=PRESETS["compact"].unet,
        hat_weights=str(hat_weights) if hat_weights else None,
        batch_size=8,
        patch_px=32,
        learning_rate=5e-4,
        schedule="cosine",
        loss="mae",
        steps=3000,
    )


def paper_unet(data_folder: Path, run_folder: Path, hat_weights: Path | None = None) -> TrainConfig:
    """The paper's second stage: 10 epochs of the 23 triplets of 26,454 training videos. For a GPU."""
    return TrainConfig(
        stage="unet",
        data_folder=str(data_folder),
        run_folder=str(run_folder),
        hat=None,
        unet=PRESETS["paper"].unet,
        hat_weights=str(hat_weights) if hat_weights else None,
        batch_size=64,
        patch_px=64,
        learning_rate=1e-4,
        schedule="constant",
        loss="mae_ssim",
        steps=10 * 23 * 26_454 // 64,
    )


TRAIN_PRESETS: dict[str, Callable[[Path, Path, Path | None], TrainConfig]] = {
    "compact-hat": compact_hat,
    "compact-unet": compact_unet,
    "paper-unet": paper_unet,
}


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows. `loss` is the mean since the last report; `psnr_y_db` is None between validations."""

    step: int
    steps: int
    loss: float
    patches_per_second: float
    psnr_y_db: float | None


def train(config: TrainConfig, on_progress: Callable[[Progress], None] | None = None) -> CheckpointInfo:
    """Run, or go on with, the training that `config` describes; returns the passport of the finished weights.

    Interrupted at any point and called again, it goes on from its last checkpoint as if nothing had happened. Raises
    TrainingError when the run folder belongs to another run, or when the loss is not a number; checkpoints stay intact.
    """
    run_folder, dataset = Path(config.run_folder), Dataset.open(config.data_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    refuse_another_run(config, run_folder)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    model = build(config).to(device)
    optimizer = torch.optim.Adam(model.trained.parameters(), lr=config.learning_rate, betas=config.betas)
    sampler = TripletSampler(dataset, config.patch_px, config.seed)
    validation = validation_set(dataset, config.validation_frames, device)
    checkpoint = run_folder / "checkpoint.pt"
    step = resume(checkpoint, model.trained, optimizer, sampler)
    forget_metrics_after(run_folder, step)

    model.train()
    reported_at, reported_step, loss_sum = time.monotonic(), step, 0.0
    while step < config.steps:
        set_learning_rate(optimizer, learning_rate(config, step))
        batch = sampler.batch(config.batch_size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            output = model(batch)
        loss = loss_of(config, output.float(), batch.target)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} at step {step + 1}; the last checkpoint is intact: {checkpoint}"
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        step += 1
        loss_sum += loss.item()

        psnr_y_db = None
        if step % config.checkpoint_every == 0 or step == config.steps:
            psnr_y_db = mean_psnr_y(model, validation)
            save_state(checkpoint, model.trained, optimizer, sampler, step)
        if step % config.report_every == 0 or psnr_y_db is not None:
            seconds, steps = time.monotonic() - reported_at, step - reported_step
            progress = Progress(step, config.steps, loss_sum / steps, steps * config.batch_size / seconds, psnr_y_db)
            append_metrics(run_folder, progress, learning_rate(config, step))
            if on_progress is not None:
                on_progress(progress)
            reported_at, reported_step, loss_sum = time.monotonic(), step, 0.0

    notes = {"stage": config.stage, "steps": str(step), "seed": str(config.seed), "commit": commit() or "unknown"}
    return save_checkpoint(run_folder / "weights.safetensors", model.hat, model.unet, notes)


class Stage(nn.Module):
    """The networks of a run: what a batch goes through, and which part of it learns."""

    def __init__(self, hat: HAT, unet: ConditionalUNet | None) -> None:
        super().__init__()
        self.hat = hat
        self.unet = unet
        self.upscaler = None if unet is None else TwoStepUpscaler(hat, unet)
        self.trained: nn.Module = hat if unet is None else unet

    def forward(self, batch: Batch) -> Tensor:
        """The enlarged centre frames, not clamped."""
        if self.upscaler is None:
            enlarged: Tensor = self.hat(batch.center_lr)
            return enlarged
        # `enlarge` leaves the autocast of training: the U-Net must learn from what it will be served.
        center_sr = self.upscaler.enlarge(batch.center_lr)
        refined: Tensor = self.upscaler.unet(center_sr, batch.previous_lr, batch.next_lr)
        return refined


def build(config: TrainConfig) -> Stage:
    """Fresh networks, or for the second stage a fresh U-Net behind a trained HAT."""
    if config.stage == "hat":
        if config.hat is None:
            raise TrainingError("the stage 'hat' needs the configuration of a HAT")
        hat = HAT(config.hat)
        if config.hat.upscale == 2:
            start_as_bilinear(hat)
        return Stage(hat, None)
    if config.unet is None or config.hat_weights is None:
        raise TrainingError("the stage 'unet' needs the configuration of a U-Net and the weights of a trained HAT")
    _, hat, _ = load_checkpoint(Path(config.hat_weights))
    return Stage(hat, ConditionalUNet(config.unet))


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: constant, or a hundred steps of warm-up and half a cosine down to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    warm_up = min(1.0, (step + 1) / 100)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Torch keeps the rate per group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def loss_of(config: TrainConfig, output: Tensor, target: Tensor) -> Tensor:
    """The configured loss."""
    if config.loss == "mse":
        return losses.mse(output, target)
    if config.loss == "mae":
        return losses.mae(output, target)
    return losses.mae_ssim(output, target, config.alpha)


def validation_set(dataset: Dataset, frames: int, device: torch.device) -> list[Batch]:
    """The middle triplet of about `frames` held-out sequences, evenly spread over the manifest."""
    entries = [entry for entry in dataset.entries if entry.split == "val"]
    chosen = entries[:: max(1, len(entries) // frames)][:frames] if frames else []
    batches = []
    for entry in chosen:
        tensors = dataset.read(entry)
        lr, hr = tensors[CLEAN], tensors["hr"]
        middle = lr.shape[0] // 2
        triplet = lr[middle - 1 : middle + 2].float().unsqueeze(1) / 255
        batches.append(Batch(triplet[0], triplet[1], triplet[2], hr[middle : middle + 1].float() / 255).to(device))
    return batches


def mean_psnr_y(model: Stage, validation: list[Batch]) -> float | None:
    """Mean PSNR-Y in dB over the validation frames in float32, None without any. Leaves the model in training."""
    if not validation:
        return None
    model.eval()
    with torch.inference_mode():
        values = [
            psnr_y(model(batch).clamp(0, 1), batch.target, border_px=VALIDATION_BORDER_PX).item()
            for batch in validation
        ]
    model.train()
    return sum(values) / len(values)


def append_metrics(run_folder: Path, progress: Progress, rate: float) -> None:
    """One line to metrics.jsonl."""
    line = {
        "step": progress.step,
        "loss": progress.loss,
        "learning_rate": rate,
        "patches_per_second": round(progress.patches_per_second, 2),
    }
    if progress.psnr_y_db is not None:
        line["psnr_y_db"] = progress.psnr_y_db
    with (run_folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, sampler: TripletSampler, step: int
) -> None:
    """Write beside, then rename, so that a run killed while saving keeps its last checkpoint."""
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sampler": sampler.generator.get_state(),
        "step": step,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, sampler: TripletSampler) -> int:
    """Put everything back where `save_state` left it; returns the step, 0 where there is nothing to resume.

    The device may be another than the one it was saved from. Raises TrainingError for a damaged checkpoint.
    """
    if not path.is_file():
        return 0
    try:
        # To the CPU first: where the state belongs is for the network, and the sampler's is never on a GPU.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.generator.set_state(state["sampler"])
        return int(state["step"])
    except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"{path} is damaged ({reason}): remove it to start the run anew") from error


def forget_metrics_after(run_folder: Path, step: int) -> None:
    """Take out of metrics.jsonl what a killed run did past its last checkpoint, as it is done again now."""
    path = run_folder / "metrics.jsonl"
    if not path.is_file():
        return
    # The last line may have been cut off by the kill.
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
    partial.replace(path)


def refuse_another_run(config: TrainConfig, run_folder: Path) -> None:
    """Write config.json, or compare with the one that is there."""
    path = run_folder / "config.json"
    # Through JSON and back, so that tuples compare equal to lists.
    fields = json.loads(json.dumps(asdict(config)))
    if path.is_file():
        before = json.loads(path.read_text())["config"]
        changed = [
            name for name in fields if name not in RESUMABLE_FIELDS and name in before and fields[name] != before[name]
        ]
        if changed:
            detail = ", ".join(f"{name} was {before[name]}, now {fields[name]}" for name in changed)
            raise TrainingError(f"{run_folder} holds another run: {detail}")
    description = {"config": fields, "commit": commit(), "torch": torch.__version__}
    path.write_text(json.dumps(description, indent=1) + "\n")


def commit() -> str | None:
    """The commit this code is at, None outside a checkout."""
    answer = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],  # noqa: S607 git is where PATH says
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or None
