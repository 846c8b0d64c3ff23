"""What the settings of `worker.cpu_environment` and the batch size are worth on this machine.

    .venv/bin/python benchmarks/cpu_environment.py --rounds 2 [--beside-a-busy-process]

Each setting runs in a process of its own, since glibc and OpenMP read theirs once; settings take turns, round after
round. Prints the median frames/s of each (320x180 in, frames in and out as the pipeline hands them over).
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack

from worker.cpu_environment import CPU_ENVIRONMENT

MALLOC = {name: value for name, value in CPU_ENVIRONMENT.items() if name.startswith("MALLOC_")}
SETTINGS = {
    "sleeping threads": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning threads": {"OMP_WAIT_POLICY": "ACTIVE"},
    "sleeping threads, kept memory": {"OMP_WAIT_POLICY": "PASSIVE"} | MALLOC,
    "spinning threads, kept memory": {"OMP_WAIT_POLICY": "ACTIVE"} | MALLOC,
    "ours: briefly spinning threads, kept memory": CPU_ENVIRONMENT,
}
MEASURE = """
import sys, time, statistics
from pathlib import Path
import numpy as np, torch
from worker.loaded_models import LoadedModels
from worker.contract.logs import configure_logging
configure_logging(level="ERROR")
upscaler = LoadedModels(torch.device("cpu"), Path("/nonexistent"), None).get("compact")
batch = int(sys.argv[1])
frames = [np.random.default_rng(n).integers(0, 255, (batch, 180, 320, 3), dtype=np.uint8) for n in range(3)]
upscaler(*frames)
seconds = []
for _ in range(max(3, 8 // batch)):
    began = time.perf_counter()
    upscaler(*frames)
    seconds.append((time.perf_counter() - began) / batch)
print(1 / statistics.median(seconds))
"""
BUSY = "import torch\na = torch.rand(1500, 1500)\nwhile True: a @ a"


def frames_per_second(setting: dict[str, str], batch: int) -> float:
    return float(
        subprocess.check_output([sys.executable, "-c", MEASURE, str(batch)], env=os.environ | setting, text=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--beside-a-busy-process", action="store_true", help="of as many threads as there are cores")
    arguments = parser.parse_args()

    measured: dict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        if arguments.beside_a_busy_process:
            busy = subprocess.Popen([sys.executable, "-c", BUSY], env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        for _ in range(arguments.rounds):
            for name, setting in SETTINGS.items():
                for batch in arguments.batches:
                    measured[name, batch].append(frames_per_second(setting, batch))

    print("| setting | " + " | ".join(f"batch {batch}" for batch in arguments.batches) + " |")
    print("| --- " * (1 + len(arguments.batches)) + "|")
    for name in SETTINGS:
        cells = [f"{statistics.median(measured[name, batch]):.2f}" for batch in arguments.batches]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
