"""Checkpoints survive the way to disk and back, and say how they differ when they are not what they should be."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoints import (
    CheckpointError,
    hat_config_of,
    import_hat,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from model.hat import HAT, HATConfig
from model.unet import ConditionalUNet


@pytest.fixture
def saved(tmp_path: Path, hat: HAT, unet: ConditionalUNet) -> Path:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, hat, unet, {"seed": "0"})
    return path


def test_networks_and_configs_survive_saving(saved: Path, hat: HAT, unet: ConditionalUNet) -> None:
    info, loaded_hat, loaded_unet = load_checkpoint(saved)

    assert loaded_unet is not None
    assert (info.kind, info.scale, info.name, info.notes) == ("two-step", 2, "small", {"seed": "0"})
    assert (info.hat, info.unet) == (hat.config, unet.config)
    assert not loaded_hat.training
    for loaded, original in ((loaded_hat, hat), (loaded_unet, unet)):
        assert all(torch.equal(t, loaded.state_dict()[key]) for key, t in original.state_dict().items())
    assert list(saved.parent.iterdir()) == [saved]


def test_a_hat_alone_is_its_own_kind(tmp_path: Path, hat: HAT) -> None:
    info = save_checkpoint(tmp_path / "first-step.safetensors", hat, None, {})

    assert (info.kind, info.unet) == ("hat", None)
    assert verify_checkpoint(info.path) == info


def test_the_list_names_the_users_files_in_order(tmp_path: Path, hat: HAT) -> None:
    for name in ("second", "first"):
        save_checkpoint(tmp_path / f"{name}.safetensors", hat, None, {})

    assert [info.name for info in list_checkpoints(tmp_path) if info.path.parent == tmp_path] == ["first", "second"]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **passport: str) -> None:
    """Change the tensors or the passport of a file, and nothing else."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | passport
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def test_a_missing_key_is_named(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors.pop("hat.conv_last.bias"))

    with pytest.raises(CheckpointError, match=r"1 missing: hat\.conv_last\.bias"):
        load_checkpoint(saved)


def test_unexpected_keys_and_wrong_shapes_are_named(saved: Path) -> None:
    rewrite(saved, lambda t: t.update({"hat.extra": torch.zeros(1), "hat.conv_last.bias": torch.zeros(4)}))

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)

    assert "1 unexpected: hat.extra" in str(caught.value)
    assert "1 wrong shape: hat.conv_last.bias (4,), expected (3,)" in str(caught.value)


def test_of_many_keys_ten_are_named_and_all_are_counted(saved: Path) -> None:
    rewrite(saved, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("unet.")])

    with pytest.raises(CheckpointError, match=r"(\d\d) missing: (unet\.\S+, ){10}\.\.\."):
        load_checkpoint(saved)


def test_a_changed_number_is_found_by_its_digest(saved: Path) -> None:
    rewrite(saved, lambda tensors: tensors["hat.conv_last.bias"].add_(1))

    with pytest.raises(CheckpointError, match="damaged: its tensors have the sha256"):
        verify_checkpoint(saved)


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept_bytes: int) -> None:
    os.truncate(saved, kept_bytes if kept_bytes >= 0 else saved.stat().st_size - 1)

    with pytest.raises(CheckpointError, match=r"small\.safetensors is not a whole safetensors file"):
        verify_checkpoint(saved)


@pytest.mark.parametrize(
    ("passport", "message"),
    [
        ({"format": "somebody-else/3"}, "format 'somebody-else/3', expected 'twostep-vsr/1'"),
        ({"hat": json.dumps({"embed_dims": 4})}, "passport that cannot be read: .*embed_dims"),
        ({"scale": "two"}, "passport that cannot be read"),
        ({"unet": json.dumps({"width": 10**12})}, "networks that cannot be built: .*overflow"),
        ({"unet": json.dumps({"width": 4.5})}, "networks that cannot be built: .*float"),
        ({"hat": json.dumps({"embed_dim": -180})}, "networks that cannot be built: .*negative"),
    ],
)
def test_a_passport_that_makes_no_sense_is_refused(saved: Path, passport: dict[str, str], message: str) -> None:
    rewrite(saved, lambda tensors: None, **passport)

    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no weight file .*nothing\.safetensors"):
        verify_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("entry", ["params_ema", "params", None])
