"""Frames per second of presets' two networks, alone and together, on this machine.

    python benchmarks/network.py --preset compact --preset aligned --preset balanced --size 320x180 --threads 2

Speed does not depend on the values of weights, so a preset without weights is measured with random ones, and says so.
Batches of one with the settings that serving has on a CPU; no compilation, two frames of warm-up.
The median is the figure to quote.
"""

import argparse
import os
import statistics
from collections.abc import Callable

import torch

from model.hat import HAT
from model.presets import PRESETS, PresetUnavailableError, load_upscaler
from model.unet import ConditionalUNet
from model.upscaler import TwoStepUpscaler, resolve_device
from worker.benchmark import in_turns, machine, parts_of
from worker.contract.job import DEFAULT_PRESET
from worker.cpu_environment import restart_with_cpu_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=sorted(PRESETS), help="several are run in turns")
    parser.add_argument("--size", default="320x180", help="low-resolution width x height")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    presets = arguments.preset or [DEFAULT_PRESET]

    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    width, height = (int(side) for side in arguments.size.split("x"))
    frames = torch.rand(3, 1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    parts: dict[str, Callable[[], torch.Tensor]] = {}
    with torch.inference_mode():
        for preset in presets:
            networks, weights = load(preset, device)
            parts |= {f"{preset} ({weights}): {part}": run for part, run in parts_of(networks, frames).items()}
        measured = in_turns(parts, arguments.runs, device)

    on = machine(device)
    print(f"{width}x{height} to {2 * width}x{2 * height}, {arguments.runs} runs of each, in turns")
    print(f"{on.processor} ({on.device}), {on.threads} threads, torch {on.torch}, load {on.load}")
    print()
    print("| part | median ms | fastest ms | slowest ms | frames/s (median) |")
    print("|---|---|---|---|---|")
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        print(
            f"| {name} | {1e3 * median:.0f} | {1e3 * min(seconds):.0f} | {1e3 * max(seconds):.0f} | {1 / median:.2f} |"
        )


def load(preset: str, device: torch.device) -> tuple[TwoStepUpscaler, str]:
    """The preset, with random weights where it has none."""
    try:
        return load_upscaler(preset, device, None), "its weights"
    except PresetUnavailableError:
        hat, unet = HAT(PRESETS[preset].hat), ConditionalUNet(PRESETS[preset].unet)
        return TwoStepUpscaler(hat, unet).to(device), "random weights"


if __name__ == "__main__":
    restart_with_cpu_environment()  # the settings that serving has
    main()
