"""`vsr train`: first HAT alone, then the U-Net behind the frozen HAT. The loop stands in plain sight in `train`.

What decides a run: `model/training/config.py`. The runs we know by name: `model/training/presets.py`. What a run leaves
behind: `model/training/run_folder.py`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoints import CheckpointInfo, read_passport, save_checkpoint, sha256_of
from model.data import CLEAN, Dataset
from model.sampling import TripletSampler
from model.training import losses
from model.training.config import TrainConfig, TrainingError
from model.training.enlarged import EnlargedCache
from model.training.learner import Learner
from model.training.presets import TRAIN_PRESETS
from model.training.ranks import Ranks, joined
from model.training.reports import Progress, Reports
from model.training.run_folder import RunFolder, commit
from model.training.stage import Stage, build, recompute_in_backward
from model.training.step_clock import StepClock
from model.training.stop_signals import StopSignals
from model.unet import EncodedFrames

__all__ = ["TRAIN_PRESETS", "Progress", "TrainConfig", "TrainingError", "TrainingStoppedError", "train"]

# The range that SSIM is told the pictures have.
SSIM_DATA_RANGES = {"true": 1.0, "published": 255.0}


class TrainingStoppedError(Exception):
    """The run was asked to stop, has saved where it stands, and can go on."""


def train(
    config: TrainConfig,
    on_progress: Callable[[Progress], None] | None = None,
    on_caching: Callable[[int, int], None] | None = None,
) -> CheckpointInfo:
    """Run, or go on with, the training that `config` describes; returns the passport of the finished weights.

    Interrupted at any point and called again, it goes on from its last checkpoint as if nothing had happened. Started
    by torchrun, its processes train as one, and the first of them alone writes and reports. `on_caching` hears of
    frames that HAT has enlarged, and of all that it is to enlarge.

    Raises TrainingError when the run folder belongs to another run or is further than asked for, the loss is not a
    number or a file cannot be written, and TrainingStoppedError after SIGTERM or Ctrl-C; checkpoints stay intact.
    DatasetError and CheckpointError where data or weights are missing or damaged.
    """
    with RunFolder(Path(config.run_folder)) as run, joined(config.device) as ranks:
        dataset = Dataset.open(config.data_folder)
        config = settled(config, dataset, ranks)
        torch.manual_seed(config.seed)
        stage = build(config).to(ranks.device)
        run.refuse_another(config, material(stage, dataset))
        optimizer = torch.optim.Adam(stage.trained.parameters(), lr=config.learning_rate, betas=config.betas)
        cache = cache_of(config, stage)
        sampler = TripletSampler(
            dataset,
            config.patch_px,
            config.seed,
            conditions=config.conditions,
            enlarged=cache,
            alone_share=config.alone_share,
            foreign_share=config.foreign_share,
            rank=ranks.rank,
            ranks=ranks.count,
        )
        learner = Learner(config, stage, optimizer, sampler)
        learner.go_on(run)
        if learner.step > config.total_steps:
            raise TrainingError(
                f"{run.path} is at step {learner.step} already: ask for that many or more, not {config.total_steps}"
            )
        if learner.step == config.total_steps and run.weights.is_file():
            finished = read_passport(run.weights)
            # Of a run that was prolonged and killed at its end, the weights there are those of the shorter one.
            if finished.notes.get("steps") == str(config.total_steps):
                return finished
        if ranks.is_first:
            run.begin(config, material(stage, dataset), ranks, learner.step)
        if cache is not None:
            own_share = sampler.entries[ranks.rank :: ranks.count]
            heard = on_caching if ranks.is_first else None
            cache.fill(dataset, own_share, list(config.conditions), stage.enlarge, ranks.device, heard)
            ranks.wait()
        reports = Reports(config, run, dataset, stage, learner.step, ranks.device) if ranks.is_first else None

        network = ranks.parallel(stage)
        if config.gradient_checkpointing:
            recompute_in_backward(stage.trained)
        if config.compile:
            network.compile()
        network.train()
        clock = StepClock(ranks.device)
        with StopSignals() as stop:
            clock.mark("data_wait")
            next_batch = sampler.batch(config.batch_size)
            while learner.step < config.total_steps:
                batch = next_batch.to(ranks.device)
                clock.mark("forward")
                set_learning_rate(optimizer, learning_rate(config, learner.step))
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.bfloat16):
                    output, encoded = network(batch)
                loss = loss_of(config, output.float(), batch.target, encoded)
                clock.mark("backward")
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                if config.gradient_clip_norm is not None:
                    nn.utils.clip_grad_norm_(stage.trained.parameters(), config.gradient_clip_norm)
                optimizer.step()
                learner.move_average()

                # A GPU still computes this step while the next batch is read. A resumed run reads that batch again.
                clock.mark("data_wait")
                learner.next_batch_from = sampler.generator.get_state()
                next_batch = sampler.batch(config.batch_size)
                step_loss, stops = ranks.agree(loss, stop.asked)
                if not math.isfinite(step_loss):
                    raise TrainingError(f"the loss is {step_loss} at step {learner.step + 1}; {run.what_is_kept()}")
                learner.count(step_loss)

                validates = learner.step % config.checkpoint_every == 0 or learner.step == config.total_steps
                if (validates or stops) and not learner.is_finite():
                    raise TrainingError(
                        f"the weights are no longer numbers after step {learner.step}; {run.what_is_kept()}"
                    )
                if reports is not None:
                    progress = None
                    if validates or learner.step % config.report_every == 0:
                        rate = learning_rate(config, learner.step)
                        progress = reports.report(learner, clock, rate, validates)
                    if validates or stops:
                        run.save_state(learner.state())
                    if progress is not None and on_progress is not None:
                        on_progress(progress)
                if stops:
                    raise TrainingStoppedError(f"stopped at step {learner.step}: the same command goes on from there")
        if ranks.is_first:
            ship(config, learner.finished, run)
        ranks.wait()
        return read_passport(run.weights)


def settled(config: TrainConfig, dataset: Dataset, ranks: Ranks) -> TrainConfig:
    """The configuration with everything in numbers that it left to the data set."""
    if config.batch_size % ranks.count:
        raise TrainingError(f"a batch of {config.batch_size} cannot be shared by {ranks.count} processes")
    train_split = dataset.split("train")
    conditions = config.conditions or mixed(dataset.conditions)
    if missing := [name for name in conditions if name not in dataset.conditions]:
        raise TrainingError(
            f"{dataset.location} has no condition {' or '.join(map(repr, missing))}, only "
            f"{', '.join(dataset.conditions)}; `vsr prepare` makes conditions"
        )
    steps = config.steps
    if steps is None and config.epochs is not None:
        triplets = sum(max(0, entry.frames - 2) for entry in train_split)
        steps = max(1, math.ceil(config.epochs * triplets / config.batch_size))
    return replace(config, conditions=dict(conditions), steps=steps)


def mixed(conditions: Sequence[str]) -> dict[str, float]:
    """Clean half the time, the others in equal shares of the rest."""
    others = [name for name in conditions if name != CLEAN]
    return {CLEAN: 0.5, **{name: 0.5 / len(others) for name in others}} if others else {CLEAN: 1.0}


def material(stage: Stage, dataset: Dataset) -> dict[str, str | None]:
    """By sha256, what a run is made from: a folder or a file of the same name may hold something else tomorrow."""
    entries = sorted((entry.split, entry.sha256) for entry in dataset.entries)
    return {
        "data_sha256": hashlib.sha256(json.dumps(entries).encode()).hexdigest(),
        "hat_sha256": None if stage.unet is None else sha256_of_frozen(stage),
    }


def sha256_of_frozen(stage: Stage) -> str:
    """Of the HAT that does not learn."""
    return sha256_of({key: tensor.cpu() for key, tensor in stage.hat.state_dict().items()})


def cache_of(config: TrainConfig, stage: Stage) -> EnlargedCache | None:
    """Where the frozen HAT's outputs are kept, if they are."""
    if not config.cache_enlarged or stage.unet is None:
        return None
    folder = Path(config.cache_folder or Path(config.run_folder) / "enlarged")
    return EnlargedCache(folder, sha256_of_frozen(stage), config.cached_centers)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: constant, or a hundred steps of warm-up and half a cosine down to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    warm_up = min(1.0, (step + 1) / 100)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.total_steps)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Torch keeps the rate per group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def loss_of(config: TrainConfig, output: Tensor, target: Tensor, encoded: EncodedFrames | None) -> Tensor:
    """The configured loss. The encoder loss needs what a U-Net's encoders saw."""
    if config.loss == "mse":
        return losses.mse(output, target)
    if config.loss == "mae":
        return losses.mae(output, target)
    if config.loss == "mae_ssim":
        return losses.mae_ssim(output, target, config.loss_alpha, SSIM_DATA_RANGES[config.ssim_data_range])
    assert encoded is not None  # TrainConfig refuses this loss for HAT.
    return losses.encoder_loss(output, target, encoded, config.loss_alpha)


def ship(config: TrainConfig, finished: Stage, run: RunFolder) -> None:
    """Write the finished networks, whose passport says how they came about."""
    notes = {
        "stage": config.stage,
        "steps": str(config.total_steps),
        "seed": str(config.seed),
        "commit": commit(),
        "loss": config.loss,
        "conditions": json.dumps(config.conditions),
        "neighbours": config.neighbours,
    }
    with run.writing():
        save_checkpoint(run.weights, finished.hat, finished.unet, notes)
