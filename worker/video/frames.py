"""What travels through the pipeline: one picture as arrays."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RgbFrame = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(H, W, 3), full range: uint8 for 8-bit video, uint16 (0 to 65535) for deeper."""

AlphaFrame = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(H, W), full range, 0 transparent; the same dtype as the colours beside it, which are not multiplied with it."""


class Frame(NamedTuple):
    """One picture, decoded or to be encoded."""

    rgb: RgbFrame
    alpha: AlphaFrame | None = None
