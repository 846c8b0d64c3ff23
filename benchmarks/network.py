"""Frames per second of presets' two networks, alone and together, on this machine.

    python benchmarks/network.py --preset compact --preset aligned --preset balanced --size 320x180 --threads 2

Speed does not depend on the values of weights, so a preset without weights is measured with random ones, and says so.
Batches of one with the settings that serving has on a CPU; no compilation, two frames of warm-up.
The median is the figure to quote.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.hat import HAT
from model.presets import PRESETS, PresetUnavailableError, load_upscaler
from model.unet import ConditionalUNet
from model.upscaler import TwoStepUpscaler, resolve_device
from worker.contract.job import DEFAULT_PRESET
from worker.cpu_environment import restart_with_cpu_environment

WARM_UP_RUNS = 2


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
    for preset in presets:
        upscaler, weights = load(preset, device)
        parts |= parts_of(upscaler, f"{preset} ({weights})", frames)
    measured = measure(parts, arguments.runs, device)

    print(f"{width}x{height} to {2 * width}x{2 * height}, {arguments.runs} runs of each, in turns")
    print(f"{processor(device)}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print()
    print("| part | median ms | fastest ms | slowest ms | frames/s (median) |")
    print("|---|---|---|---|---|")
    for name, seconds in measured.items():
        median = statistics.median(seconds)
        print(
            f"| {name} | {1e3 * median:.0f} | {1e3 * min(seconds):.0f} | {1e3 * max(seconds):.0f} | {1 / median:.2f} |"
        )


def parts_of(upscaler: TwoStepUpscaler, label: str, frames: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """HAT, the U-Net behind it, and both, each on (3, 1, 3, H, W): the previous, the centre and the next frame."""
    previous_lr, center_lr, next_lr = frames
    center_sr = upscaler.enlarge(center_lr)
    return {
        f"{label}: HAT": lambda: upscaler.enlarge(center_lr),
        f"{label}: U-Net": lambda: upscaler.refine(center_sr, previous_lr, next_lr),
        f"{label}: two steps": lambda: upscaler(previous_lr, center_lr, next_lr),
    }


def load(preset: str, device: torch.device) -> tuple[TwoStepUpscaler, str]:
    """The preset, with random weights where it has none."""
    try:
        return load_upscaler(preset, device, None), "its weights"
    except PresetUnavailableError:
        hat, unet = HAT(PRESETS[preset].hat), ConditionalUNet(PRESETS[preset].unet)
        return TwoStepUpscaler(hat, unet).to(device), "random weights"


def measure(parts: dict[str, Callable[[], torch.Tensor]], runs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each run after the warm-up; the parts take turns, so that other load hits them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with torch.inference_mode():
        for run in range(WARM_UP_RUNS + runs):
            for name, function in parts.items():
                start = time.perf_counter()
                function()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if run >= WARM_UP_RUNS:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def processor(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    restart_with_cpu_environment()  # the settings that serving has
    main()
