"""`vsr benchmark`: how fast the networks and the whole pipeline are on this machine.

Part of the composition root: torch and av are imported inside the command, as in `app/cli.py`.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli_options import DeviceOption, JsonOption, WeightsDirOption, examples, interruptible
from app.terminal import ProgressLine, print_json, print_result, print_table
from worker.contract.job import DEFAULT_PRESET

if TYPE_CHECKING:
    from worker.benchmark import Machine, PartTimes, PipelineTimes

benchmark_cli = typer.Typer()

_LONGER_PX, _SHORTER_PX, _MINUTES, _FRAMES_PER_SECOND = 1280, 720, 10, 30
"""Of the video that the last line tells of."""


@benchmark_cli.command(
    epilog=examples(
        "vsr benchmark",
        "vsr benchmark film.mkv --preset compact --preset balanced",
        "vsr benchmark --size 640x360 --threads 8 --json",
    )
)
def benchmark(
    video: Annotated[
        Path | None,
        typer.Argument(help="Upscaled whole. Default: a test pattern of --size.", exists=True, show_default=False),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(help=f"Networks and weights; several are measured in turns. Default: {DEFAULT_PRESET}."),
    ] = None,
    size: Annotated[str, typer.Option(help="Of the frame for the networks alone, and of the test pattern.")] = (
        "320x180"
    ),
    runs: Annotated[int, typer.Option(min=1, help="Of each part of the networks; medians are shown.")] = 7,
    frames: Annotated[int, typer.Option(min=1, help="Of the test pattern.")] = 48,
    threads: Annotated[int | None, typer.Option(min=1, help="On a CPU. Default: one per core.")] = None,
    device: DeviceOption = None,
    weights_dir: WeightsDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the networks alone and a whole video by stage, on this machine."""
    width, height = _even_size(size)
    presets = list(dict.fromkeys(preset or [DEFAULT_PRESET]))
    from worker.cpu_environment import restart_with_cpu_environment

    # Before torch is loaded, as `vsr upscale` and the service do.
    restart_with_cpu_environment()
    import torch

    from worker.benchmark import machine, measure_networks, measure_pipeline, write_test_pattern
    from worker.loaded_models import usable_device
    from worker.settings import WorkerSettings

    chosen = {"device": device, "weights_dir": weights_dir}
    settings = WorkerSettings.model_validate({name: value for name, value in chosen.items() if value is not None})
    if threads is not None:
        torch.set_num_threads(threads)
    measured_on = machine(usable_device(settings.device))
    with interruptible("interrupted: nothing was measured to its end"), ExitStack() as stack:
        if video is None:
            video = Path(stack.enter_context(TemporaryDirectory(prefix="vsr-benchmark-"))) / "test-pattern.mp4"
            write_test_pattern(video, width, height, frames)
        pipelines = []
        for name in presets:
            with ProgressLine(f"upscaling with {name}", quiet=as_json) as line:
                pipelines.append(measure_pipeline(name, settings, video, line.update))
        with ProgressLine("networks alone", "runs/s", quiet=as_json) as line:
            parts = measure_networks(presets, settings, width, height, runs, line.update)

    verdict = " ".join(_verdict(pipeline) for pipeline in pipelines)
    if as_json:
        print_json(
            {
                "machine": asdict(measured_on),
                "size": f"{width}x{height}",
                "networks": [asdict(part) | {"frames_per_second": part.frames_per_second} for part in parts],
                "pipeline": [asdict(one) | {"frames_per_second": one.frames_per_second} for one in pipelines],
                "verdict": verdict,
            }
        )
        return
    _print_machine(measured_on)
    print_result(f"\nThe networks alone, one frame of {width}x{height}, {runs} runs of each in turns")
    _print_parts(parts)
    print_result("\nA whole video, from file to file; the stages in ms per frame, some of them at the same time")
    _print_pipelines(pipelines)
    print_result(f"\n{verdict}")


def _print_machine(found: "Machine") -> None:
    on = found.processor if found.device == "cpu" else f"{found.device}, {found.processor}"
    settings = ", ".join(f"{name}={value}" for name, value in found.environment.items()) or "none"
    print_result(f"{on}: {found.cores} cores, {found.threads} threads, torch {found.torch}, load {found.load}")
    print_result(f"settings of memory and threads: {settings}")


def _print_parts(parts: Sequence["PartTimes"]) -> None:
    rows = [
        [one.preset, one.way, one.part]
        + [f"{ms:.1f}" for ms in (one.median_ms, one.fastest_ms, one.slowest_ms)]
        + [f"{one.frames_per_second:.2f}"]
        for one in parts
    ]
    print_table(["preset", "computed by", "part", "median ms", "fastest", "slowest", "frames/s"], rows)


def _print_pipelines(pipelines: Sequence["PipelineTimes"]) -> None:
    stages = list(dict.fromkeys(stage for one in pipelines for stage in one.stage_ms))
    rows = {
        "video": [f"{one.frames} frames of {one.width}x{one.height}" for one in pipelines],
        "frames/s": [f"{one.frames_per_second:.2f}" for one in pipelines],
        "frames/s of a long one": [f"{one.lasting_frames_per_second:.2f}" for one in pipelines],
        "ms per frame": [f"{1000 / one.frames_per_second:.1f}" for one in pipelines],
        **{f"  {stage}": [f"{one.stage_ms.get(stage, 0):.1f}" for one in pipelines] for stage in stages},
        "networks busy": [f"{one.device_busy:.1%} of the time" for one in pipelines],
        "until the first frame": [f"{one.first_frame_seconds:.2f} s" for one in pipelines],
        "loading the networks": [f"{one.load_seconds:.2f} s, before that" for one in pipelines],
        "peak memory": [f"{one.peak_memory_mib:.0f} MiB" for one in pipelines],
    }
    if any(one.peak_gpu_memory_mib for one in pipelines):
        rows["peak memory of the GPU"] = [f"{one.peak_gpu_memory_mib or 0:.0f} MiB" for one in pipelines]
    print_table(["", *(one.preset for one in pipelines)], [[name, *cells] for name, cells in rows.items()])


def _verdict(one: "PipelineTimes") -> str:
    """For people, by the number of pixels, to which the networks' time is about proportional."""
    pixels_per_second = one.lasting_frames_per_second * one.width * one.height
    seconds = _LONGER_PX * _SHORTER_PX * _MINUTES * 60 * _FRAMES_PER_SECOND / pixels_per_second
    return (
        f"With {one.preset} a video of {_MINUTES} minutes, {_SHORTER_PX}p at {_FRAMES_PER_SECOND} frames/s, takes "
        f"about {_duration(seconds)} on this machine."
    )


def _duration(seconds: float) -> str:
    for name, unit in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def _even_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if min(width, height) < 16 or width % 2 or height % 2:
        raise typer.BadParameter(f"{text!r} is not a size such as 320x180, of even numbers from 16 up")
    return width, height
