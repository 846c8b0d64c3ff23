"""The networks of a training run: what a batch goes through, and which part of it learns."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.checkpoints import load_checkpoint
from model.hat import HAT, start_as_bilinear
from model.sampling import Batch
from model.training.config import TrainConfig, TrainingError
from model.unet import ConditionalUNet, EncodedFrames
from model.upscaler import TwoStepUpscaler


class Stage(nn.Module):
    """HAT alone, which then learns, or a U-Net that learns behind a frozen HAT.

    `neighbours` "current" replaces both neighbours by the current frame: the control.
    """

    def __init__(self, hat: HAT, unet: ConditionalUNet | None, neighbours: Literal["true", "current"] = "true") -> None:
        super().__init__()
        self.hat = hat
        self.unet = unet
        self.neighbours = neighbours
        self.upscaler = None if unet is None else TwoStepUpscaler(hat, unet)

    @property
    def trained(self) -> nn.Module:
        """The network that learns."""
        return self.hat if self.unet is None else self.unet

    def train(self, mode: bool = True) -> "Stage":
        """A frozen HAT stays in evaluation mode."""
        super().train(mode)
        if self.unet is not None:
            self.hat.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, EncodedFrames | None]:
        """The enlarged centre frames, not clamped, and what the U-Net's encoders saw in the three frames."""
        if self.unet is None:
            return self.hat(batch.center_lr), None
        if self.neighbours == "current":
            batch = replace(batch, previous_lr=batch.center_lr, next_lr=batch.center_lr)
        center_sr = self.enlarge(batch.center_lr) if batch.center_sr is None else batch.center_sr
        encoded = self.unet.encode(center_sr, batch.previous_lr, batch.next_lr)
        return self.unet.decode(encoded, center_sr), encoded

    def enlarge(self, lr: Tensor) -> Tensor:
        """What the frozen HAT makes of (B, 3, H, W), as it is served: outside the autocast of training."""
        assert self.upscaler is not None
        return self.upscaler.enlarge(lr)

    def with_trained(self, network: nn.Module) -> "Stage":
        """The same run with other weights of what learns."""
        if isinstance(network, ConditionalUNet):
            return Stage(self.hat, network, self.neighbours)
        assert isinstance(network, HAT)
        return Stage(network, None)


def build(config: TrainConfig) -> Stage:
    """Fresh networks, or for the second stage a fresh U-Net behind a trained HAT."""
    if config.stage == "hat":
        if config.hat is None:
            raise TrainingError("the stage 'hat' needs the configuration of a HAT")
        hat = HAT(config.hat)
        if config.start_weights is not None:
            take_over(hat, load_checkpoint(Path(config.start_weights))[1], config.start_weights)
        elif config.hat.upscale == 2:
            start_as_bilinear(hat)
        return Stage(hat, None)
    if config.unet is None or config.hat_weights is None:
        raise TrainingError(
            "a U-Net is trained behind a HAT: name the weights of a trained one (--hat), "
            "and the configuration of the U-Net"
        )
    info, hat, _ = load_checkpoint(Path(config.hat_weights))
    if config.hat is not None and info.hat != config.hat:
        wanted, found = config.hat.to_json_fields(), info.hat.to_json_fields()
        differing = [f"{name} {found[name]}, expected {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        raise TrainingError(f"{config.hat_weights} is not the HAT of this preset: {'; '.join(differing)}")
    unet = ConditionalUNet(config.unet)
    if config.start_weights is not None:
        take_over(unet, load_checkpoint(Path(config.start_weights))[2], config.start_weights)
    return Stage(hat, unet, config.neighbours)


def take_over(network: HAT | ConditionalUNet, trained: HAT | ConditionalUNet | None, file: str) -> None:
    """Start from weights trained before, which must be of the same network."""
    if trained is None or trained.config != network.config:
        found = None if trained is None else trained.config
        raise TrainingError(f"{file} cannot be the start: it holds {found}, expected {network.config}")
    network.load_state_dict(trained.state_dict())


def recompute_in_backward(network: nn.Module) -> None:
    """Gradient checkpointing: keep only what enters HAT's groups and the U-Net's blocks, and compute the rest twice.

    These are the outermost members of the networks' module lists. Weights and state dict stay as they are.
    """
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                block.forward = partial(
                    checkpoint,
                    block.forward,
                    use_reentrant=False,
                    context_fn=partial(_contexts, block),
                )
        else:
            recompute_in_backward(child)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _CountedOnce(block)


class _CountedOnce:
    """While a block is computed again, batch normalisation must not add the same batch to its running mean again."""

    def __init__(self, block: nn.Module) -> None:
        self._layers = [layer for layer in block.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        self._before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for layer in self._layers:
            counted = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
            self._before.append((layer.momentum, counted))
            layer.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for layer, (momentum, counted) in zip(self._layers, self._before, strict=True):
            layer.momentum = momentum
            if counted is not None and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(counted)
