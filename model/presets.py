"""Presets: which two networks, and where their weights come from.

Beside those known here, an imported file of two networks is a preset of its own name: what a user has trained.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from model.checkpoints import (
    SHIPPED_WEIGHTS_DIR,
    SUFFIX,
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    read_passport,
    save_checkpoint,
)
from model.hat import HAT, HATConfig, start_as_bilinear
from model.unet import ConditionalUNet, UNetConfig
from model.upscaler import TwoStepUpscaler


class PresetUnavailableError(Exception):
    """The preset's weights are not on this machine; the message says which and how to get them."""


@dataclass(frozen=True)
class Preset:
    """`weights` says where they come from: in the repository, from the user, or drawn at random for tests."""

    name: str
    description: str
    weights: Literal["shipped", "user", "random"]
    hat: HATConfig
    unet: UNetConfig
    scale: int = TwoStepUpscaler.scale


PRESET_NAME = r"[a-z0-9][a-z0-9-]{0,39}"
"""What jobs accept as the name of a preset."""

_COMPACT_HAT = HATConfig(
    embed_dim=48, depths=(4,), num_heads=(3,), window_size=8, compress_ratio=4, squeeze_factor=12, num_feat=32
)
_BALANCED_HAT = HATConfig(
    embed_dim=60, depths=(4, 4), num_heads=(3, 3), window_size=8, compress_ratio=3, squeeze_factor=30, num_feat=32
)
_COMPACT_UNET = UNetConfig(width=24, levels=3, pixel_unshuffle=2, output="residual", batch_norm=False)
# Wider than compact's, with what is saved by having no Phi.
_ALIGNED_UNET = replace(_COMPACT_UNET, width=32, fusion="aligned")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="aligned",
            description="small HAT, and a narrow U-Net that sees its neighbours aligned, for a CPU",
            weights="shipped",
            hat=_COMPACT_HAT,
            unet=_ALIGNED_UNET,
        ),
        Preset(
            name="balanced",
            description="a HAT of twice the work, and the U-Net of aligned, for a CPU with time",
            weights="shipped",
            hat=_BALANCED_HAT,
            unet=_ALIGNED_UNET,
        ),
        Preset(
            name="compact",
            description="small HAT, and a narrow U-Net fused as in the paper, for a CPU",
            weights="shipped",
            hat=_COMPACT_HAT,
            unet=_COMPACT_UNET,
        ),
        Preset(
            name="paper",
            description="HAT x2 and the full U-Net of the paper, with the user's weights, for a GPU",
            weights="user",
            hat=HATConfig(),
            unet=UNetConfig(),
        ),
        Preset(
            name="paper-residual",
            description="as paper, but the U-Net draws what is added to HAT's frame",
            weights="user",
            hat=HATConfig(),
            unet=UNetConfig(output="residual"),
        ),
        Preset(
            name="tiny-random",
            description="random weights, for tests only: the picture is not meant to be good",
            weights="random",
            hat=HATConfig(
                # No narrower: oneDNN rounds products of fewer channels differently on one thread and on several.
                embed_dim=16,
                depths=(2,),
                num_heads=(1,),
                window_size=8,
                compress_ratio=4,
                squeeze_factor=4,
                num_feat=4,
            ),
            unet=UNetConfig(width=4, levels=2, pixel_unshuffle=2, output="residual", batch_norm=False),
        ),
    )
}


