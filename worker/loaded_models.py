"""The networks in this process's memory: each preset is loaded once, and told to those who ask what is loaded."""

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog
import torch
from redis import Redis

from model.checkpoints import CheckpointError
from model.hat_in_bands import release_attention_memory
from model.presets import PresetUnavailableError, find_preset, load_upscaler
from model.upscaler import DeviceUnavailableError, TwoStepUpscaler, resolve_device
from worker import metrics
from worker.assemble import network_name
from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import now
from worker.contract.presets import REPEAT_PIXELS, TEST_PRESETS, LoadedModel, announce_loaded, announce_maker
from worker.free_memory import free_bytes
from worker.gpu_facts import GpuFacts, look_for_gpus, obstacle
from worker.network import NetworkUpscaler
from worker.rendering import REUSE_TILE_PX, Rendering, beginning
from worker.tile_reuse import ReusingUpscaler
from worker.upscaler import PixelRepeater, Upscaler

log = structlog.get_logger(__name__)

_GPU_BATCH_FRAMES = 8
# More at a time only fall out of the cache: 4.2 frames/s one by one, 4.1 by fours (compact, 320x180, two cores).
_CPU_BATCH_FRAMES = 1


def usable_device(name: str, look: Callable[[], GpuFacts] = look_for_gpus) -> torch.device:
    """The device for `auto`, `cuda` or `cpu`. A GPU that was asked for and is not there is a failure, never the CPU.

    The failure names what is missing. `auto` leaves a GPU alone that this torch has no code for, and says so.
    """
    try:
        device = resolve_device(name)
    except DeviceUnavailableError as error:
        raise JobFailureError(
            FailureCode.DEVICE_UNAVAILABLE, f"cuda was asked for: {obstacle(look()) or error}"
        ) from error
    # Torch has seen the GPU: what else the driver could not be asked is no reason to leave it alone.
    if device.type == "cuda" and (found := obstacle(look())) and found.kind == "architecture":
        if name == "cuda":
            raise JobFailureError(FailureCode.DEVICE_UNAVAILABLE, f"cuda was asked for: {found}")
        log.warning("gpu_unusable", reason=str(found))
        return torch.device("cpu")
    return device


def usual_batch_frames(device: torch.device) -> int:
    """Frames per network call where the settings name no number."""
    return _GPU_BATCH_FRAMES if device.type == "cuda" else _CPU_BATCH_FRAMES


