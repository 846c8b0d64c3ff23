"""The conditional U-Net of the second step: the upscaled frame, refined with what its two neighbours show.

Legend: B batch, H W low-resolution height and width (the centre is 2H x 2W), L levels, c width. Geometry of Masuda et
al. (method: Phi_L, Phi_R, Psi; fusion is equation 5, decoding equation 6); blocks of Ronneberger et al. (MICCAI 2015).
With L = 5 and c = 64:

    previous_lr  H x W     -> Phi_L         -> H/16 x W/16 x 1024 ┐
    center_sr   2H x 2W    -> Psi's encoder -> H/16 x W/16 x 1024 ┼─ sum -> Psi's decoder -> 2H x 2W x 3
    next_lr      H x W     -> Phi_R         -> H/16 x W/16 x 1024 ┘

Psi goes down once more than Phi because its input is twice as large.

In the aligned form, which is ours, there is no Phi, and the sum has one term. Each neighbour is aligned with the centre
instead, and what it says against it enters at the top, where the sub-pixel detail is:

    center_sr, previous_lr -> back projection -> 2H x 2W ┐
    center_sr              ------------------    2H x 2W ┼─ channels -> Psi -> 2H x 2W x 3
    center_sr, next_lr     -> back projection -> 2H x 2W ┘
"""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.back_projection import back_projected_residuals
from model.padding import pad_to_multiple

SCALE = 2
# Brings residuals, a few hundredths of the range, to the size of the frames beside them.
RESIDUAL_GAIN = 8.0


