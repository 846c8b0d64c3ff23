"""A frame as a JPEG of what players show: turned, and with square pixels."""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext

from worker.video.frames import RgbFrame
from worker.video.values import Picture

_Image = npt.NDArray[np.uint8]

MAX_SIDE_PX = 65500
"""Of a JPEG."""
MAX_PIXELS = 64_000_000
"""Of one with square pixels: a stranger's file says how flat its own are."""

# Quantizers from 2 to 31, lower is better. 4:4:4 and this keep what a comparison by eye is made for.
_QUANTIZER = 3
_LAMBDA_PER_QUANTIZER = 118


def jpeg(rgb: RgbFrame, picture: Picture) -> bytes | None:
    """Encode a stored frame, (H, W, 3), the way it is displayed. Of deeper video, the upper 8 bits.

    Of `picture`, its display matrix and the shape of its pixels count. None: too large for a JPEG.
    """
    seen: _Image = (rgb >> 8 if rgb.dtype == np.uint16 else rgb).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(seen), "rgb24")
    width, height = _square_size(frame.width, frame.height, picture.sample_aspect_ratio or Fraction(1))
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        return None
    if (width, height) != (frame.width, frame.height):
        frame = frame.reformat(width=width, height=height, interpolation="BICUBIC")
    if picture.display_matrix is not None:
        frame = av.VideoFrame.from_ndarray(
            _turned(frame.to_ndarray().astype(np.uint8), picture.display_matrix), "rgb24"
        )
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj444p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"flags": "+qscale+bitexact", "global_quality": str(_QUANTIZER * _LAMBDA_PER_QUANTIZER)}
    encoder.thread_count = 1
    # As every reader of a JPEG takes it.
    ready = frame.reformat(format="yuvj444p", dst_colorspace="ITU601", dst_color_range="JPEG")
    return b"".join(bytes(packet) for packet in [*encoder.encode(ready), *encoder.encode(None)])


def _square_size(width: int, height: int, pixel: Fraction) -> tuple[int, int]:
    """Whichever side has to, grows: nothing that is there is thrown away."""
    return (round(width * pixel), height) if pixel >= 1 else (width, round(height / pixel))


def _turned(image: _Image, display_matrix: Sequence[int]) -> _Image:
    """By quarters and mirrored, as ISO 14496-12 has it: x' = ax + cy, y' = bx + dy. The nearest where it is askew."""
    a, b, _, c, d = display_matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, x_grows, y_grows = image.transpose(1, 0, 2), c > 0, b > 0
    else:
        x_grows, y_grows = a > 0, d > 0
    return np.ascontiguousarray(image[:: 1 if y_grows else -1, :: 1 if x_grows else -1])
