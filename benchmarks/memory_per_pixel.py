"""What one frame needs of memory on its way through the networks, per pixel of the source, on a CPU.

    .venv/bin/python benchmarks/memory_per_pixel.py --presets compact aligned balanced --sizes 640x360 1280x720

Each frame goes through in a process of its own, with the settings of `worker.cpu_environment`. Prints by how much the
resident memory (VmHWM) and the address space (VmPeak) rose above what the loaded networks occupy, and both per pixel:
`worker.network` counts with a little more than the usual. `paper-random` is `paper` with weights drawn at random.
"""

import argparse
import os
import subprocess
import sys

from worker.cpu_environment import CPU_ENVIRONMENT

MEASURE = """
import re, sys
from pathlib import Path
import numpy as np, torch
from model.presets import PRESETS, load_upscaler, random_upscaler
from worker.network import NetworkUpscaler

def status(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024

preset, width, height, tile_px = sys.argv[1], *map(int, sys.argv[2:])
cpu = torch.device("cpu")
networks = random_upscaler(PRESETS["paper"]) if preset == "paper-random" else load_upscaler(preset, cpu, None)
networks.use_tiles(tile_px or None)
upscaler = NetworkUpscaler(networks, 1)

def frames(width, height):
    return [np.random.default_rng(n).integers(0, 255, (1, height, width, 3), dtype=np.uint8) for n in range(3)]

upscaler(*frames(32, 32))
given = frames(width, height)
before = status("VmRSS"), status("VmSize")
upscaler(*given)
print(status("VmHWM") - before[0], status("VmPeak") - before[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["compact", "aligned", "balanced"])
    parser.add_argument("--sizes", nargs="+", default=["640x360", "1280x720"])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0], help="side in pixels; 0: whole frames")
    arguments = parser.parse_args()

    print("| preset | frame | tile | resident, MiB | address space, MiB | bytes per pixel | of address space |")
    print("| --- " * 7 + "|")
    for preset in arguments.presets:
        for size in arguments.sizes:
            for tile_px in arguments.tiles:
                width, height = map(int, size.split("x"))
                command = [sys.executable, "-c", MEASURE, preset, str(width), str(height), str(tile_px)]
                output = subprocess.check_output(command, env=os.environ | CPU_ENVIRONMENT, text=True)
                resident, space = map(int, output.split())
                pixels = width * height
                print(
                    f"| {preset} | {size} | {tile_px or 'whole'} | {resident / 2**20:.0f} | {space / 2**20:.0f} "
                    f"| {resident / pixels:.0f} | {space / pixels:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
