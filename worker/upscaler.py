"""What the pipeline asks of a network: three batches of frames in, one batch twice the size out. No torch here."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

FrameBatch = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(B, H, W, 3) RGB, full range; uint8, or uint16 for video of more than 8 bits."""


class Upscaler(Protocol):
    """A network ready to run. The result has the dtype of the input."""

    @property
    def fingerprint(self) -> str:
        """Names the weights and whatever else changes bits: equal fingerprints give equal pictures. No spaces."""

    def __call__(self, previous_lr: FrameBatch, center_lr: FrameBatch, next_lr: FrameBatch) -> FrameBatch:
        """Upscale the centre frames, (B, H, W, 3) to (B, 2H, 2W, 3)."""
