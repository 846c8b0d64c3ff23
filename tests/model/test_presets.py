"""Presets load, or say what is missing."""

from pathlib import Path

import pytest
import torch

from model.checkpoints import CheckpointError, save_checkpoint
from model.hat import HAT
from model.presets import PRESETS, PresetUnavailableError, load_upscaler
from model.unet import ConditionalUNet

CPU = torch.device("cpu")


def test_the_random_preset_is_always_there_and_always_the_same() -> None:
    before = torch.random.get_rng_state()

    one, two = load_upscaler("tiny-random", CPU, None), load_upscaler("tiny-random", CPU, None)

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sum(p.numel() for p in one.parameters()) < 50_000


def test_the_paper_preset_without_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PresetUnavailableError, match=r"vsr weights import.*vsr train"):
        load_upscaler("paper", CPU, tmp_path)


def test_hat_alone_does_not_pass_for_the_paper_preset(tmp_path: Path, hat: HAT) -> None:
    save_checkpoint(tmp_path / "paper.safetensors", hat, None, {})

    with pytest.raises(CheckpointError, match="holds HAT alone, expected HAT and U-Net"):
        load_upscaler("paper", CPU, tmp_path)


def test_other_networks_do_not_pass_for_the_paper_preset(tmp_path: Path, hat: HAT, unet: ConditionalUNet) -> None:
    save_checkpoint(tmp_path / "paper.safetensors", hat, unet, {})

    with pytest.raises(CheckpointError, match="the preset is"):
        load_upscaler("paper", CPU, tmp_path)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no preset 'huge', only aligned, balanced, compact, paper, paper-residual, tiny-random"):
        load_upscaler("huge", CPU, None)


def test_every_preset_names_itself() -> None:
    assert all(name == preset.name for name, preset in PRESETS.items())
