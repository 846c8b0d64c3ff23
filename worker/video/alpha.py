"""Transparency is enlarged beside the picture: the networks know colours only."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from worker.video.frames import AlphaFrame

_FLAGS = "flags=lanczos+accurate_rnd+bitexact:sws_dither=none"


def enlarge_alpha(alpha: AlphaFrame, scale: int) -> AlphaFrame:
    """Enlarge (H, W) to (scale * H, scale * W) by Lanczos, of the same dtype.

    A plain surface stays exactly what it is: what was opaque, or not there, remains so. Beside hard edges Lanczos
    rings, as it does in pictures.
    """
    pixel_format = "gray16le" if alpha.dtype == np.uint16 else "gray"
    height, width = alpha.shape
    graph = _graph(width, height, scale, pixel_format)
    graph.vpush(VideoFrame.from_ndarray(alpha, pixel_format))
    return graph.vpull().to_ndarray()  # type: ignore[return-value]  # uint8 or uint16, by the pixel format


@lru_cache(maxsize=4)
def _graph(width: int, height: int, scale: int, pixel_format: str) -> Graph:
    """Built once for a video: FFmpeg computes the filter's coefficients then."""
    graph = Graph()
    graph.threads = 1
    buffer = graph.add_buffer(
        width=width, height=height, format=VideoFormat(pixel_format, width, height), time_base=Fraction(1, 1000)
    )
    graph.link_nodes(
        buffer,
        graph.add("scale", f"w={scale * width}:h={scale * height}:{_FLAGS}"),
        graph.add("format", pixel_format),
        graph.add("buffersink"),
    ).configure()
    return graph
