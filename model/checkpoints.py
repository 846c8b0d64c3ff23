"""Checkpoints as data with a passport: safetensors whose metadata names networks, scale and the tensors' sha256.

A file holds `hat.*` tensors (kind "hat"), or `hat.*` and `unet.*` (kind "two-step"). Loading is strict. Foreign `.pth`
files are read with `weights_only=True`, once, by `import_hat`; everything else here reads safetensors only.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.hat import HAT, HATConfig
from model.unet import SCALE, ConditionalUNet, UNetConfig

SHIPPED_WEIGHTS_DIR = Path(__file__).parent / "weights"
FORMAT = "twostep-vsr/1"
SUFFIX = ".safetensors"

# Where authors put the weights inside a .pth, best first: the running average, then the last step.
FOREIGN_ENTRIES = ("params_ema", "params")
KEYS_SHOWN = 10


class CheckpointError(Exception):
    """A weight file that is missing, damaged, or not the network it should be; the message lists keys that differ."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The passport of one file. `notes` says where the weights come from; `sha256` is of the tensors, not the file."""

    name: str
    path: Path
    kind: Literal["hat", "two-step"]
    scale: int
    sha256: str
    size_bytes: int
    hat: HATConfig
    unet: UNetConfig | None
    notes: dict[str, str]


def list_checkpoints(weights_dir: Path | None) -> list[CheckpointInfo]:
    """The shipped checkpoints, then those in `weights_dir`, each by name. Reads passports only."""
    folders = [SHIPPED_WEIGHTS_DIR] if weights_dir is None else [SHIPPED_WEIGHTS_DIR, weights_dir]
    return [read_passport(path) for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))]


def verify_checkpoint(path: Path) -> CheckpointInfo:
    """Read every byte, compare the sha256, and build the networks; CheckpointError says what is wrong."""
    info, _, _ = load_checkpoint(path)
    return info


def import_hat(source_pth: Path, weights_dir: Path, name: str) -> CheckpointInfo:
    """Turn a published x2 HAT `.pth` into `weights_dir/name.safetensors`.

    The configuration is read off the tensors' shapes, for a foreign file has no passport.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise CheckpointError(f"{name!r} is not a name for weights: use a-z, 0-9, '.', '_' and '-'")
    state = read_foreign(source_pth)
    config = hat_config_of(state)
    if config is None:
        # Not a HAT: say how it differs from the one that is published.
        _refuse(source_pth, "is not a HAT", expected_shapes(HAT, HATConfig()), _shapes(state))
    if config.upscale != SCALE:
        raise CheckpointError(f"{source_pth} upscales by {config.upscale}, expected {SCALE}")
    hat = HAT(config)
    _fill(hat, state, source_pth)
    weights_dir.mkdir(parents=True, exist_ok=True)
    file_sha256 = hashlib.sha256(source_pth.read_bytes()).hexdigest()
    return save_checkpoint(
        weights_dir / f"{name}{SUFFIX}", hat, None, {"imported_from": source_pth.name, "imported_sha256": file_sha256}
    )


def save_checkpoint(path: Path, hat: HAT, unet: ConditionalUNet | None, notes: Mapping[str, str]) -> CheckpointInfo:
    """Write the networks and their passport; the file appears whole or not at all."""
    networks: dict[str, nn.Module] = {"hat": hat} if unet is None else {"hat": hat, "unet": unet}
    tensors = {
        f"{prefix}.{key}": tensor.detach().cpu().contiguous()
        for prefix, network in networks.items()
        for key, tensor in network.state_dict().items()
    }
    passport = {
        "format": FORMAT,
        "kind": "hat" if unet is None else "two-step",
        "scale": str(SCALE),
        "sha256": sha256_of(tensors),
        "hat": json.dumps(hat.config.to_json_fields()),
        "unet": json.dumps(None if unet is None else unet.config.to_json_fields()),
        "notes": json.dumps(dict(notes)),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata=passport)
    partial.chmod(0o644)  # safetensors lets only the owner read, but a container's user is another.
    partial.replace(path)
    return read_passport(path)


def load_checkpoint(path: Path) -> tuple[CheckpointInfo, HAT, ConditionalUNet | None]:
    """The networks of a file, on the CPU and in evaluation mode."""
    info = read_passport(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    # Keys before the digest: a list of differing keys says more than a digest that differs.
    try:
        expected = {f"hat.{key}": shape for key, shape in expected_shapes(HAT, info.hat).items()}
        if info.unet is not None:
            expected |= {f"unet.{key}": shape for key, shape in expected_shapes(ConditionalUNet, info.unet).items()}
    except (RuntimeError, TypeError) as error:  # A width of 1e12, of -8, of 4.5: nothing else can fail without memory.
        raise CheckpointError(f"{path} has a passport of networks that cannot be built: {error}") from error
    if _shapes(tensors) != expected:
        _refuse(path, "does not hold the networks its passport names", expected, _shapes(tensors))
    if sha256_of(tensors) != info.sha256:
        raise CheckpointError(
            f"{path} is damaged: its tensors have the sha256 {sha256_of(tensors)}, expected {info.sha256}"
        )
    hat = HAT(info.hat)
    hat.load_state_dict(_below("hat.", tensors))
    unet = None
    if info.unet is not None:
        unet = ConditionalUNet(info.unet)
        unet.load_state_dict(_below("unet.", tensors))
        unet.eval()
    return info, hat.eval(), unet


def read_passport(path: Path) -> CheckpointInfo:
    """The passport alone: the tensors are not read."""
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            passport = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if passport.get("format") != FORMAT:
        raise CheckpointError(f"{path} has the format {passport.get('format')!r}, expected {FORMAT!r}")
    try:
        unet = json.loads(passport["unet"])
        return CheckpointInfo(
            name=path.stem,
            path=path,
            kind="hat" if unet is None else "two-step",
            scale=int(passport["scale"]),
            sha256=passport["sha256"],
            size_bytes=path.stat().st_size,
            hat=HATConfig(**json.loads(passport["hat"])),
            unet=None if unet is None else UNetConfig(**unet),
            notes=json.loads(passport["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:  # A field missing, unknown, or with a value that makes no sense.
        raise CheckpointError(f"{path} has a passport that cannot be read: {error}") from error


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """One digest of names, types, shapes and bytes, whatever the order of the tensors in the file."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.pth`, under `params_ema`, `params` or bare. Nothing in the file is executed."""
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        # Torch names a damaged archive by RuntimeError, a damaged or hostile pickle by any of the others.
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a readable file of weights: {reason}") from error
    for entry in FOREIGN_ENTRIES:
        if isinstance(content, dict) and entry in content:
            content = content[entry]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state dict, neither bare nor under {' or '.join(FOREIGN_ENTRIES)}")
    return content


