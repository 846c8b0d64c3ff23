"""How busy the networks are kept, and what everything beside them costs, on this machine.

    .venv/bin/python benchmarks/stages.py examples/clip.mp4 --preset compact --rounds 3
    .venv/bin/python benchmarks/stages.py examples/clip.mp4 --against COMMIT
    .venv/bin/python benchmarks/stages.py examples/clip.mp4 --device-ms 30

Upscales each clip as `vsr upscale` does, on the CPU and with the settings that serving has there, in a process that has
the networks loaded, and prints medians:

- wall: from the call to the finished file, plan and assembly included; networks alone: their own time for as many
  frames, in the same process, right before and after; their ratio; busy: the share of the wall time that was spent in
  the networks;
- stages, in ms per frame, from the job's own report (`worker.pipeline.StageTimes` says what they are). Those in threads
  of their own overlap with the networks, and encoders go on on threads that no stage's clock sees: so the last column
  is the processor time of a run that repeats pixels in place of the networks, by that of the networks.

`--against` takes turns with the same of another commit, unpacked into a folder of its own: all rounds are
interleaved, so that other load hits both alike. `--device-ms` puts a sleep of so many milliseconds per frame in the
networks' place, as a stand-in for a GPU, which leaves the processor to the others.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = ("plan", "decode", "infer", "wait", "encode", "check", "assemble")
FRAMES_ALONE = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", help="videos")
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--codec", help="of the result")
    parser.add_argument("--encoder-preset", default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="COMMIT", help="an earlier one, to take turns with")
    parser.add_argument("--device-ms", type=float, help="instead of networks: a sleep of so long per frame")
    parser.add_argument("--tell", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tell:
        print(json.dumps(measured(arguments.clips[0], arguments)))
        return

    runs: dict[tuple[Path, str], list[dict[str, Any]]] = defaultdict(list)
    with checked_out(arguments.against) as codes:
        for _ in range(arguments.rounds):
            for clip in arguments.clips:
                for name, folder in codes.items():
                    runs[clip, name].append(in_a_process_of(folder, clip.resolve()))

    device = f"a sleep of {arguments.device_ms} ms per frame" if arguments.device_ms else f"preset {arguments.preset}"
    print(f"{device}, {arguments.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("medians; stages in ms per frame")
    print()
    columns = ["clip", "size", "frames", "code", "wall s", "networks alone s", "wall / alone", "busy", *STAGES]
    columns.append("beside, processor time")
    print("| " + " | ".join(columns) + " |")
    print("| --- " * len(columns) + "|")
    for (clip, name), measures in runs.items():
        print("| " + " | ".join(row(clip, name, measures)) + " |")


@contextmanager
def checked_out(commit: str | None) -> Iterator[dict[str, Path]]:
    """Give the folders with the code to compare, by what it is called in the table."""
    if commit is None:
        yield {"this": REPOSITORY}
        return
    archive = subprocess.run(["git", "-C", str(REPOSITORY), "archive", commit], check=True, stdout=subprocess.PIPE)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        yield {commit: Path(folder), "this": REPOSITORY}


def in_a_process_of(code: Path, clip: Path) -> dict[str, Any]:
    """What `measured` returns in a new process that imports the code in this folder."""
    options = [argument for argument in sys.argv[1:] if not (REPOSITORY / argument).is_file()]
    command = [sys.executable, __file__, str(clip), *options, "--tell"]
    told = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(code)}, cwd=code, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return found


class SleepingDevice:
    """Repeats pixels, after as long as a device would compute that leaves the processor alone."""

    fingerprint = maker = "sleeping-device"

    def __init__(self, seconds_per_frame: float) -> None:
        self._seconds_per_frame = seconds_per_frame

    def __call__(self, previous_lr: Any, center_lr: Any, next_lr: Any) -> Any:  # noqa: ANN401
        until = time.perf_counter() + self._seconds_per_frame * len(center_lr)
        repeated = center_lr.repeat(2, axis=1).repeat(2, axis=2)
        time.sleep(max(0.0, until - time.perf_counter()))
        return repeated


def measured(clip: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Upscale one clip in this process; its report's figures and what the clocks say."""
    # Behind the settings that the libraries read at their start.
    import av
    import numpy as np

    from worker.contract.job import JobOptions
    from worker.contract.logs import configure_logging
    from worker.contract.presets import REPEAT_PIXELS
    from worker.loaded_models import LoadedModels, usable_device
    from worker.local import upscale_file
    from worker.settings import VideoLimits, WorkerSettings

    configure_logging(level="ERROR")
    settings = WorkerSettings(device="cpu")
    models = LoadedModels(usable_device(settings.device), settings.weights_dir, None)
    chosen = {"codec": arguments.codec, "encoder_preset": arguments.encoder_preset}

    def upscaled(preset: str) -> tuple[Any, float, float]:
        device = SleepingDevice(arguments.device_ms / 1000) if arguments.device_ms else models.get(preset)
        with tempfile.TemporaryDirectory() as folder:
            began, processor_began = time.perf_counter(), time.process_time()
            outcome = upscale_file(
                clip,
                Path(folder) / "result.mkv",
                JobOptions(preset=preset, **chosen),
                settings=settings,
                limits=VideoLimits(),
                load_upscaler=lambda preset: device,
            )
            spent = time.perf_counter() - began, time.process_time() - processor_began
        if outcome.report is None:
            raise SystemExit(f"{clip} was not upscaled")
        return outcome.report, *spent

    beside_seconds = None if arguments.device_ms else upscaled(REPEAT_PIXELS)[2]
    networks = SleepingDevice(arguments.device_ms / 1000) if arguments.device_ms else models.get(arguments.preset)
    with av.open(str(clip)) as container:
        width, height = container.streams.video[0].width, container.streams.video[0].height
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    networks(frame, frame, frame)

    def alone() -> tuple[float, float]:
        began, processor_began = time.perf_counter(), time.process_time()
        for _ in range(FRAMES_ALONE):
            networks(frame, frame, frame)
        return time.perf_counter() - began, time.process_time() - processor_began

    before = alone()
    report, wall_seconds, _ = upscaled(arguments.preset)
    after = alone()
    alone_seconds, alone_processor_seconds = (
        (one + other) / 2 / FRAMES_ALONE for one, other in zip(before, after, strict=True)
    )
    frames = report.frames.result
    return {
        "size": f"{report.source.width}x{report.source.height}",
        "frames": frames,
        "wall": wall_seconds,
        "alone": alone_seconds * frames,
        "busy": report.stage_seconds["infer"] / wall_seconds,
        "stages": report.stage_seconds,
        "beside": beside_seconds / (alone_processor_seconds * frames) if beside_seconds else None,
    }


def row(clip: Path, name: str, runs: list[dict[str, Any]]) -> list[str]:
    def median(of: str) -> float:
        middle: float = statistics.median(run[of] for run in runs)
        return middle

    def stage(name: str) -> str:
        if name not in runs[0]["stages"]:
            return ""
        return f"{1000 * statistics.median(run['stages'][name] for run in runs) / runs[0]['frames']:.1f}"

    return [
        clip.name,
        runs[0]["size"],
        str(runs[0]["frames"]),
        name,
        f"{median('wall'):.1f}",
        f"{median('alone'):.1f}",
        f"{statistics.median(run['wall'] / run['alone'] for run in runs):.3f}",
        f"{100 * median('busy'):.1f} %",
        *(stage(name) for name in STAGES),
        f"{100 * median('beside'):.1f} %" if runs[0]["beside"] else "",
    ]


if __name__ == "__main__":
    if "--tell" in sys.argv:
        # The code's own, which for another commit is not this folder's.
        from worker.cpu_environment import restart_with_cpu_environment

        restart_with_cpu_environment()  # the settings that serving has
    main()
