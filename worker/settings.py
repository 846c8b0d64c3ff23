"""What a worker can be told from outside. Names of the environment are the fields' names with `VSR_` before."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.contract.job import DEFAULT_PRESET


class VideoLimits(BaseSettings):
    """The largest source that is accepted. They bound memory and time before a single frame is decoded."""

    model_config = SettingsConfigDict(env_prefix="VSR_", frozen=True)

    max_width: int = Field(4096, ge=16, description="Widest source, in pixels.")
    max_height: int = Field(4096, ge=16, description="Tallest source, in pixels.")
    max_pixels: int = Field(4096 * 2304, ge=256, description="Most pixels in one source frame (width times height).")
    max_frames: int = Field(1_000_000, ge=1, description="Most frames in one source.")
    max_duration_seconds: float = Field(6 * 3600, gt=0, description="Longest source, first frame to last.")
    max_total_pixels: int = Field(
        2_000_000_000_000, ge=256, description="Most pixels of all frames together; six hours of 1080p30 fit."
    )
    max_gap_seconds: float = Field(3600.0, gt=0, description="Longest time from one frame to the next.")
    max_unpacked_bytes: int = Field(
        64 * 1024**3, ge=1, description="Most bytes of a sequence of pictures, unpacked where it is a zip."
    )


CageMode = Literal["required", "best-effort", "off"]


class WorkerSettings(BaseSettings):
    """One worker process, or one run of `vsr upscale`."""

    model_config = SettingsConfigDict(env_prefix="VSR_", frozen=True)

    preset: str = Field(DEFAULT_PRESET, description="Networks to load at start; jobs may name another.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is a GPU, else the CPU.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="What products inside the networks are computed in. auto: bfloat16 on GPUs and on processors that "
        "have instructions for it, else float32. The picture itself is float32 in either.",
    )
    weights_dir: Path = Field(
        default_factory=lambda: Path.home() / ".local" / "share" / "twostep-vsr" / "weights",
        description="Weights that the user imported. Default: ~/.local/share/twostep-vsr/weights",
    )
    batch_frames: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Frames per network call, always exactly so many: the last batch is padded. "
        "None: 8 on a GPU; 1 on a CPU, where more only fall out of its cache.",
    )
    tile_px: int | None = Field(
        None, ge=32, description="Side of a tile in source pixels where memory is short. None: whole frames."
    )
    segment_frames: int | None = Field(
        None,
        ge=1,
        description="Frames that are computed and encoded at a time. None: about four seconds of video; the tests cut "
        "short videos finely with it.",
    )
    cpu_threads: int | None = Field(
        None, ge=1, description="Threads of one worker process. None: an equal share of the cores."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the worker's own /metrics; 0.0.0.0 in a container.")
    metrics_port: int = Field(9100, ge=0, le=65535, description="Port of the worker's own /metrics. 0: any free one.")
    lease_seconds: float = Field(15.0, gt=0, description="A worker silent for longer is taken for lost.")
    stall_seconds: float = Field(
        600.0, gt=0, description="A task without a finished frame for so long is ended. Must exceed the slowest batch."
    )
    drain_seconds: float = Field(
        8.0, gt=0, description="How long a stopping worker may take to give its task back before it is killed."
    )
    reconcile_seconds: float = Field(10.0, gt=0, description="How often lost tasks are looked for.")
    cage: CageMode = Field(
        "best-effort",
        description="Videos are read by a process of its own, without network or other files. best-effort: with "
        "as many of these protections as the system gives, which the log tells; required: not without all; off: no.",
    )
    cage_memory_bytes: int | None = Field(
        None, ge=512 * 1024**2, description="Most address space of that process. None: what the largest source needs."
    )
    cage_stall_seconds: float = Field(
        300.0, gt=0, description="Such a process that shows no progress for so long is ended, and the job fails."
    )
    cuda_visible_devices: str | None = Field(
        None, validation_alias="CUDA_VISIBLE_DEVICES", description="The GPUs that may be used, as CUDA understands it."
    )


_NOT_FOR_WORKERS = ("VSR_API_KEY", "VSR_WEBHOOK_SECRET")


def as_environment(*groups: BaseSettings, **more: str) -> dict[str, str]:
    """The environment for a child process that shall see exactly these settings. The place to hand over passwords.

    Not those of the gateway and its clients: the processes that read strangers' videos shall not know them.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_WORKERS)}
    for settings in groups:
        for name, value in settings:
            if value is not None and name != "cuda_visible_devices":  # which is inherited, or set per process
                text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
                environment[f"VSR_{name.upper()}"] = text
    return environment | more
