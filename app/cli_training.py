"""The commands around the networks: `vsr weights`, `vsr prepare`, `vsr train`, `vsr evaluate`.

Part of the composition root: torch and av are imported inside the commands, as in `app/cli.py`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli_options import DeviceOption, JsonOption, PresetOption, WeightsDirOption, interruptible
from app.terminal import ProgressLine, print_json, print_result, print_table
from worker.contract.failure import FailureCode, JobFailureError

weights_cli = typer.Typer(help="Weight files: what is there, the user's own, and whether they are whole.")
training_cli = typer.Typer()


@weights_cli.command(name="list")
def list_weights(weights_dir: WeightsDirOption = None, as_json: JsonOption = False) -> None:
    """List the shipped weights and the imported ones."""
    from model.checkpoints import list_checkpoints

    with _model_errors():
        found = list_checkpoints(_weights_dir(weights_dir))
    if as_json:
        print_json([vars(info) for info in found])
        return
    rows = [
        [info.name, info.kind, f"x{info.scale}", f"{info.size_bytes / 1e6:.1f} MB", info.sha256[:12]] for info in found
    ]
    print_table(["name", "networks", "scale", "size", "sha256"], rows)


@weights_cli.command(name="import", epilog="Example:  vsr weights import HAT_SRx2_ImageNet-pretrain.pth")
def import_weights(
    source: Annotated[Path, typer.Argument(help="A published HAT x2 checkpoint (.pth).", show_default=False)],
    name: Annotated[str, typer.Option(help="Its name here.")] = "hat",
    weights_dir: WeightsDirOption = None,
) -> None:
    """Convert a published HAT checkpoint to safetensors. Nothing in the file is executed."""
    from model.checkpoints import import_hat

    with _model_errors():
        info = import_hat(source, _weights_dir(weights_dir), name)
    print_result(f"{info.path}  sha256 {info.sha256}")


@weights_cli.command(name="verify")
def verify_weights(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Default: the shipped weights and the imported ones.", show_default=False),
    ] = None,
    weights_dir: WeightsDirOption = None,
) -> None:
    """Read weight files whole and compare every tensor with what it should be."""
    from model.checkpoints import list_checkpoints, verify_checkpoint

    with _model_errors():
        for path in files or [info.path for info in list_checkpoints(_weights_dir(weights_dir))]:
            info = verify_checkpoint(path)
            print_result(f"{path}: whole, sha256 {info.sha256}")


@training_cli.command(epilog="Example:  vsr prepare my-videos/ data-set/")
def prepare(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SRC...", help="Videos, or folders of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of the split by source video.")] = 0,
    sequences_per_video: Annotated[int, typer.Option(min=1, help="At most so many sequences of each video.")] = 1,
) -> None:
    """Make a training set: sequences of 25 frames, at high and low resolution, split by source video."""
    from worker.dataset import prepare as prepare_dataset

    with _model_errors(), ProgressLine("preparing", rate_unit="sequences/s") as line:
        entries = prepare_dataset(
            sources,
            out,
            seed=seed,
            sequences_per_video=sequences_per_video,
            on_progress=lambda done, name: line.update(done, None),
        )
    splits = {split: sum(entry.split == split for entry in entries) for split in ("train", "val", "test")}
    print_result(f"{out}: " + ", ".join(f"{count} {split}" for split, count in splits.items()))


@training_cli.command(
    epilog="Examples:  vsr train compact-unet data/ runs/mine   |   "
    "vsr train paper data/ runs/paper --hat weights/hat.safetensors --condition jpeg=1   |   "
    "torchrun --nproc-per-node 2 -m app.cli train compact-unet data/ runs/mine"
)
def train(
    preset: Annotated[
        str,
        typer.Argument(
            help="compact-unet, balanced-unet, aligned-unet; compact-hat, balanced-hat; paper, paper-residual (a GPU).",
            show_default=False,
        ),
    ],
    data: Annotated[
        str, typer.Argument(help="A data set made by `vsr prepare`: a folder, or s3://...", show_default=False)
    ],
    run: Annotated[Path, typer.Argument(help="Folder of this run; an interrupted run goes on.", show_default=False)],
    hat: Annotated[
        Path | None, typer.Option(help="Weights of the HAT in front of a U-Net. Default: the preset's, if shipped.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Patches per step, of all processes together.")] = None,
    patch: Annotated[int | None, typer.Option(min=8, help="Side of a patch in low-resolution pixels.")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Input to train on, by the data set's name; repeat for a mixture."),
    ] = None,
    loss: Annotated[Literal["mse", "mae", "mae_ssim", "encoder"] | None, typer.Option(help="The paper's four.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of mae_ssim (0 to 1) or encoder (0 to 0.1). Default: the paper's best.")
    ] = None,
    no_neighbours: Annotated[
        bool, typer.Option("--no-neighbours", help="The control: both neighbours are the current frame.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of the first weights and of the patches.")] = None,
    device: DeviceOption = None,
) -> None:
    """Train HAT, or the U-Net behind a frozen HAT. Weights, curves and pictures go to the run's folder.

    Started by torchrun, it trains on several GPUs. The finished weights:  vsr weights import RUN/weights.safetensors
    --name mine, then  vsr upscale VIDEO --preset mine.
    """
    from dataclasses import replace

    from model.training import TRAIN_PRESETS, Progress
    from model.training import train as run_training

    if preset not in TRAIN_PRESETS:
        raise typer.BadParameter(f"there is no {preset!r}: choose one of {', '.join(TRAIN_PRESETS)}")
    chosen: dict[str, object] = {
        "steps": steps,
        "batch_size": batch_size,
        "patch_px": patch,
        "conditions": dict(_share(text) for text in condition) if condition else None,
        "loss": loss,
        "alpha": alpha,
        "neighbours": "current" if no_neighbours else None,
        "seed": seed,
        "device": device,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    if loss is not None:
        changes["alpha"] = alpha  # The preset's alpha is for the preset's loss.

    config = TRAIN_PRESETS[preset](data, run, hat)
    kept = "interrupted: the same command goes on from the last checkpoint"
    with interruptible(kept), _model_errors(), ExitStack() as shown:
        lines: dict[str, ProgressLine] = {}

        def line(label: str, rate_unit: str) -> ProgressLine:
            if label not in lines:
                shown.close()  # One bar after the other.
                lines[label] = shown.enter_context(ProgressLine(label, rate_unit=rate_unit))
            return lines[label]

        def show(now: Progress) -> None:
            label = f"training, loss {now.loss:.5f}, {now.patches_per_second:.0f} patches/s"
            label += "" if now.psnr_y_db is None else f", {now.psnr_y_db:.2f} dB"
            line("training", "steps/s").update(now.step, now.steps, label=label)

        info = run_training(
            replace(config, **changes),  # type: ignore[arg-type]
            on_progress=show,
            on_caching=lambda done, total: line("enlarging with HAT, once", "frames/s").update(done, total),
        )
    print_result(f"{info.path}")


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share or 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not NAME=SHARE, as in h264=0.5") from error


@training_cli.command(epilog="Example:  vsr evaluate data-set/ --preset compact")
def evaluate(
    data: Annotated[Path, typer.Argument(help="A data set made by `vsr prepare`.", show_default=False)],
    preset: PresetOption = "compact",
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="Which part of the data set.")] = "val",
    frames_per_sequence: Annotated[int | None, typer.Option(min=1, help="Default: all with two neighbours.")] = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare bicubic, Lanczos, HAT alone and the two steps, with and without neighbours, on held-out sequences."""
    from dataclasses import asdict

    from model.evaluation import evaluate as run_evaluation
    from model.evaluation import to_markdown
    from model.presets import load_upscaler
    from model.upscaler import resolve_device

    with _model_errors(), ProgressLine("evaluating", rate_unit="sequences/s", quiet=as_json) as line:
        upscaler = load_upscaler(preset, resolve_device("cpu"), _weights_dir(weights_dir))
        scores = run_evaluation(
            upscaler.hat,
            upscaler.unet,
            data,
            split=split,
            frames_per_sequence=frames_per_sequence,
            on_progress=line.update,
        )
    if as_json:
        print_json([asdict(row) for row in scores])
    else:
        print_result(to_markdown(scores))


def _weights_dir(chosen: Path | None) -> Path:
    from worker.settings import WorkerSettings

    return (chosen or WorkerSettings().weights_dir).expanduser()


@contextmanager
def _model_errors() -> Iterator[None]:
    """The model's own errors as the failures that users know: `model` imports nothing of ours."""
    from model.checkpoints import CheckpointError
    from model.data import DatasetError
    from model.presets import PresetUnavailableError
    from model.training import TrainingError, TrainingStoppedError
    from model.upscaler import DeviceUnavailableError

    try:
        yield
    except CheckpointError as error:
        raise JobFailureError(FailureCode.WEIGHTS_DAMAGED, str(error)) from error
    except PresetUnavailableError as error:
        raise JobFailureError(FailureCode.WEIGHTS_MISSING, str(error)) from error
    except DeviceUnavailableError as error:
        raise JobFailureError(FailureCode.DEVICE_UNAVAILABLE, str(error)) from error
    except TrainingStoppedError as error:  # By Ctrl-C or SIGTERM: not a failure.
        raise KeyboardInterrupt from error
    except (DatasetError, TrainingError) as error:
        raise JobFailureError(FailureCode.UNSUPPORTED_SOURCE, str(error)) from error
