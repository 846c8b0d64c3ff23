"""What `vsr evaluate` compares: plain enlargements, and networks with and without what they are said to need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from model.checkpoints import CheckpointError, load_checkpoint, sha256_of
from model.evaluation.baselines import bicubic, lanczos, nearest
from model.hat import HAT
from model.plain_surfaces import keep_plain_surfaces
from model.presets import load_upscaler
from model.sampling import Batch
from model.unet import ConditionalUNet

MethodKind = Literal["plain", "hat", "two-step", "no-neighbours", "foreign-neighbours", "trained-control", "truth"]


@dataclass(frozen=True)
class Contender:
    """Networks to be compared, under a label of their own; without a U-Net HAT is all there is.

    A control was trained with the current frame for both neighbours, and is measured so and in no other way. The
    digests are of the tensors, as `model.checkpoints.sha256_of` gives them.
    """

    label: str
    hat: HAT
    unet: ConditionalUNet | None
    weights_sha256: str
    hat_sha256: str
    is_control: bool = False


@dataclass(frozen=True)
class Method:
    """One row of a table. `networks` is the contender's label, None for what needs no networks."""

    name: str
    kind: MethodKind
    networks: str | None = None


NEAREST, BICUBIC, LANCZOS = (Method(name, "plain") for name in ("nearest", "bicubic", "Lanczos"))
PLAIN: dict[Method, Callable[[Tensor], Tensor]] = {NEAREST: nearest, BICUBIC: bicubic, LANCZOS: lanczos}
TRUTH = Method("truth", "truth")


def preset_contender(preset: str, weights_dir: Path | None) -> Contender:
    """The networks of a preset, by its name. Raises what `load_upscaler` raises."""
    upscaler = load_upscaler(preset, torch.device("cpu"), weights_dir)
    hat_sha256 = sha256_of(upscaler.hat.state_dict())
    return Contender(preset, upscaler.hat, upscaler.unet, sha256_of(upscaler.state_dict()), hat_sha256)


def file_contender(path: Path, *, is_control: bool = False) -> Contender:
    """The networks of a weight file, by its name; by its folder's, where it is a run's. Raises CheckpointError."""
    info, hat, unet = load_checkpoint(path)
    label = path.absolute().parent.name if path.stem == "weights" else path.stem
    if is_control and unet is None:
        raise CheckpointError(f"{path} holds HAT alone: a control has a U-Net that was trained without neighbours")
    return Contender(label, hat, unet, info.sha256, sha256_of(hat.state_dict()), is_control)


def outputs(contenders: Sequence[Contender], batch: Batch, strangers: Batch | None) -> dict[Method, Tensor]:
    """The centres of a batch by every method, (B, 3, 2H, 2W) float32, not clamped.

    The controls take the current frame for both neighbours, and the neighbours of another video. HATs that are the same
    run once, and are one row.
    """
    results = {method: enlarge(batch.center_lr) for method, enlarge in PLAIN.items()}
    enlarged: dict[str, Tensor] = {}
    for contender in contenders:
        if contender.hat_sha256 not in enlarged:
            center_sr = enlarged[contender.hat_sha256] = as_served(contender.hat, batch.center_lr)
            results[hat_alone(contender)] = center_sr
        if contender.unet is None:
            continue
        neighbours: list[tuple[MethodKind, Tensor, Tensor]] = [
            ("two-step", batch.previous_lr, batch.next_lr),
            ("no-neighbours", batch.center_lr, batch.center_lr),
        ]
        if contender.is_control:
            neighbours = [("trained-control", batch.center_lr, batch.center_lr)]
        elif strangers is not None:
            neighbours.append(("foreign-neighbours", strangers.previous_lr, strangers.next_lr))
        for kind, previous_lr, next_lr in neighbours:
            center_sr = enlarged[contender.hat_sha256]
            refined = as_served(contender.unet, center_sr, previous_lr, next_lr)
            results[two_steps(contender, kind)] = keep_plain_surfaces(refined, batch.center_lr)
    return results


def hat_alone(contender: Contender) -> Method:
    """The row of a contender's HAT, where no earlier contender has the same."""
    return Method(f"HAT alone ({contender.label})", "hat", contender.label)


def hat_methods(contenders: Sequence[Contender]) -> dict[str, Method]:
    """By label the row of the contender's HAT: that of the first contender with the same HAT."""
    first: dict[str, Method] = {}
    return {one.label: first.setdefault(one.hat_sha256, hat_alone(one)) for one in contenders}


def two_steps(contender: Contender, kind: MethodKind) -> Method:
    """The row of a contender's two steps, with its neighbours or as a control."""
    assert contender.unet is not None
    said = {"two-step": "", "trained-control": ", trained without neighbours"}
    control = said.get(kind, f", {kind.replace('-', ' ')}")
    return Method(f"two steps, {contender.unet.config.output}{control} ({contender.label})", kind, contender.label)


def as_served(network: nn.Module, *frames: Tensor) -> Tensor:
    """Run a network as the service does: bfloat16 autocast on CUDA, float32 on the CPU."""
    kind = frames[0].device.type
    with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        output: Tensor = network(*frames)
    return output.float()


def on_device(contender: Contender, device: torch.device) -> None:
    """Ready to run there."""
    contender.hat.to(device).eval()
    if contender.unet is not None:
        contender.unet.to(device).eval()