def load_upscaler(preset: str, device: torch.device, weights_dir: Path | None) -> TwoStepUpscaler:
    """The preset's networks with their weights on `device`, ready to upscale.

    `weights_dir` holds the user's checkpoints. Raises ValueError for an unknown preset, PresetUnavailableError where
    weights are missing, CheckpointError where they are damaged or of another network.
    """
    chosen = find_preset(preset, weights_dir)
    if chosen.weights == "random":
        return random_upscaler(chosen).to(device)
    folder = SHIPPED_WEIGHTS_DIR if chosen.weights == "shipped" else weights_dir
    path = None if folder is None else folder / f"{chosen.name}{SUFFIX}"
    if path is None or not path.is_file():
        raise PresetUnavailableError(what_is_missing(chosen, path))
    info, hat, unet = load_checkpoint(path)
    if unet is None:
        raise CheckpointError(f"{path} holds HAT alone, expected HAT and U-Net")
    if (info.hat, info.unet) != (chosen.hat, chosen.unet):
        raise CheckpointError(f"{path} holds {info.hat} and {info.unet}, the preset is {chosen.hat} and {chosen.unet}")
    return TwoStepUpscaler(hat, unet).to(device)


def find_preset(name: str, weights_dir: Path | None) -> Preset:
    """One of ours, or an imported file of two networks, which is a preset of its own name.

    ValueError where there is neither, CheckpointError where the file is damaged or holds HAT alone.
    """
    if name in PRESETS:
        return PRESETS[name]
    is_name = re.fullmatch(PRESET_NAME, name) is not None
    path = weights_dir / f"{name}{SUFFIX}" if weights_dir is not None and is_name else None
    if path is None or not path.is_file():
        raise ValueError(
            f"there is no preset {name!r}, only {', '.join(PRESETS)}, and imported weights (`vsr weights import`)"
        )
    info = read_passport(path)
    if info.unet is None:
        raise CheckpointError(f"{path} holds HAT alone, expected HAT and U-Net")
    return Preset(name, "your own weights", weights="user", hat=info.hat, unet=info.unet)


def import_preset(source: Path, weights_dir: Path, name: str) -> CheckpointInfo:
    """Put a finished run's weights into `weights_dir`, where they are a preset called `name`, or a HAT of that name.

    CheckpointError for a damaged file, and for a name that is taken: of a shipped preset, of one of ours whose
    networks these are not, or of a HAT that was imported where these are two networks, and the other way round.
    """
    if not re.fullmatch(PRESET_NAME, name):
        raise CheckpointError(f"{name!r} is not a name for a preset: use up to 40 of a-z, 0-9 and '-'")
    info, hat, unet = load_checkpoint(source)
    ours = PRESETS.get(name)
    if ours is not None and (ours.weights != "user" or (info.hat, info.unet) != (ours.hat, ours.unet)):
        raise CheckpointError(f"{name!r} is the name of a preset of other networks or weights: choose another name")
    path = weights_dir / f"{name}{SUFFIX}"
    if path.is_file() and (kind := read_passport(path).kind) != info.kind:
        raise CheckpointError(f"{name!r} is the name of weights of the kind {kind!r} already: choose another name")
    weights_dir.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(path, hat, unet, info.notes)


def what_is_missing(preset: Preset, path: Path | None) -> str:
    """One line on which weights are missing and how to get them."""
    if preset.weights == "shipped":
        return f"preset {preset.name!r}: its shipped weights are missing ({path}); install the project again"
    where = "no folder of weights was given" if path is None else f"{path} does not exist"
    return (
        f"preset {preset.name!r} needs weights that are not shipped and {where}: import a published HAT x2 with "
        f"`vsr weights import`, train its U-Net with `vsr train {preset.name}`, and import the run's "
        f"weights.safetensors with `--name {preset.name}`; HAT alone would not be this preset"
    )


def random_upscaler(preset: Preset) -> TwoStepUpscaler:
    """The preset's networks with weights drawn from fixed seeds.

    The picture stays recognisable and every frame leaves its mark on it, so that a frame that is swapped, missing or
    repeated shows: HAT starts as a plain enlargement, and the U-Net's residual, which training starts at zero, is drawn
    too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hat = HAT(preset.hat)
        start_as_bilinear(hat)
        torch.manual_seed(1)
        unet = ConditionalUNet(preset.unet)
        nn.init.normal_(unet.head.weight, std=0.03)
    return TwoStepUpscaler(hat, unet)
