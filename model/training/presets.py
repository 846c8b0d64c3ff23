"""What `vsr train` knows by name. Each says how it differs from the defaults of TrainConfig, and no more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.checkpoints import list_checkpoints
from model.presets import PRESETS
from model.training.config import TrainConfig

# Clean half the time, and every other condition of the data set in equal shares.
MIXED: dict[str, float] = {}


def paper(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """The paper's second stage, in its direct form: 10 epochs of all triplets, 64x64 to 128x128. For a GPU."""
    return TrainConfig(
        stage="unet",
        data_folder=str(data),
        run_folder=str(run),
        hat=PRESETS["paper"].hat,
        unet=PRESETS["paper"].unet,
        hat_weights=str(hat_weights) if hat_weights else None,
        batch_size=64,
        patch_px=64,
        learning_rate=1e-4,
        schedule="constant",
        loss="mae_ssim",
        alpha=0.8,
        epochs=10,
        cache_enlarged=True,
    )


def paper_residual(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """The paper's recipe for a U-Net that draws what is to be added to HAT's frame."""
    return replace(paper(data, run, hat_weights), unet=PRESETS["paper-residual"].unet)


def compact_hat(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """First stage of the preset `compact`, for two CPU cores. `hat_weights` has no use here."""
    return _our_hat("compact", data, run, steps=9000)


def balanced_hat(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """First stage of the preset `balanced`. `hat_weights` has no use here."""
    return _our_hat("balanced", data, run, steps=20_000)


def compact_unet(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """Second stage of the preset `compact`, by default behind the shipped HAT."""
    return _our_unet("compact", data, run, hat_weights)


def balanced_unet(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """Second stage of the preset `balanced`, by default behind the shipped HAT."""
    return _our_unet("balanced", data, run, hat_weights)


def aligned_unet(data: str | Path, run: Path, hat_weights: Path | None = None) -> TrainConfig:
    """Second stage of the preset `aligned`, by default behind the shipped HAT."""
    return _our_unet("aligned", data, run, hat_weights)


TRAIN_PRESETS: dict[str, Callable[[str | Path, Path, Path | None], TrainConfig]] = {
    "paper": paper,
    "paper-residual": paper_residual,
    "compact-hat": compact_hat,
    "compact-unet": compact_unet,
    "balanced-hat": balanced_hat,
    "balanced-unet": balanced_unet,
    "aligned-unet": aligned_unet,
}


def _our_hat(preset: str, data: str | Path, run: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        stage="hat",
        data_folder=str(data),
        run_folder=str(run),
        hat=PRESETS[preset].hat,
        unet=None,
        hat_weights=None,
        batch_size=16,
        patch_px=32,
        learning_rate=1e-3,
        schedule="cosine",
        loss="mae",
        steps=steps,
        gradient_clip_norm=1.0,
        ema_decay=0.999,
    )


def _our_unet(preset: str, data: str | Path, run: Path, hat_weights: Path | None) -> TrainConfig:
    return TrainConfig(
        stage="unet",
        data_folder=str(data),
        run_folder=str(run),
        hat=PRESETS[preset].hat,
        unet=PRESETS[preset].unet,
        hat_weights=str(hat_weights or shipped_hat(preset) or "") or None,
        # Motion is estimated on the patch, and at its edges there is none to be found: large patches, and few of them.
        batch_size=4,
        patch_px=64,
        learning_rate=1e-3,
        schedule="cosine",
        loss="mae",
        steps=12_000,
        gradient_clip_norm=0.5,
        ema_decay=0.999,
        conditions=MIXED,
        alone_share=0.05,
        foreign_share=0.05,
        cache_enlarged=True,
        cached_centers=3,
    )


def shipped_hat(preset: str) -> Path | None:
    """The shipped file with the HAT of a preset, its own before another's; None where none is shipped."""
    fitting = [info for info in list_checkpoints(None) if info.hat == PRESETS[preset].hat]
    return min(fitting, key=lambda info: (info.name != preset, info.name)).path if fitting else None
