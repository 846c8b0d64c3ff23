"""The commands around the networks: `vsr weights`, `vsr prepare`, `vsr train`, `vsr evaluate`.

Part of the composition root: torch and av are imported inside the commands, as in `app/cli.py`.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli_options import DeviceName, DeviceOption, JsonOption, WeightsDirOption, examples, interruptible
from app.terminal import ProgressLine, print_json, print_note, print_result, print_table
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import DEFAULT_PRESET

if TYPE_CHECKING:
    from model.data import Dataset

weights_cli = typer.Typer(help="Weight files: what is there, the user's own, and whether they are whole.")
training_cli = typer.Typer()


@weights_cli.command(name="list", epilog=examples("vsr weights list --json"))
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


@weights_cli.command(
    name="import",
    epilog=examples(
        "vsr weights import HAT_SRx2_ImageNet-pretrain.pth",
        "vsr weights import runs/mine/weights.safetensors --name mine",
    ),
)
def import_weights(
    source: Annotated[
        Path,
        typer.Argument(help="A published HAT x2 (.pth), or what `vsr train` made (.safetensors).", show_default=False),
    ],
    name: Annotated[str, typer.Option(help="Its name here; of two networks, the name of your preset.")] = "hat",
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in weights: a published HAT, converted to safetensors, or a run's, for --preset. Nothing is executed."""
    from model.checkpoints import SUFFIX, import_hat
    from model.presets import import_preset

    with _model_errors():
        take_in = import_preset if source.suffix == SUFFIX else import_hat
        info = take_in(source, _weights_dir(weights_dir), name)
    if as_json:
        print_json(vars(info))
    else:
        print_result(f"{info.path}  sha256 {info.sha256}")


