"""Seconds from the start of `vsr upscale` to its first finished frame: what a user waits for until something moves.

    .venv/bin/python benchmarks/first_frame.py examples/clip.mp4 --preset compact --rounds 5

Runs the command in a process of its own, which ends when its first frame has been encoded, and prints the median from
the start of the process; files were read before, so that nothing waits for a disk.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seconds_until_first_frame(arguments.clip, arguments.preset)
    measured = [seconds_until_first_frame(arguments.clip, arguments.preset) for _ in range(arguments.rounds)]
    print(f"preset {arguments.preset}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{statistics.median(measured):.2f} s ({min(measured):.2f} to {max(measured):.2f}), {arguments.rounds} runs")


def seconds_until_first_frame(clip: Path, preset: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        upscale = ["upscale", str(clip), str(Path(folder) / "out.mp4"), "--preset", preset, "--device", "cpu"]
        began = time.perf_counter()
        subprocess.run([sys.executable, __file__, *upscale], check=True)
        return time.perf_counter() - began


def end_at_first_frame() -> None:
    import worker.local
    from app.cli import main as vsr

    worker.local._Progress.frames_done = lambda self, index, in_segment: os._exit(0)  # type: ignore[method-assign]
    vsr()


if __name__ == "__main__":
    if sys.argv[1:2] == ["upscale"]:
        end_at_first_frame()
    else:
        main()