def test_a_published_hat_is_imported(tmp_path: Path, hat: HAT, entry: str | None) -> None:
    # given a .pth as authors publish it
    state = hat.state_dict()
    torch.save(state if entry is None else {entry: state}, tmp_path / "HAT_x2.pth")

    # when it is imported
    info = import_hat(tmp_path / "HAT_x2.pth", tmp_path / "weights", "my-hat")

    # then the same network is read back, and its origin is written down
    _, loaded, _ = load_checkpoint(info.path)
    assert info.path == tmp_path / "weights" / "my-hat.safetensors"
    assert info.hat == hat.config
    assert info.notes["imported_from"] == "HAT_x2.pth"
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in state.items())


def test_the_running_average_is_preferred(tmp_path: Path, hat: HAT) -> None:
    average = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in hat.state_dict().items()}
    torch.save({"params": hat.state_dict(), "params_ema": average}, tmp_path / "both.pth")

    info = import_hat(tmp_path / "both.pth", tmp_path, "both")

    _, loaded, _ = load_checkpoint(info.path)
    assert torch.equal(loaded.state_dict()["conv_first.bias"], average["conv_first.bias"])


@pytest.mark.parametrize(
    "config",
    [
        HATConfig(),
        HATConfig(embed_dim=144, compress_ratio=24, squeeze_factor=24),
        HATConfig(depths=(6,) * 12, num_heads=(6,) * 12),
        HATConfig(upscale=3),
        HATConfig(upscale=4),
    ],
)
def test_the_configuration_of_every_published_hat_is_read_off_its_shapes(config: HATConfig) -> None:
    with torch.device("meta"):
        state = HAT(config).state_dict()

    assert hat_config_of(state) == config


def test_a_hat_of_another_scale_is_not_imported(tmp_path: Path, small_hat_config: HATConfig) -> None:
    torch.save(HAT(replace(small_hat_config, upscale=4)).state_dict(), tmp_path / "x4.pth")

    with pytest.raises(CheckpointError, match=r"x4\.pth upscales by 4, expected 2"):
        import_hat(tmp_path / "x4.pth", tmp_path, "x4")


def test_another_network_is_not_imported_and_its_keys_are_listed(tmp_path: Path) -> None:
    torch.save({"params": {"body.0.weight": torch.zeros(3)}}, tmp_path / "other.pth")

    with pytest.raises(CheckpointError, match=r"is not a HAT; \d+ missing: .*; 1 unexpected: body\.0\.weight"):
        import_hat(tmp_path / "other.pth", tmp_path, "other")


def test_half_a_hat_is_not_imported(tmp_path: Path, hat: HAT) -> None:
    state = hat.state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "half.pth")

    with pytest.raises(CheckpointError, match=r"is not a whole HAT; 1 missing: norm\.bias"):
        import_hat(tmp_path / "half.pth", tmp_path, "half")
    assert not (tmp_path / "half.safetensors").exists()


class Explosive:
    """Pickles to a call: what a hostile .pth is made of."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x02N."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        import_hat(tmp_path / "odd.pth", tmp_path, "odd")


def test_a_hostile_file_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": Explosive()}, tmp_path / "hostile.pth")

    with pytest.raises(CheckpointError, match=r"hostile\.pth is not a readable file of weights"):
        import_hat(tmp_path / "hostile.pth", tmp_path, "hostile")
    assert not (tmp_path / "exploded").exists()


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, hat: HAT) -> None:
    torch.save(hat.state_dict(), tmp_path / "hat.pth")

    with pytest.raises(CheckpointError, match="is not a name"):
        import_hat(tmp_path / "hat.pth", tmp_path / "weights", "../outside")
