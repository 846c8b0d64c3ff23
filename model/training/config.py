"""What decides a training run."""

from dataclasses import dataclass, field
from typing import Literal

from model.hat import HATConfig
from model.training.losses import ENCODER_WEIGHT
from model.unet import UNetConfig

# The best of Table II and of Table III.
DEFAULT_ALPHA = {"mae_ssim": 0.8, "encoder": 0.02}


class TrainingError(Exception):
    """A run that cannot start or must not go on; the message is one line that says why."""


class CannotWriteError(TrainingError):
    """The disk is full, or the folder may not be written."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run.

    Stage "hat" trains `hat`; stage "unet" trains `unet` behind the HAT of the file `hat_weights`, which must be of the
    configuration `hat` where one is given. `patch_px` is the side of a low-resolution patch, `batch_size` that of all
    processes together. A run is as long as `steps` says, or else `epochs`: so many times the triplets of the training
    split, drawn at random.

    `conditions` are the shares in which the data set's conditions are drawn; none named means clean ones half the time
    and the others of the data set in equal shares. `neighbours` "current" trains the control that sees the current
    frame in place of both neighbours; `alone_share` of the patches do so in any case, as frames at the ends of a shot
    have no other, and `foreign_share` see those of another sequence, as at a cut that was missed. `cache_enlarged`
    computes HAT's outputs once, of `cached_centers` frames of each sequence (None: of all), into `cache_folder` (None:
    into the run's folder).
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
    loss: Literal["mse", "mae", "mae_ssim", "encoder"]
    start_weights: str | None = None
    """A file with the network that learns, to go on from; None: drawn at random."""
    steps: int | None = None
    epochs: float | None = None
    alpha: float | None = None
    """Of "mae_ssim" (0 to 1) and "encoder" (0 to 0.1). None: the best of the paper's tables."""
    ssim_data_range: Literal["true", "published"] = "true"
    """"published": SSIM is told a range of 255, as in the paper's code, though the pictures have a range of 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip_norm: float | None = None
    ema_decay: float | None = None
    """With one, the running average of the weights is what is validated and shipped."""
    conditions: dict[str, float] = field(default_factory=lambda: {"clean": 1.0})
    neighbours: Literal["true", "current"] = "true"
    alone_share: float = 0.0
    foreign_share: float = 0.0
    cache_enlarged: bool = False
    cached_centers: int | None = None
    cache_folder: str | None = None
    bfloat16: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    validation_frames: int = 36
    device: str = "auto"
    report_every: int = 20
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.loss == "encoder" and self.stage == "hat":
            raise TrainingError("the encoder loss compares the U-Net's encoders: the stage 'hat' has none")
        if self.loss == "encoder" and self.unet is not None and self.unet.fusion != "bottleneck":
            raise TrainingError(
                f"the encoder loss is for the paper's fusion: in {self.unet.fusion!r} no encoder sees a neighbour"
            )
        if self.neighbours == "current" and self.stage == "hat":
            raise TrainingError("a HAT sees one frame alone: only a U-Net can be trained without neighbours")
        if self.alpha is not None and self.loss not in DEFAULT_ALPHA:
            raise TrainingError(f"the loss {self.loss!r} has no alpha: only {' and '.join(DEFAULT_ALPHA)} have one")
        limit = ENCODER_WEIGHT if self.loss == "encoder" else 1.0
        if self.alpha is not None and not 0 <= self.alpha <= limit:
            raise TrainingError(f"alpha is {self.alpha}: the loss {self.loss!r} takes 0 to {limit}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise TrainingError(f"ema_decay is {self.ema_decay}: expected 0 or more, and less than 1")
        for name in ("batch_size", "patch_px", "report_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}: expected at least 1")

    @property
    def total_steps(self) -> int:
        """`steps`, once it is known."""
        if self.steps is None:
            raise TrainingError("a run needs its number of steps, or of epochs")
        return self.steps

    @property
    def loss_alpha(self) -> float:
        """`alpha`, or the paper's for this loss."""
        return DEFAULT_ALPHA.get(self.loss, 1.0) if self.alpha is None else self.alpha
