"""What the pipeline asks of a network: three batches of frames in, one batch twice the size out. No torch here."""

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FrameBatch = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(B, H, W, 3) RGB, full range; uint8, or uint16 for video of more than 8 bits."""


class Upscaler(Protocol):
    """A network ready to run. The result has the dtype of the input."""

    @property
    def fingerprint(self) -> str:
        """Names the weights and whatever else changes bits: equal fingerprints give equal pictures. No spaces."""

    @property
    def maker(self) -> str:
        """The part of it that no job can choose: the weights, and the kind of device."""

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        """Upscale the centre frames, (B, H, W, 3) to (B, 2H, 2W, 3)."""


@runtime_checkable
class Tiled(Protocol):
    """What an upscaler that may work in tiles says beside; the report looks at their borders."""

    @property
    def tile_px(self) -> int | None:
        """The side of a tile, in pixels of the source. None: whole frames."""


@runtime_checkable
class RemembersFrames(Protocol):
    """What an upscaler that computes tiles only where their input has changed says beside."""

    @property
    def tiles_computed(self) -> int:
        """So far."""

    @property
    def tiles_reused(self) -> int:
        """So far, of the frame before."""

    def for_segment(self) -> "Upscaler":
        """One that remembers and counts nothing yet: so that memory, and figures, are of one segment."""


@runtime_checkable
class TimesSteps(Protocol):
    """What an upscaler of several steps says beside."""

    def take_step_seconds(self) -> dict[str, float]:
        """Seconds on the device by step (hat, unet), since the last call."""


class PixelRepeater:
    """The test preset "repeat-pixels": enlarges without any network, so that errors of the pipeline show exactly.

    A frame that is swapped, missing or repeated, a border that is off by a pixel and a colour that is off by a level
    stand out of a result that is otherwise the source with every pixel doubled.
    """

    fingerprint = maker = "pixel-repeater"

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        """Repeat every pixel of the centre frames, (B, H, W, 3) to (B, 2H, 2W, 3); the neighbours are not looked at."""
        return center_lr.repeat(2, axis=1).repeat(2, axis=2)
