"""What a training run tells while it goes on: speed, loss, and PSNR-Y on held-out frames beside a baseline's."""

import time
from dataclasses import dataclass, field

import torch

from model.data import Dataset
from model.training.config import TrainConfig
from model.training.learner import Learner
from model.training.run_folder import RunFolder
from model.training.stage import Stage
from model.training.step_clock import StepClock
from model.training.validation import baseline_psnr_y, validate, validation_frames


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows. `loss` and the speeds are those since the last report.

    `psnr_y_db` is the mean over all conditions, None between validations; `data_wait_share` is the share of the steps'
    time in which the device had nothing to do but wait for data.
    """

    step: int
    steps: int
    loss: float
    patches_per_second: float
    psnr_y_db: float | None
    seconds_left: float
    data_wait_share: float
    psnr_y_db_by_condition: dict[str, float] = field(default_factory=dict)


class Reports:
    """Made by the process that writes, before its first step."""

    def __init__(
        self, config: TrainConfig, run: RunFolder, dataset: Dataset, stage: Stage, step: int, device: torch.device
    ) -> None:
        self._config, self._run = config, run
        self._held_out = validation_frames(dataset, config.validation_frames, stage, device)
        self._baseline_name = "bicubic" if stage.unet is None else "hat"
        self._baseline = baseline_psnr_y(self._held_out)
        self._began_step, self._began_at = step, time.monotonic()
        self._reported_step = step

    def report(self, learner: Learner, clock: StepClock, learning_rate: float, validates: bool) -> Progress:
        """Record the steps since the last report, and validate if asked to; the clock does not count that."""
        config, step = self._config, learner.step
        spent = clock.spent()
        clock.mark(None)
        patches = (step - self._reported_step) * config.batch_size
        self._reported_step = step
        values = {
            "loss": learner.take_loss(),
            "learning_rate": learning_rate,
            "patches_per_second": round(patches / spent.seconds, 2),
            **{f"{phase}_share": round(share, 4) for phase, share in spent.shares.items()},
        }
        scores: dict[str, float] = {}
        if validates and self._held_out:
            with self._run.writing():
                scores = validate(learner.finished, self._held_out, self._run.samples / f"{step:08d}.png")
            values["psnr_y_db"] = sum(scores.values()) / len(scores)
        by_method = {"ours": scores, self._baseline_name: self._baseline} if scores else {}
        self._run.record(step, values, by_method)
        clock.mark("data_wait")
        seconds_per_step = (time.monotonic() - self._began_at) / (step - self._began_step)
        return Progress(
            step=step,
            steps=config.total_steps,
            loss=values["loss"],
            patches_per_second=values["patches_per_second"],
            psnr_y_db=values.get("psnr_y_db"),
            seconds_left=seconds_per_step * (config.total_steps - step),
            data_wait_share=values["data_wait_share"],
            psnr_y_db_by_condition=scores,
        )
