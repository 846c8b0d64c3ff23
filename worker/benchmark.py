"""What `vsr benchmark` measures: a preset's networks part by part, and a whole video by stage, on this machine.

The parts take turns, run after run, so that whatever else the machine does hits them alike; the median is the figure
to quote. A video is upscaled as `vsr upscale` does it, from the file to the file.
"""

import math
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.hardware import cpu_name
from model.presets import load_upscaler
from model.upscaler import TwoStepUpscaler
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import JobOptions, Progress, VideoCodec
from worker.cpu_environment import CPU_ENVIRONMENT
from worker.loaded_models import LoadedModels, usable_device
from worker.local import upscale_file
from worker.network import NetworkUpscaler
from worker.settings import VideoLimits, WorkerSettings
from worker.video.encode import encode_frames
from worker.video.frames import Frame
from worker.video.values import Colour, Encoding, Picture

_Name = TypeVar("_Name")

WARM_UP_RUNS = 2
_PATTERN_FRAMES_PER_SECOND = 24


@dataclass(frozen=True)
class Machine:
    """What figures were measured on: without it they say nothing."""

    processor: str
    cores: int
    """That this process may use."""
    device: str
    """The GPU's name, or "cpu"."""
    threads: int
    torch: str
    load: float
    """Processes that wanted to run, over the last minute, before this."""
    environment: dict[str, str]
    """Of the memory allocator and of threads, as far as it is set."""


@dataclass(frozen=True)
class PartTimes:
    """One part of a preset's networks on one frame."""

    preset: str
    way: str
    """How it is computed, e.g. "torch, float32"."""
    part: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float

    @property
    def frames_per_second(self) -> float:
        return 1000 / self.median_ms


@dataclass(frozen=True)
class PipelineTimes:
    """One video, from its file to the finished one, with networks that were loaded before."""

    preset: str
    width: int
    height: int
    frames: int
    load_seconds: float
    first_frame_seconds: float
    """From the start until the first frame is encoded."""
    wall_seconds: float
    stage_ms: dict[str, float]
    """Per frame, as the report names the stages."""
    lasting_frames_per_second: float
    """Without what a video of any length takes once: the rate of a long one."""
    device_busy: float
    """The share of the wall time that was spent in the networks."""
    peak_memory_mib: float
    """Of this process; what reads the video is another."""
    peak_gpu_memory_mib: float | None

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.wall_seconds


