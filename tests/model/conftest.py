"""Small real networks and data sets, seeded, for the tests of `model`."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.alignment import sample
from model.data import DecodedSequence, shrink, write_dataset
from model.hat import HAT, HATConfig
from model.presets import PRESETS, random_upscaler
from model.unet import ConditionalUNet
from model.upscaler import TwoStepUpscaler

TINY = PRESETS["tiny-random"]


@pytest.fixture
def upscaler() -> TwoStepUpscaler:
    return random_upscaler(TINY)


@pytest.fixture
def hat() -> HAT:
    torch.manual_seed(0)
    return HAT(TINY.hat).eval()


@pytest.fixture
def unet() -> ConditionalUNet:
    torch.manual_seed(0)
    return ConditionalUNet(TINY.unet).eval()


@pytest.fixture
def small_hat_config() -> HATConfig:
    return TINY.hat


def moving_pattern(frames: int, height: int, width: int, speed: float) -> torch.Tensor:
    """(T, 3, H, W) uint8: waves that move to the right by `speed` pixels a frame."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    position = x - speed * t
    waves = [torch.sin(position * 0.5 + y * 0.2), torch.cos(position * 0.3), torch.sin(y * 0.4 - position * 0.1)]
    return ((torch.stack(waves, dim=1) * 0.5 + 0.5) * 255).to(torch.uint8)


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A data set of six sequences of five frames, 48x48 px, one of them held out."""
    folder = tmp_path / "data"
    sequences = [
        DecodedSequence(
            f"waves/{n}.mp4", f"source-{n}", "CC0", "val" if n == 0 else "train", moving_pattern(5, 48, 48, n)
        )
        for n in range(6)
    ]
    write_dataset(sequences, folder, seed=0)
    return folder


@pytest.fixture
def two_conditions_folder(tmp_path: Path) -> Path:
    """A data set of four sequences of five frames, 48x48 px, one held out, each clean and darkened."""
    folder = tmp_path / "two-conditions"
    sequences = []
    for n in range(4):
        hr = moving_pattern(5, 48, 48, n)
        split = "val" if n == 0 else "train"
        dark = (shrink(hr).float() * 0.8).to(torch.uint8)
        sequences.append(DecodedSequence(f"waves/{n}.mp4", f"source-{n}", "CC0", split, hr, degraded={"dark": dark}))
    write_dataset(sequences, folder, seed=0)
    return folder


def texture(height: int, width: int, sides: tuple[int, ...] = (4, 8, 16)) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]: a random pattern with detail of these sizes in px."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        F.interpolate(
            torch.rand(1, 3, height // side, width // side, generator=generator), (height, width), mode="bicubic"
        )
        for side in sides
    ]
    return torch.stack(layers).mean(0).clamp(0, 1)


def shifted(frame: torch.Tensor, x_px: float, y_px: float = 0.0) -> torch.Tensor:
    """The frame, everything in it moved by so much to the right and down."""
    motion = torch.tensor([-x_px, -y_px]).view(1, 2, 1, 1).expand(1, 2, *frame.shape[-2:])
    return sample(frame, motion, mode="bicubic").clamp(0, 1)
