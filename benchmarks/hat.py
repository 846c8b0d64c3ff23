"""HAT against its own formula: how much faster each way of computing it is, how far from it, and what memory it takes.

    .venv/bin/python benchmarks/hat.py --preset paper --size 64x64 --threads 1
    .venv/bin/python benchmarks/hat.py --preset compact --size 320x184 --threads 2

The formula is `benchmarks/reference_hat.py`, eager float32; "whole frame" is `model.hat` as it trains, with torch's
fused attention; the others are `model.hat_in_bands`. All take turns in one process with the same weights and frame;
presets without shipped weights draw them at random. The error is the greatest, and the mean, in levels of 8 bits.
Memory is by how much the greatest resident memory during a run exceeds that before it, in the first run and at least in
any: the first also prepares what stays, such as converted weights. The allocator is glibc's as it comes: with the
settings of `worker.cpu_environment` the formula itself runs 1.5 times as fast (--served). Sides are multiples of 16.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.reference_hat import reference_forward
from model.hardware import cpu_name
from model.hat import HAT
from model.hat_in_bands import BandAttention, HATInBands, attend_by_torch
from model.presets import PRESETS, load_upscaler
from worker.cpu_environment import CPU_ENVIRONMENT, restart_with_cpu_environment

PROCESS = Path("/proc/self")
SHOWN_OPERATIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=list(PRESETS))
    parser.add_argument("--size", default="64x64", help="width x height of the frame")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9, help="of each way; medians are shown")
    parser.add_argument("--served", action="store_true", help="with the allocator settings of the service")
    parser.add_argument("--profile", action="store_true", help="show where the time of the bands goes, too")
    arguments = parser.parse_args()
    if arguments.served:
        restart_with_cpu_environment()
    torch.set_num_threads(arguments.threads)
    width, height = (int(side) for side in arguments.size.split("x"))
    hat = hat_of(arguments.preset)
    frame = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))

    ways = ways_of(hat)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    grown_bytes: dict[str, list[int]] = {name: [] for name in ways}
    outputs: dict[str, Tensor] = {}
    with torch.inference_mode():
        for run in range(1 + arguments.runs):
            for name, way in ways.items():
                before = resident_bytes("VmRSS", forget_peak=True)
                start = time.perf_counter()
                outputs[name] = way(frame)
                if run:  # The first prepares.
                    seconds[name].append(time.perf_counter() - start)
                grown_bytes[name].append(resident_bytes("VmHWM") - before)

    allocator = "as served" if os.environ.keys() >= CPU_ENVIRONMENT.keys() else "glibc's defaults"
    print(f"HAT of {arguments.preset}, {width}x{height}, {arguments.threads} threads, {arguments.runs} runs in turns")
    print(f"{cpu_name()}, torch {torch.__version__}, allocator {allocator}, load {os.getloadavg()[0]:.1f}")
    print()
    print("| way | median ms | fastest ms | times the formula's speed | error max, mean | MiB first, later |")
    print("| --- " * 6 + "|")
    formula, *_ = outputs.values()
    formula_ms, *_ = (1000 * statistics.median(measured) for measured in seconds.values())
    for name, measured in seconds.items():
        median_ms = 1000 * statistics.median(measured)
        error = 255 * (outputs[name] - formula).abs()
        first, *later = (grown / 2**20 for grown in grown_bytes[name])
        print(
            f"| {name} | {median_ms:.0f} | {1000 * min(measured):.0f} | {formula_ms / median_ms:.2f} "
            f"| {float(error.max()):.2g}, {float(error.mean()):.2g} | {first:.0f}, {statistics.median(later):.0f} |"
        )
    if arguments.profile:
        for name, way in ways.items():
            if name.startswith("bands"):
                print(f"\n{name}\n")
                print_profile(way, frame)


def print_profile(way: Callable[[Tensor], Tensor], frame: Tensor) -> None:
    """Shares of one run by torch's operations; what is not torch's (OpenVINO, Python) is the rest."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as measured:
        start = time.perf_counter()
        way(frame)
        seconds = time.perf_counter() - start
    operations = sorted(measured.key_averages(), key=lambda one: one.self_cpu_time_total, reverse=True)
    shares = {one.key: one.self_cpu_time_total / 1e6 / seconds for one in operations}
    shown = dict(list(shares.items())[:SHOWN_OPERATIONS])
    for name, share in (shown | {"other operations": sum(shares.values()) - sum(shown.values())}).items():
        print(f"| {name} | {share:.1%} |")
    print(f"| the rest | {1 - sum(shares.values()):.1%} |")


def hat_of(preset: str) -> HAT:
    if PRESETS[preset].weights == "shipped":
        return load_upscaler(preset, torch.device("cpu"), None).hat
    torch.manual_seed(0)
    return HAT(PRESETS[preset].hat).eval().requires_grad_(False)


def ways_of(hat: HAT) -> dict[str, Callable[[Tensor], Tensor]]:
    """The formula first."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "formula": lambda frame: reference_forward(hat, frame),
        "whole frame, float32": hat,
    }
    kernels: dict[str, BandAttention] = {"torch": attend_by_torch}
    if find_spec("openvino") is not None:
        from model.openvino_attention import attend_in_band

        kernels["openvino"] = attend_in_band
    for numbers, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        for kernel, attend in kernels.items():
            ways[f"bands, {numbers}, {kernel}"] = HATInBands(hat, dtype, attend, kernel)
    return ways


def resident_bytes(name: str, *, forget_peak: bool = False) -> int:
    """VmRSS or VmHWM of this process; Linux alone has them. `forget_peak`: VmHWM counts from now on."""
    if forget_peak:
        (PROCESS / "clear_refs").write_text("5")
    found = re.search(rf"^{name}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