def machine(device: torch.device) -> Machine:
    names = (*CPU_ENVIRONMENT, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LD_PRELOAD")
    return Machine(
        processor=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load=round(os.getloadavg()[0], 1),
        environment={name: os.environ[name] for name in names if name in os.environ},
    )


# --- the networks alone -----------------------------------------------------------------------------------------------


def ways_of(preset: str, device: torch.device, weights_dir: Path) -> dict[str, TwoStepUpscaler]:
    """The ways to compute a preset here: as the service does, in both precisions."""
    ways = {}
    for precision in ("bfloat16", "float32"):
        networks = load_upscaler(preset, device, weights_dir)
        networks.use_precision(precision)
        ways[networks.arithmetic] = networks
    return ways


def measure_networks(
    presets: Sequence[str],
    settings: WorkerSettings,
    width: int,
    height: int,
    runs: int,
    on_progress: Callable[[int, int], None],
) -> list[PartTimes]:
    """Times of HAT, of the U-Net behind it and of both, on one frame of `width` x `height` px.

    `on_progress` hears of the runs done and of all. The presets' weights must be there.
    """
    device = usable_device(settings.device)
    frames = torch.rand(3, 1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    parts: dict[tuple[str, str, str], Callable[[], Tensor]] = {}
    with torch.inference_mode():
        for preset in presets:
            for way, networks in ways_of(preset, device, settings.weights_dir.expanduser()).items():
                parts |= {(preset, way, part): run for part, run in parts_of(networks, frames).items()}
        seconds = in_turns(parts, runs, device, on_progress)
    return [
        PartTimes(
            *name,
            median_ms=1000 * statistics.median(measured),
            fastest_ms=1000 * min(measured),
            slowest_ms=1000 * max(measured),
        )
        for name, measured in seconds.items()
    ]


def parts_of(networks: TwoStepUpscaler, frames: Tensor) -> dict[str, Callable[[], Tensor]]:
    """HAT, the U-Net behind it, and both, on the previous, the centre and the next frame, (3, 1, 3, H, W)."""
    previous_lr, center_lr, next_lr = frames
    center_sr = networks.enlarge(center_lr)
    return {
        "HAT": lambda: networks.enlarge(center_lr),
        "U-Net": lambda: networks.refine(center_sr, previous_lr, next_lr),
        "both steps": lambda: networks(previous_lr, center_lr, next_lr),
    }


def in_turns(
    parts: dict[_Name, Callable[[], Tensor]],
    runs: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] = lambda done, of_all: None,
) -> dict[_Name, list[float]]:
    """Seconds of each run after the warm-up; the parts take turns, so that other load hits them alike."""
    seconds: dict[_Name, list[float]] = {name: [] for name in parts}
    for run in range(WARM_UP_RUNS + runs):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if run >= WARM_UP_RUNS:
                seconds[name].append(time.perf_counter() - began)
        on_progress(run + 1, WARM_UP_RUNS + runs)
    return seconds


# --- a whole video ----------------------------------------------------------------------------------------------------


def measure_pipeline(
    preset: str, settings: WorkerSettings, video: Path, on_progress: Callable[[int, int], None]
) -> PipelineTimes:
    """Upscale `video` into a folder that goes away again. `on_progress` hears of frames done and of all.

    Raises `JobFailureError`.
    """
    device = usable_device(settings.device)
    began = time.perf_counter()
    models = LoadedModels(device, settings.weights_dir, settings.tile_px, settings.batch_frames, settings.precision)
    if not isinstance(models.get(preset), NetworkUpscaler):
        raise JobFailureError(FailureCode.INVALID_OPTION, f"{preset} has no networks to measure")
    load_seconds = time.perf_counter() - began

    first_frame_seconds = math.inf

    def note(progress: Progress) -> None:
        nonlocal first_frame_seconds
        if progress.frames_done:
            first_frame_seconds = min(first_frame_seconds, time.perf_counter() - began)
        on_progress(progress.frames_done, progress.frames_total)

    _forget_peak_memory(device)
    with tempfile.TemporaryDirectory(prefix="vsr-benchmark-") as folder:
        began = time.perf_counter()
        outcome = upscale_file(
            video,
            Path(folder) / "result.mkv",
            JobOptions(preset=preset, drop_unsupported=True),
            settings=settings,
            limits=VideoLimits(),
            on_progress=note,
            load_upscaler=models.get,
        )
        wall_seconds = time.perf_counter() - began
    report = outcome.report
    assert report is not None  # there was nothing at the output before
    assert report.frames_per_second is not None  # there are frames
    frames = report.frames.result
    return PipelineTimes(
        preset=preset,
        width=report.source.width,
        height=report.source.height,
        frames=frames,
        load_seconds=load_seconds,
        first_frame_seconds=first_frame_seconds,
        wall_seconds=wall_seconds,
        stage_ms={stage: 1000 * seconds / frames for stage, seconds in report.stage_seconds.items()},
        lasting_frames_per_second=report.frames_per_second,
        device_busy=report.stage_seconds["infer"] / wall_seconds,
        peak_memory_mib=_peak_memory_mib(),
        peak_gpu_memory_mib=torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    )


def write_test_pattern(path: Path, width: int, height: int, frames: int) -> None:
    """A video for whoever has none at hand: waves that drift, with grain, so that every frame has work for everybody.

    H.264 in mp4; `width` and `height` are even.
    """
    picture = Picture(
        width=width,
        height=height,
        pixel_format="yuv420p",
        bit_depth=8,
        colour=Colour(matrix=6, range=1, primaries=6, transfer=6, conversion="smpte170m", chroma_location="left"),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )
    encoding = Encoding(
        codec=VideoCodec.H264,
        crf=20,
        encoder_preset="veryfast",
        average_rate=Fraction(_PATTERN_FRAMES_PER_SECOND),
        time_base=Fraction(1, _PATTERN_FRAMES_PER_SECOND),
    )
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]

    def pattern(number: int) -> Frame:
        waves = [127 + 90 * np.sin((x * a + y * b) / 23 + number / 7) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.7))]
        return Frame(np.clip(np.stack(waves, axis=-1) + np.roll(grain, number, axis=1), 0, 255).astype(np.uint8))

    for _ in encode_frames(map(pattern, range(frames)), range(frames), picture, encoding, path, made_by="test pattern"):
        pass


def _forget_peak_memory(device: torch.device) -> None:
    """Of what was before. Where the system cannot, the peak is that of the process's whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_mib() -> float:
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
