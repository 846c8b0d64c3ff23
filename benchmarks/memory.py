"""Peak memory of an upscale against the length of the video: it must be flat.

    .venv/bin/python benchmarks/memory.py --seconds 10 120

Generates a moving picture of each length, runs `vsr upscale` on it in a process of its own, and prints the peak
resident memory that the kernel counted for that process.
"""

import argparse
import os
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, seconds: int, frames_per_second: int, width: int, height: int) -> int:
    """A drifting plasma with grain, H.264; returns its number of frames."""
    frames = seconds * frames_per_second
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            waves = [127 + 90 * np.sin((x * a + y * b) / 23 + index / 7) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.7))]
            picture = np.clip(np.stack(waves, axis=-1) + np.roll(grain, index, axis=1), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, frames_per_second)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return frames


def peak_memory_mib(command: list[str]) -> float:
    """Run a command to its end; peak resident memory of that process alone, in MiB."""
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 120])
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--preset", default="aligned")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    vsr = str(Path(sys.executable).with_name("vsr"))

    print("| video | frames | peak memory | ratio |\n| --- | --- | --- | --- |")
    first: float | None = None
    for seconds in arguments.seconds:
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "in.mp4", Path(folder) / "out.mp4"
            frames = write_video(source, seconds, arguments.fps, width, height)
            peak = peak_memory_mib([vsr, "upscale", str(source), str(output), "--preset", arguments.preset])
        first = first or peak
        print(f"| {seconds} s of {arguments.size} | {frames} | {peak:.0f} MiB | {peak / first:.3f} |", flush=True)


if __name__ == "__main__":
    main()