class LoadedModels:
    """All presets that were asked for so far, on one device. They stay: all of them together fit on any GPU we name."""

    def __init__(
        self,
        device: torch.device,
        weights_dir: Path,
        tile_px: int | None,
        batch_frames: int | None = None,
        precision: str = "auto",
    ) -> None:
        """`batch_frames`: per network call, as its results depend on it; None: as usual for the device.

        `precision`: as `model.upscaler.TwoStepUpscaler.use_precision` takes it.
        """
        self.device = device
        self._precision = precision
        self.usual_rendering = Rendering(batch_frames=batch_frames or usual_batch_frames(device), tile_px=tile_px)
        self._weights_dir = weights_dir.expanduser()
        self._tile_px = tile_px
        self._upscalers: dict[str, Upscaler] = {}
        self._descriptions: list[LoadedModel] = []

    def get(self, preset: str, rendering: Rendering | None = None, *, reuse: bool = False) -> Upscaler:
        """The preset's networks, for `rendering` or as usual; the first call takes seconds.

        With `reuse`, and where they work in tiles, those that have not changed are not computed again. Raises
        `JobFailureError` where they cannot be loaded.
        """
        upscaler = self._loaded(preset)
        if rendering is None or not isinstance(upscaler, NetworkUpscaler):
            return upscaler
        adjusted = upscaler.adjusted(rendering.batch_frames, rendering.tile_px)
        if not reuse or rendering.tile_px is None:
            return adjusted
        windows = upscaler.adjusted(rendering.batch_frames, None)
        return ReusingUpscaler(windows, rendering.tile_px, adjusted.tile_overlap_px, adjusted.fingerprint)

    def usual_rendering_of(self, *, reuse: bool) -> Rendering:
        """How jobs are rendered where memory is no concern."""
        if reuse and self.usual_rendering.tile_px is None:
            return self.usual_rendering.model_copy(update={"tile_px": REUSE_TILE_PX})
        return self.usual_rendering

    def beginning(self, preset: str, width: int, height: int, *, reuse: bool) -> Rendering:
        """How to begin a job of frames of this size (of the source, in pixels) with the memory that is free now."""
        usual, upscaler = self.usual_rendering_of(reuse=reuse), self._loaded(preset)
        if not isinstance(upscaler, NetworkUpscaler):
            return usual
        self.release_memory()  # what earlier jobs have left to us is free
        free = free_bytes(self.device)
        begun = beginning(usual, free, lambda way: upscaler.needed_bytes(way, width, height), max(width, height))
        if begun != usual:
            log.info("memory_counted", free_bytes=free, usual=str(usual), begun=str(begun))
        return begun

    def _loaded(self, preset: str) -> Upscaler:
        if preset not in self._upscalers:
            began = time.perf_counter()
            upscaler = self._load(preset)
            seconds = time.perf_counter() - began
            scale, description = self._described(preset)
            self._upscalers[preset] = upscaler
            self._descriptions.append(
                LoadedModel(
                    preset=preset,
                    scale=scale,
                    description=description,
                    device=str(self.device),
                    loaded_at=now(),
                    network=network_name(upscaler.fingerprint),
                )
            )
            metrics.start_preset_at_zero(metrics.preset_label(preset))
            metrics.MODEL_LOAD_SECONDS.set(seconds)
            metrics.MODEL_INFO.labels(preset=preset, device=str(self.device)).set(1)
            log.info("model_loaded", preset=preset, device=str(self.device), seconds=round(seconds, 2))
        return self._upscalers[preset]

    def release_memory(self) -> None:
        """Give back what is kept of the memory of a batch that did not fit: by torch of a GPU's, by malloc of ours."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return
        release_attention_memory()
        if sys.platform == "linux":
            # `worker.cpu_environment` has malloc keep everything. Other C libraries than GNU's have no such call.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)

    def announce(self, redis: Redis, ttl_seconds: int) -> None:
        """Say what is loaded; forgotten after `ttl_seconds` unless said again."""
        for description in list(self._descriptions):
            announce_loaded(redis, description, ttl_seconds)
        for upscaler in list(self._upscalers.values()):
            announce_maker(redis, upscaler.maker, ttl_seconds)

    def _described(self, preset: str) -> tuple[int, str]:
        if preset == REPEAT_PIXELS:
            return TwoStepUpscaler.scale, TEST_PRESETS[REPEAT_PIXELS]
        described = find_preset(preset, self._weights_dir)
        return described.scale, described.description

    def _load(self, preset: str) -> Upscaler:
        if preset == REPEAT_PIXELS:
            return PixelRepeater()
        try:
            networks = load_upscaler(preset, self.device, self._weights_dir)
        except ValueError as error:
            raise JobFailureError(FailureCode.UNKNOWN_PRESET, str(error)) from error
        except PresetUnavailableError as error:
            raise JobFailureError(FailureCode.WEIGHTS_MISSING, str(error)) from error
        except CheckpointError as error:
            raise JobFailureError(FailureCode.WEIGHTS_DAMAGED, str(error)) from error
        except torch.cuda.OutOfMemoryError as error:
            raise JobFailureError(FailureCode.OUT_OF_MEMORY, f"the GPU's memory is too small for {preset!r}") from error
        networks.use_precision(self._precision)
        try:
            networks.use_tiles(self._tile_px)
        except ValueError as error:
            raise JobFailureError(FailureCode.INVALID_OPTION, f"{error} (--tile, VSR_TILE_PX)") from error
        return NetworkUpscaler(networks, self.usual_rendering.batch_frames)
