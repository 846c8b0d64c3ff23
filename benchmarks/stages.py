"""What everything beside the networks costs: each stage's time against that of the networks, on this machine.

    .venv/bin/python benchmarks/stages.py examples/clip.mp4 --preset compact --rounds 3

Upscales each clip as `vsr upscale` does, on the CPU and with the settings that serving has there, and prints for each
the medians by stage from the jobs' own reports: plan (reading the source whole, once), decode (and colour to RGB),
infer (the networks), encode (and colour from RGB), check (the self-check of quality) and assemble (joining, reading
back, comparing). Encoders go on working on threads of their own while the networks run, which no stage's clock sees:
so the last column compares processor time instead, of a run by the networks and one that repeats pixels in their
place. Clips take turns, so that other load hits them alike. Issue 4 asks that all but the networks take at most 15 % of
the networks' time with preset compact.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from worker.contract.job import JobOptions, VideoCodec
from worker.contract.logs import configure_logging
from worker.contract.presets import REPEAT_PIXELS
from worker.contract.report import Report
from worker.cpu_environment import restart_with_cpu_environment

STAGES = ("plan", "decode", "encode", "check", "assemble")


@dataclass(frozen=True)
class Run:
    report: Report
    processor_seconds: float
    """Of this run, of all threads."""
    beside_networks_seconds: float
    """Of one like it, without networks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", help="videos")
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--codec", type=VideoCodec, choices=list(VideoCodec), help="of the result")
    parser.add_argument("--encoder-preset", default="medium")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    configure_logging(level="ERROR")

    runs: dict[Path, list[Run]] = defaultdict(list)
    upscale = prepared(arguments.preset)
    for _ in range(arguments.rounds):
        for clip in arguments.clips:
            chosen = {"codec": arguments.codec, "encoder_preset": arguments.encoder_preset}
            report, processor_seconds = upscale(clip, JobOptions(preset=arguments.preset, **chosen))
            _, beside_networks_seconds = upscale(clip, JobOptions(preset=REPEAT_PIXELS, **chosen))
            runs[clip].append(Run(report, processor_seconds, beside_networks_seconds))

    print(
        f"preset {arguments.preset}, {arguments.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("ms per frame, and percent of the networks' time; medians")
    print()
    columns = ["clip", "size", "frames", "networks", *STAGES, "all beside the networks", "the same, processor time"]
    print("| " + " | ".join(columns) + " |")
    print("| --- " * len(columns) + "|")
    for clip, measured in runs.items():
        print("| " + " | ".join(row(clip, measured)) + " |")


def prepared(preset: str):  # noqa: ANN201 - torch is loaded behind the settings that it reads at its start
    """Load the networks, and return what upscales a clip into a folder that goes away again."""
    from worker.loaded_models import LoadedModels, usable_device
    from worker.local import upscale_file
    from worker.settings import VideoLimits, WorkerSettings

    settings = WorkerSettings(device="cpu")
    models = LoadedModels(usable_device(settings.device), settings.weights_dir, None)
    models.get(preset)

    def upscale(clip: Path, options: JobOptions) -> tuple[Report, float]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            outcome = upscale_file(
                clip,
                Path(folder) / "result.mkv",
                options,
                settings=settings,
                limits=VideoLimits(),
                load_upscaler=models.get,
            )
            spent = time.process_time() - began
        if outcome.report is None:
            raise SystemExit(f"{clip} was not upscaled")
        return outcome.report, spent

    return upscale


def row(clip: Path, runs: list[Run]) -> list[str]:
    reports = [run.report for run in runs]
    frames, source = reports[0].frames.result, reports[0].source
    networks = statistics.median(report.stage_seconds["infer"] for report in reports)
    seconds = {stage: statistics.median(report.stage_seconds[stage] for report in reports) for stage in STAGES}
    beside = statistics.median(
        sum(report.stage_seconds[stage] for stage in STAGES) / report.stage_seconds["infer"] for report in reports
    )
    in_processor_time = statistics.median(
        run.beside_networks_seconds / (run.processor_seconds - run.beside_networks_seconds) for run in runs
    )
    return [
        clip.name,
        f"{source.width}x{source.height}",
        str(frames),
        f"{1000 * networks / frames:.0f}",
        *(f"{1000 * seconds[stage] / frames:.1f} ({100 * seconds[stage] / networks:.1f} %)" for stage in STAGES),
        f"{100 * beside:.1f} %",
        f"{100 * in_processor_time:.1f} %",
    ]


if __name__ == "__main__":
    restart_with_cpu_environment()  # the settings that serving has
    main()
