"""The networks of `model` as the pipeline's `Upscaler`: arrays of whole numbers in and out, tensors in between."""

from copy import copy

import numpy as np
import torch
from torch import Tensor

from model.checkpoints import sha256_of
from model.step_clock import StepClock
from model.upscaler import TwoStepUpscaler
from worker.contract.failure import FailureCode, JobFailureError
from worker.rendering import Rendering
from worker.upscaler import FrameBatch

_BYTES_PER_CHANNEL = 70
"""Memory per pixel of the source and channel of HAT while a window goes through both networks."""
_BYTES_PER_FRAME_PIXEL = 1000
"""Memory per pixel of the source for whole frames: decoded, made into tensors and back, waiting in the encoder."""


class NetworkUpscaler:
    """Runs a `TwoStepUpscaler` on frames as they come from the decoder; see `worker.upscaler.Upscaler`."""

    def __init__(self, networks: TwoStepUpscaler, batch_frames: int) -> None:
        """`batch_frames`: how many frames every call will bring; other numbers work, and may give other bits."""
        self._networks = networks
        self._clock = networks.clock = StepClock()
        self._batch_frames = batch_frames
        self._tile_px = networks.tile_px
        self._weights = sha256_of({name: tensor.cpu() for name, tensor in networks.state_dict().items()})[:32]

    def adjusted(self, batch_frames: int, tile_px: int | None) -> "NetworkUpscaler":
        """The same networks, in memory once, for other batches and tiles."""
        other = copy(self)
        other._batch_frames, other._tile_px = batch_frames, tile_px
        return other

    @property
    def fingerprint(self) -> str:
        """The weights, and what else changes bits: tiles, the arithmetic, the batch."""
        tiles = f"-tiles{self._tile_px}" if self._tile_px else ""
        return f"{self._weights}{tiles}-{self._networks.arithmetic}-b{self._batch_frames}"

    @property
    def maker(self) -> str:
        """The weights and the arithmetic; see `worker.upscaler.Upscaler`."""
        return f"{self._weights}-{self._networks.arithmetic}"

    def take_step_seconds(self) -> dict[str, float]:
        """See `worker.upscaler.TimesSteps`."""
        return self._clock.take()

    @property
    def tile_px(self) -> int | None:
        """See `worker.upscaler.Tiled`."""
        return self._tile_px

    @property
    def tile_overlap_px(self) -> int:
        """How much more than itself a tile sees on each side, in pixels of the source."""
        return self._networks.default_tile_overlap_px

    def needed_bytes(self, rendering: Rendering, width: int, height: int) -> int:
        """Upper bound of the memory for one call on frames of `width` x `height` px, and for all else around it.

        Measured on a CPU (benchmarks/memory_per_pixel.py). HAT's widest layer needs the most, so it goes by its width.
        """
        window_width, window_height = width, height
        if rendering.tile_px is not None:
            window_px = rendering.tile_px + 2 * self.tile_overlap_px
            window_width, window_height = min(width, window_px), min(height, window_px)
        in_networks = _BYTES_PER_CHANNEL * self._networks.hat.config.embed_dim * window_width * window_height
        return rendering.batch_frames * (in_networks + _BYTES_PER_FRAME_PIXEL * width * height)

    @torch.inference_mode()
    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        """(B, H, W, 3) to (B, 2H, 2W, 3), uint8 or uint16 as given."""
        white = np.iinfo(center_lr.dtype).max
        if self._networks.tile_px != self._tile_px:
            self._networks.use_tiles(self._tile_px)
        try:
            upscaled: Tensor = self._networks(
                *(self._to_tensor(batch, white) for batch in (previous_lr, center_lr, next_lr))
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            height, width = center_lr.shape[1:3]
            raise JobFailureError(
                FailureCode.OUT_OF_MEMORY,
                f"the memory is too small for {len(center_lr)} frames of {width}x{height} at a time: "
                "use tiles (--tile, VSR_TILE_PX) or fewer frames (--batch, VSR_BATCH_FRAMES)",
            ) from error
        levels = (upscaled * white).round_().clamp_(0, white).permute(0, 2, 3, 1)
        # By way of int32, as torch converts to uint16 on few devices.
        whole = levels.to(torch.int32).cpu().numpy()
        self._clock.note_finished()
        return whole.astype(np.uint8) if center_lr.dtype == np.uint8 else whole.astype(np.uint16)

    def _to_tensor(self, batch: FrameBatch, white: int) -> Tensor:
        """Whole numbers of 0 to `white`, (B, H, W, 3), to float32 of 0 to 1, (B, 3, H, W)."""
        tensor = torch.from_numpy(batch).to(self._networks.device).to(torch.float32)
        return tensor.div_(white).permute(0, 3, 1, 2).contiguous()


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a class of its own for a GPU only; its allocator and oneDNN on a CPU raise a plain RuntimeError.

    oneDNN does not say why a primitive failed. In networks that have run before it is for want of memory.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error)
    return "can't allocate memory" in words or words.startswith(("could not create a ", "could not execute a "))
