"""What learns in a training run and where it stands."""

import copy

import torch
from torch import nn

from model.sampling import TripletSampler
from model.training.config import TrainConfig
from model.training.run_folder import RunFolder
from model.training.stage import Stage


class Learner:
    """All that a resumed run needs to go on as if it had never stopped."""

    def __init__(
        self, config: TrainConfig, stage: Stage, optimizer: torch.optim.Optimizer, sampler: TripletSampler
    ) -> None:
        self.trained = stage.trained
        self.optimizer = optimizer
        self.sampler = sampler
        self.step = 0
        self.next_batch_from = sampler.generator.get_state()
        """The sampler's random state before it drew the batch of the next step."""
        self._ema_decay = config.ema_decay
        self._average = None if config.ema_decay is None else copy.deepcopy(stage.trained).requires_grad_(False)
        self.finished = stage if self._average is None else stage.with_trained(self._average).eval()
        """What is validated and shipped: with the averaged weights, if there are any."""
        self._losses_sum, self._losses = 0.0, 0

    def move_average(self) -> None:
        """Let the averaged weights follow the step just made."""
        if self._average is not None and self._ema_decay is not None:
            move_average(self._average, self.trained, self._ema_decay, self.step)

    def count(self, loss: float) -> None:
        """One more step is done."""
        self.step += 1
        self._losses_sum, self._losses = self._losses_sum + loss, self._losses + 1

    def is_finite(self) -> bool:
        """Whether all weights are numbers: gradients that are none show in the loss a step later only."""
        return all(bool(torch.isfinite(weights).all()) for weights in self.trained.parameters())

    def take_loss(self) -> float:
        """The mean loss of the steps since the last call."""
        mean = self._losses_sum / self._losses
        self._losses_sum, self._losses = 0.0, 0
        return mean

    def state(self) -> dict[str, object]:
        """For the checkpoint."""
        return {
            "network": self.trained.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.next_batch_from,
            "step": self.step,
            "unreported_losses": (self._losses_sum, self._losses),
        }

    def go_on(self, run: RunFolder) -> None:
        """Put everything back where the run's checkpoint left it, on whatever device it is now; nothing in a new run.

        Raises TrainingError for a damaged checkpoint.
        """
        state = run.load_state()
        if state is None:
            return
        try:
            self.trained.load_state_dict(state["network"])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sampler.generator.set_state(state["sampler"])
            self.next_batch_from = state["sampler"]
            self.step = state["step"]
            self._losses_sum, self._losses = state["unreported_losses"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise run.damaged(error) from error


def move_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the running average of the weights by one step towards the network's.

    The first steps count more (as in TensorFlow's and timm's averages), or the random start would stay in it for long.
    Whole numbers, as in the counters of batch normalisation, are copied.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, weight)
            else:
                kept.copy_(new)