def hat_config_of(state: Mapping[str, Tensor]) -> HATConfig | None:
    """The configuration that gives a state dict its shapes, None where it has not the shape of a HAT.

    `conv_scale` and `img_range` leave no trace in the shapes; all published HATs have the defaults.
    """
    groups = _count(state, r"layers\.(\d+)\.")
    first = "layers.0.residual_group."
    try:
        channels = state["conv_first.weight"].shape[0]
        window = round(state["relative_position_index_SA"].shape[0] ** 0.5)
        key_window = round(state["relative_position_index_OCA"].shape[1] ** 0.5)
        block = f"{first}blocks.0."
        upsample_channels = state["upsample.0.weight"].shape[0] // state["upsample.0.weight"].shape[1]
        return HATConfig(
            upscale=3 if upsample_channels == 9 else 2 ** _count(state, r"upsample\.(\d+)\."),
            window_size=window,
            compress_ratio=channels // state[f"{block}conv_block.cab.0.weight"].shape[0],
            squeeze_factor=channels // state[f"{block}conv_block.cab.3.attention.1.weight"].shape[0],
            overlap_ratio=(key_window - window) / window,
            depths=tuple(
                _count(state, rf"layers\.{group}\.residual_group\.blocks\.(\d+)\.") for group in range(groups)
            ),
            embed_dim=channels,
            num_heads=tuple(
                state[f"layers.{group}.residual_group.overlap_attn.relative_position_bias_table"].shape[1]
                for group in range(groups)
            ),
            mlp_ratio=state[f"{block}mlp.fc1.weight"].shape[0] / channels,
            qkv_bias=f"{block}attn.qkv.bias" in state,
            num_feat=state["conv_last.weight"].shape[1],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def expected_shapes(
    network: type[HAT] | type[ConditionalUNet], config: HATConfig | UNetConfig
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network's state dict, without allocating it."""
    with torch.device("meta"):
        return _shapes(network(config).state_dict())  # type: ignore[arg-type]  # each network with its own config


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _fill(hat: HAT, state: Mapping[str, Tensor], path: Path) -> None:
    expected = _shapes(hat.state_dict())
    if _shapes(state) != expected:
        _refuse(path, "is not a whole HAT", expected, _shapes(state))
    hat.load_state_dict(dict(state))


def _refuse(
    path: Path, what: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> NoReturn:
    differences = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "wrong shape": [
            f"{key} {found[key]}, expected {shape}"
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
    }
    lines = [f"{path} {what}"]
    for kind, keys in differences.items():
        if keys:
            shown = ", ".join(keys[:KEYS_SHOWN]) + (", ..." if len(keys) > KEYS_SHOWN else "")
            lines.append(f"{len(keys)} {kind}: {shown}")
    raise CheckpointError("; ".join(lines))