@dataclass(frozen=True)
class UNetConfig:
    """The defaults are the paper's network.

    `width` is the number of channels at the top; it doubles with each level but the last. `levels` is how often Psi
    halves the image. `pixel_unshuffle` folds that many pixels squared into the channels of all three inputs (and
    unfolds the output), so that a small network works on a coarser grid. With `output` "direct" the network draws the
    frame itself, as in the paper; with "residual" it draws what is added to the upscaled centre, starting at zero, so
    untrained it changes nothing. `fusion` says how the neighbours enter: "bottleneck" as in the paper, "aligned" as
    `model/back_projection.py` tells.
    """

    width: int = 64
    levels: int = 5
    pixel_unshuffle: int = 1
    output: Literal["direct", "residual"] = "direct"
    batch_norm: bool = True
    fusion: Literal["bottleneck", "aligned"] = "bottleneck"

    def __post_init__(self) -> None:
        if self.width < 1 or self.levels < 2 or self.pixel_unshuffle < 1:
            raise ValueError(
                f"width {self.width}, levels {self.levels} and pixel_unshuffle {self.pixel_unshuffle}: "
                "at least 1, 2 and 1 are needed"
            )
        if self.output not in ("direct", "residual"):
            raise ValueError(f"output must be 'direct' or 'residual', not {self.output!r}")
        if self.fusion not in ("bottleneck", "aligned"):
            raise ValueError(f"fusion must be 'bottleneck' or 'aligned', not {self.fusion!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of Psi from the top down, `levels + 1` of them; Phi has all but the last, a repetition."""
        return tuple(self.width << min(level, self.levels - 1) for level in range(self.levels + 1))

    @property
    def multiple(self) -> int:
        """Low-resolution sides are padded to a multiple of this."""
        halvings = self.levels - 1
        return self.pixel_unshuffle << halvings

    def to_json_fields(self) -> dict[str, object]:
        """The fields as plain JSON values, ready for `UNetConfig(**fields)`."""
        return asdict(self)


@dataclass(frozen=True)
class EncodedFrames:
    """The features of the frames at the bottleneck, of one shape, and the centre's skips, top first.

    `sides` are the previous and the next frame's; none where the neighbours entered at the top already.
    """

    skips: list[Tensor]
    center: Tensor
    sides: tuple[Tensor, ...]

    def fused(self) -> Tensor:
        """The sum of equation 5."""
        return sum(self.sides, start=self.center)


class ConditionalUNet(nn.Module):
    """`center_sr` (B, 3, 2H, 2W), `previous_lr` and `next_lr` (B, 3, H, W) to (B, 3, 2H, 2W).

    Nominal range [0, 1], the output is not clamped. Any H and W from 1 up.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        folded, channels = 3 * config.pixel_unshuffle**2, config.channels
        if config.fusion == "bottleneck":
            self.phi_left = Encoder(folded, channels[:-1], config.batch_norm)
            self.phi_right = Encoder(folded, channels[:-1], config.batch_norm)
        seen_by_psi = folded if config.fusion == "bottleneck" else 3 * folded
        self.psi_encoder = Encoder(seen_by_psi, channels, config.batch_norm)
        self.psi_decoder = Decoder(channels, config.batch_norm)
        self.head = nn.Conv2d(channels[0], folded, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                initialise(layer)
        if config.output == "residual":
            nn.init.zeros_(self.head.weight)

    def forward(self, center_sr: Tensor, previous_lr: Tensor, next_lr: Tensor) -> Tensor:
        return self.decode(self.encode(center_sr, previous_lr, next_lr), center_sr)

    def encode(self, center_sr: Tensor, previous_lr: Tensor, next_lr: Tensor) -> EncodedFrames:
        """The three frames down to the bottleneck, not yet fused."""
        center = self.fold(center_sr - 0.5, SCALE * self.config.multiple)
        if self.config.fusion == "aligned":
            residuals = back_projected_residuals(center_sr, previous_lr, next_lr)
            sides = [self.fold(RESIDUAL_GAIN * residual, SCALE * self.config.multiple) for residual in residuals]
            *skips, deepest = self.psi_encoder(torch.cat((center, *sides), dim=1))
            return EncodedFrames(skips, deepest, sides=())
        *_, left = self.phi_left(self.fold(previous_lr - 0.5, self.config.multiple))
        *_, right = self.phi_right(self.fold(next_lr - 0.5, self.config.multiple))
        *skips, deepest = self.psi_encoder(center)
        return EncodedFrames(skips, deepest, sides=(left, right))

    def decode(self, encoded: EncodedFrames, center_sr: Tensor) -> Tensor:
        """Fuse and go up again (equation 6); `center_sr` gives the size and what a residual adds to."""
        height, width = center_sr.shape[-2:]
        features = self.psi_decoder(encoded.fused(), encoded.skips)
        # Near white a bfloat16 step is a whole 8-bit level, so under autocast the picture itself stays in float32.
        with torch.autocast(features.device.type, enabled=False):
            drawn = F.pixel_shuffle(self.head(features.float()), self.config.pixel_unshuffle)
        drawn = drawn[..., :height, :width]
        return center_sr + drawn if self.config.output == "residual" else drawn

    def fold(self, frames: Tensor, multiple: int) -> Tensor:
        """Pad to a whole number of the deepest pixels, and unshuffle. Frames lie around zero, as convolutions pad."""
        folded = F.pixel_unshuffle(pad_to_multiple(frames, multiple), self.config.pixel_unshuffle)
        return folded.contiguous(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """Convolutions at every level and a 2x2 pooling between; returns the features of all levels, top first."""

    def __init__(self, inputs: int, channels: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        sizes = zip((inputs, *channels), channels, strict=False)
        self.blocks = nn.ModuleList(double_convolution(before, after, batch_norm) for before, after in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(F.max_pool2d(features[-1], 2)))
        return features


class Decoder(nn.Module):
    """From the deepest level up: a transposed convolution doubles the side, two convolutions merge the skip."""

    def __init__(self, channels: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        upward = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in upward)
        self.blocks = nn.ModuleList(double_convolution(2 * here, here, batch_norm) for _, here in upward)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        for doubling, block, skip in zip(self.doublings, self.blocks, reversed(skips), strict=True):
            x = block(torch.cat((skip, doubling(x)), dim=1))
        return x


def double_convolution(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Twice: a 3x3 convolution, normalisation over the batch if asked for, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He et al. (2015). Without it, and without normalisation, the signal fades on its way and little is learnt."""
    # A transposed convolution of kernel and stride 2 makes each output pixel from one pixel of every input channel.
    inputs = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
