"""Presets load, or say what is missing."""

from pathlib import Path

import pytest
import torch

from model.checkpoints import CheckpointError, save_checkpoint
from model.hat import HAT
from model.presets import PRESETS, PresetUnavailableError, find_preset, import_preset, load_upscaler
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
    with pytest.raises(
        ValueError, match="no preset 'huge', only aligned, balanced, compact, paper, paper-residual, tiny-random"
    ):
        load_upscaler("huge", CPU, None)


def test_every_preset_names_itself() -> None:
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_what_a_user_has_trained_is_a_preset_of_the_name_it_was_imported_under(
    tmp_path: Path, hat: HAT, unet: ConditionalUNet
) -> None:
    # given the weights that a run left
    run = save_checkpoint(tmp_path / "weights.safetensors", hat, unet, {"steps": "6"})

    # when they are imported
    info = import_preset(run.path, tmp_path / "weights", "mine")

    # then they load by that name, with their passport
    upscaler = load_upscaler("mine", CPU, tmp_path / "weights")
    assert (info.name, info.sha256, info.notes) == ("mine", run.sha256, {"steps": "6"})
    assert find_preset("mine", tmp_path / "weights").unet == unet.config
    assert torch.equal(upscaler.unet.head.weight, unet.head.weight)


@pytest.mark.parametrize("name", ["compact", "paper"])
def test_the_name_of_a_preset_with_other_networks_is_taken(
    tmp_path: Path, hat: HAT, unet: ConditionalUNet, name: str
) -> None:
    run = save_checkpoint(tmp_path / "weights.safetensors", hat, unet, {})

    with pytest.raises(CheckpointError, match=f"'{name}' is the name of a preset of other networks or weights"):
        import_preset(run.path, tmp_path / "weights", name)


def test_a_hat_is_not_replaced_by_two_networks_nor_they_by_it(tmp_path: Path, hat: HAT, unet: ConditionalUNet) -> None:
    # given a HAT that was imported, under the name that is usual
    alone = save_checkpoint(tmp_path / "published.safetensors", hat, None, {})
    both = save_checkpoint(tmp_path / "weights.safetensors", hat, unet, {})
    import_preset(alone.path, tmp_path / "weights", "hat")
    import_preset(both.path, tmp_path / "weights", "mine")

    # when a run's weights come without a name of their own, or the other way round; then what is there stays
    with pytest.raises(CheckpointError, match="'hat' is the name of weights of the kind 'hat' already"):
        import_preset(both.path, tmp_path / "weights", "hat")
    with pytest.raises(CheckpointError, match="'mine' is the name of weights of the kind 'two-step' already"):
        import_preset(alone.path, tmp_path / "weights", "mine")

    # and the same kind may be imported again
    assert import_preset(both.path, tmp_path / "weights", "mine").sha256 == both.sha256


def test_a_name_that_leads_elsewhere_is_no_preset(tmp_path: Path, hat: HAT, unet: ConditionalUNet) -> None:
    save_checkpoint(tmp_path / "mine.safetensors", hat, unet, {})
    (tmp_path / "weights").mkdir()

    with pytest.raises(ValueError, match=r"there is no preset '\.\./mine'"):
        find_preset("../mine", tmp_path / "weights")


def test_a_name_that_no_job_could_ask_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'\.\./mine' is not a name for a preset"):
        import_preset(tmp_path / "weights.safetensors", tmp_path, "../mine")


def test_an_imported_hat_alone_is_no_preset(tmp_path: Path, hat: HAT) -> None:
    save_checkpoint(tmp_path / "hat.safetensors", hat, None, {})

    with pytest.raises(CheckpointError, match="holds HAT alone, expected HAT and U-Net"):
        find_preset("hat", tmp_path)