@weights_cli.command(name="verify", epilog=examples("vsr weights verify", "vsr weights verify mine.safetensors"))
def verify_weights(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Default: the shipped weights and the imported ones.", show_default=False),
    ] = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read weight files whole and compare every tensor with what it should be."""
    from model.checkpoints import list_checkpoints, verify_checkpoint

    verified = []
    with _model_errors():
        for path in files or [info.path for info in list_checkpoints(_weights_dir(weights_dir))]:
            verified.append(info := verify_checkpoint(path))
            if not as_json:
                print_result(f"{path}: whole, sha256 {info.sha256}")
    if as_json:
        print_json([vars(info) for info in verified])


@training_cli.command(
    epilog=examples("vsr prepare my-videos/ data/ --degrade h264:crf=18-34 --degrade noise:sigma=1-5+vp9:crf=24-45")
)
def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...",
            help="Videos, folders of them or of numbered PNG frames, a folder with index.csv, or OpenVid-1M's.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.", show_default=False)],
    size: Annotated[
        int | None, typer.Option(help="Side of the high resolution in px. Default: crops of 256, or what is there.")
    ] = None,
    fit: Annotated[
        Literal["resize", "crop", "keep"] | None,
        typer.Option(help="Default: crop; sequences of an index.csv are kept as they are."),
    ] = None,
    degrade: Annotated[
        list[str] | None,
        typer.Option(
            help="A condition beside the clean one, may be repeated: h264:crf=18-34, hevc:crf=20-36, vp9:crf=24-45, "
            "jpeg:quality=30-95, noise:sigma=1-10, chroma:420; joined by +, or with one value: h264:crf=28."
        ),
    ] = None,
    sequences_per_video: Annotated[int, typer.Option(min=1, help="At most so many of each, evenly spread.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the split by source video, the crops and the degradations.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, about, in MB.")] = 256,
) -> None:
    """Make a data set: sequences of 25 frames of one shot, at high and low resolution, split by source video.

    Killed and called again, it goes on where it was. Videos that cannot be used are skipped and listed.
    """
    from worker.dataset.prepare import prepare as prepare_dataset

    kept = "interrupted: the same command goes on where it was"
    with interruptible(kept), _model_errors(), ProgressLine("preparing", rate_unit="videos/s") as line:
        dataset = prepare_dataset(
            sources,
            out,
            seed=seed,
            size_px=size,
            fit=fit,
            conditions=degrade or [],
            sequences_per_video=sequences_per_video,
            workers=workers or _cores(),
            shard_bytes=shard_mb * 1024**2,
            on_progress=lambda done, total, name: line.update(done, total),
        )
    splits = {split: sum(entry.split == split for entry in dataset.entries) for split in ("train", "val", "test")}
    print_result(f"{out}: " + ", ".join(f"{count} {split}" for split, count in splits.items()))
    print_result(f"conditions: {', '.join(dataset.conditions)}")
    for skipped in dataset.skipped:
        print_result(f"skipped {skipped.name}: {skipped.reason}")


@training_cli.command(
    epilog=examples(
        "vsr train compact-unet data/ runs/mine",
        "vsr train paper data/ runs/paper --hat weights/hat.safetensors --condition jpeg:quality=75",
        "torchrun --nproc-per-node 2 -m app.cli train compact-unet data/ runs/mine",
    )
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
    start: Annotated[
        Path | None, typer.Option(help="Weights to start from, such as the shipped ones. Default: drawn at random.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Patches per step, of all processes together.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="At its highest; less than the preset's where a run goes on from --start."),
    ] = None,
    patch: Annotated[int | None, typer.Option(min=8, help="Side of a patch in low-resolution pixels.")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[@SHARE]", help="Input to train on, by the data set's name; repeat for a mixture."),
    ] = None,
    loss: Annotated[Literal["mse", "mae", "mae_ssim", "encoder"] | None, typer.Option(help="The paper's four.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of mae_ssim (0 to 1) or encoder (0 to 0.1). Default: the paper's best.")
    ] = None,
    no_neighbours: Annotated[
        bool, typer.Option("--no-neighbours", help="The control: both neighbours are the current frame.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first weights and of the patches.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Train HAT, or the U-Net behind a frozen HAT. Weights, curves and pictures go to the run's folder.

    Started by torchrun, it trains on several GPUs. The finished weights:  vsr weights import RUN/weights.safetensors
    --name mine, then  vsr upscale VIDEO --preset mine.
    """
    from dataclasses import replace

    from model.training.loop import TRAIN_PRESETS, Progress
    from model.training.loop import train as run_training
    from worker.cpu_environment import restart_with_cpu_environment

    restart_with_cpu_environment()
    if preset not in TRAIN_PRESETS:
        raise typer.BadParameter(f"there is no {preset!r}: choose one of {', '.join(TRAIN_PRESETS)}")
    chosen: dict[str, object] = {
        "start_weights": None if start is None else str(start),
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "patch_px": patch,
        "conditions": _shares(condition) if condition else None,
        "loss": loss,
        "alpha": alpha,
        "neighbours": "current" if no_neighbours else None,
        "seed": seed,
        "device": device,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    if loss is not None:
        changes["alpha"] = alpha  # The preset's alpha is for the preset's loss.

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

        config = replace(TRAIN_PRESETS[preset](data, run, hat), **changes)  # type: ignore[arg-type]
        if hat is not None and config.stage == "hat":
            raise typer.BadParameter(f"{preset} trains a HAT, behind no other: weights to go on from are --start's")
        info = run_training(
            config,
            on_progress=show,
            on_caching=lambda done, total: line("enlarging with HAT, once", "frames/s").update(done, total),
        )
    print_result(f"{info.path}")


def _shares(texts: list[str]) -> dict[str, float]:
    shares = dict(_share(text) for text in texts)
    if len(shares) < len(texts):
        raise typer.BadParameter("a condition is named twice: give it one share")
    return shares


def _share(text: str) -> tuple[str, float]:
    """NAME@SHARE, or NAME alone for a share of 1."""
    name, _, share = text.partition("@")
    try:
        return name, float(share or 1)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not NAME@SHARE, as in clean@0.5") from error


@training_cli.command(
    epilog=examples(
        "vsr evaluate data-set/ --preset compact --condition clean --out report/",
        "vsr evaluate my-videos/ --weights runs/mine/weights.safetensors",
        "vsr evaluate data-set/ --sweep --preset compact-unet --steps 2000 --seeds 3 --out sweep/",
    )
)
def evaluate(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A data set of `vsr prepare` (folder or URL), or your own videos or folders of PNG frames.",
            show_default=False,
        ),
    ] = None,
    data_option: Annotated[str | None, typer.Option("--data", metavar="DATA", help="The same as an option.")] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(help="Networks and weights, several times for several. Default: aligned.", show_default=False),
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Or a weight file, as a run leaves it.", show_default=False)
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(
            help="A weight file trained with --no-neighbours, to compare the others with.", show_default=False
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Low-resolution input, by the data set's name for it. Default: all.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(help="Part of the data set. Default: val; all of your own videos.", show_default=False),
    ] = None,
    frames_per_sequence: Annotated[
        int | None,
        typer.Option(min=1, help="A run of so many in the middle. Default: all with two neighbours; of a sweep 5."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.md, report.json and index.html, a page of pictures.")
    ] = None,
    frame_size: Annotated[str, typer.Option(metavar="WxH", help="Low-resolution px for cost and time.")] = "320x180",
    timed_frames: Annotated[int, typer.Option(min=0, help="Their median is the time; 0 measures none.")] = 5,
    device: DeviceOption = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Train the paper's Tables I to III again; --preset is one of `vsr train`.")
    ] = False,
    tables: Annotated[
        str | None,
        typer.Option(help="Of a sweep, separated by commas: I, II, III, output, neighbours. Default: I,II,III."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Of a sweep, per arm. Default: 3.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each run of a sweep. Default: the preset's.")] = None,
    hat: Annotated[Path | None, typer.Option(help="Weights of the frozen HAT of a sweep.")] = None,
) -> None:
    """Compare networks with plain enlargement and with their own controls, on frames whose truth is known.

    Every preset is measured as HAT alone, and as two steps with true neighbours, with the current frame for both
    neighbours, and with the neighbours of another video: PSNR, SSIM, flicker, and what they cost.
    """
    if (data is None) == (data_option is None):
        raise typer.BadParameter("name the data once, as DATA or with --data")
    location = data or data_option or ""
    if sweep:
        if weights or control or len(preset or []) > 1 or out is None:
            raise typer.BadParameter("a sweep takes one --preset of `vsr train`, --hat instead of --weights, and --out")
        _sweep(
            location,
            preset[0] if preset else "compact-unet",
            out,
            hat=hat,
            steps=steps,
            device=device,
            as_json=as_json,
            tables=[table.strip() for table in (tables or "I,II,III").split(",")],
            seeds=seeds or 3,
            split=split or "val",
            conditions=condition or [],
            frames_per_sequence=frames_per_sequence,
        )
        return
    if any(option is not None for option in (tables, seeds, steps, hat)):
        raise typer.BadParameter(
            "--tables, --seeds, --steps and --hat are of a sweep: add --sweep, or name weights with --weights"
        )
    width, height = _frame_size(frame_size)

    from worker.cpu_environment import restart_with_cpu_environment

    # Before torch is loaded: what is timed here is what is served.
    restart_with_cpu_environment()
    from model.evaluation.complexity import measure_costs
    from model.evaluation.contenders import file_contender, preset_contender
    from model.evaluation.page import write_page
    from model.evaluation.report import make_report, provenance_of
    from model.evaluation.scores import evaluate as run_evaluation
    from model.training.run_folder import commit
    from model.upscaler import resolve_device

    presets = preset or ([] if weights else [DEFAULT_PRESET])
    with _model_errors():
        chosen_device = resolve_device(device or "auto")
        try:
            contenders = [preset_contender(name, _weights_dir(weights_dir)) for name in presets]
        except ValueError as error:
            raise JobFailureError(FailureCode.UNKNOWN_PRESET, str(error)) from error
        contenders += [file_contender(path) for path in weights or []]
        contenders += [file_contender(path, is_control=True) for path in control or []]
    labels = [contender.label for contender in contenders]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise typer.BadParameter(f"two of the networks are called {repeated[0]}: rename a file, or a run's folder")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # What cannot be written to is to be known before the work, not after.
    with (
        interruptible("interrupted: nothing was written"),
        _model_errors(),
        _dataset_of(location, condition or [], quiet=as_json) as (dataset, is_prepared),
        ProgressLine("evaluating", "sequences/s", quiet=as_json) as line,
    ):
        chosen_split = split or ("val" if is_prepared else "all")
        scores = run_evaluation(
            dataset,
            contenders,
            split=chosen_split,
            conditions=condition or [],
            frames_per_sequence=frames_per_sequence,
            device=chosen_device,
            on_progress=line.update,
        )
        costs = measure_costs(contenders, width=width, height=height, repetitions=timed_frames, device=chosen_device)
        provenance = provenance_of(
            dataset,
            contenders,
            command=shlex.join(["vsr", *sys.argv[1:]]),
            commit=commit(),
            data=location,
            split=chosen_split,
            frames_per_sequence=frames_per_sequence,
            device=chosen_device,
        )
        report = make_report(provenance, scores, costs, contenders)
        if out is not None:
            report.write(out)
            write_page(report, dataset, contenders, out, chosen_device)
    if as_json:
        sys.stdout.write(report.to_json())
    else:
        print_result(report.to_markdown())
    if out is not None:
        print_note(f"pictures: {out / 'index.html'}")


def _sweep(
    location: str,
    preset: str,
    out: Path,
    *,
    hat: Path | None,
    steps: int | None,
    device: DeviceName | None,
    as_json: bool,
    tables: list[str],
    seeds: int,
    split: str,
    conditions: list[str],
    frames_per_sequence: int | None,
) -> None:
    """`vsr evaluate --sweep`."""
    from dataclasses import replace

    from model.data import Dataset
    from model.evaluation.sweep import SCORED_FRAMES, TABLES, run_sweep
    from model.training.presets import TRAIN_PRESETS

    unets = [name for name in TRAIN_PRESETS if not name.endswith("-hat")]
    if preset not in unets:
        raise typer.BadParameter(f"a sweep cannot train {preset!r}: choose one of {', '.join(unets)}")
    if unknown := [table for table in tables if table not in TABLES]:
        raise typer.BadParameter(f"there is no table {unknown[0]!r}: choose of {', '.join(TABLES)}")
    kept = "interrupted: the same command goes on from the last checkpoint"
    with interruptible(kept), _model_errors(), ProgressLine("sweeping", "runs/s", quiet=as_json) as line:
        dataset = Dataset.open(location)
        base = TRAIN_PRESETS[preset](location, out, hat)
        if steps is not None:
            base = replace(base, steps=steps, epochs=None)
        if device is not None:
            base = replace(base, device=device)
        if conditions:
            base = replace(base, conditions=dict.fromkeys(conditions, 1.0))
        result = run_sweep(
            dataset,
            base,
            out,
            tables=tables,
            seeds=seeds,
            split=split,
            conditions=conditions,
            frames_per_sequence=frames_per_sequence or SCORED_FRAMES,
            on_progress=lambda done, total, name: line.update(done, total, label=f"sweeping, {name}"),
        )
        result.write(out)
    if as_json:
        sys.stdout.write(result.to_json())
    else:
        print_result(result.to_markdown())


@contextmanager
def _dataset_of(location: str, conditions: list[str], *, quiet: bool) -> "Iterator[tuple[Dataset, bool]]":
    """A data set opened, and True; or the user's own material made into one for as long as this lasts, and False."""
    from model.data import CLEAN, MANIFEST, Dataset, is_remote
    from worker.dataset.prepare import prepare as prepare_dataset

    if is_remote(location) or (Path(location) / MANIFEST).is_file() or not Path(location).exists():
        yield Dataset.open(location), True
        return
    with TemporaryDirectory(prefix="vsr-evaluate-") as folder:
        with ProgressLine("preparing", "videos/s", quiet=quiet) as line:
            dataset = prepare_dataset(
                [Path(location)],
                Path(folder) / "data-set",
                fit="keep",
                conditions=[condition for condition in conditions if condition != CLEAN],
                workers=_cores(),
                on_progress=lambda done, total, name: line.update(done, total),
            )
        for skipped in dataset.skipped:
            print_note(f"skipped {skipped.name}: {skipped.reason}")
        yield dataset, False


def _frame_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(f"{text!r} is not a size such as 320x180")
    return int(width), int(height)


def _cores() -> int:
    """Those that this process may use: fewer than the machine's in a container with a CPU set."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _weights_dir(chosen: Path | None) -> Path:
    from worker.settings import WorkerSettings

    return (chosen or WorkerSettings().weights_dir).expanduser()


@contextmanager
def _model_errors() -> Iterator[None]:
    """The model's own errors as the failures that users know: `model` imports nothing of ours."""
    from model.checkpoints import CheckpointError
    from model.data import DatasetError
    from model.presets import PresetUnavailableError
    from model.training.config import CannotWriteError
    from model.training.loop import TrainingError, TrainingStoppedError
    from model.upscaler import DeviceUnavailableError

    try:
        yield
    except CheckpointError as error:
        raise JobFailureError(FailureCode.WEIGHTS_DAMAGED, str(error)) from error
    except PresetUnavailableError as error:
        raise JobFailureError(FailureCode.WEIGHTS_MISSING, str(error)) from error
    except DeviceUnavailableError as error:
        raise JobFailureError(FailureCode.DEVICE_UNAVAILABLE, str(error)) from error
    except CannotWriteError as error:
        raise JobFailureError(FailureCode.OUT_OF_DISK, str(error)) from error
    except TrainingStoppedError as error:  # By Ctrl-C or SIGTERM: not a failure.
        raise KeyboardInterrupt from error
    except (DatasetError, TrainingError) as error:
        raise JobFailureError(FailureCode.UNSUPPORTED_SOURCE, str(error)) from error
