"""Single pictures through FFmpeg, under the rules for files that a stranger sent (`worker/video/source.py`)."""

from pathlib import Path

import av

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.colour import ToRgb
from worker.video.frames import RgbFrame
from worker.video.source import size_limit_option
from worker.video.values import Colour, Picture

_RGB_MATRIX, _UNKNOWN, _FULL_RANGE = 0, 2, 2


def read_png(path: Path, max_pixels: int) -> RgbFrame:
    """The picture as (H, W, 3): uint8, or uint16 where the file is deeper; transparency is dropped.

    Raises `JobFailureError(NOT_A_VIDEO)` for what is no PNG or is larger than `max_pixels`.
    """
    limit = size_limit_option(max_pixels)
    try:
        with av.open(
            str(path.absolute()), "r", format="png_pipe", options={"protocol_whitelist": "file", "max_pixels": limit}
        ) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": limit}
            frame = next(container.decode(video=0))
    except (av.FFmpegError, ValueError, StopIteration) as error:
        raise JobFailureError(
            FailureCode.NOT_A_VIDEO, f"{path.name} is not a PNG of at most {max_pixels} pixels that can be read"
        ) from error
    picture = Picture(
        width=frame.width,
        height=frame.height,
        pixel_format=frame.format.name,
        bit_depth=max(component.bits for component in frame.format.components),
        colour=Colour(
            matrix=_RGB_MATRIX,
            range=_FULL_RANGE,
            primaries=_UNKNOWN,
            transfer=_UNKNOWN,
            conversion="",
            chroma_location="unspecified",
        ),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )
    return ToRgb(picture)(frame).rgb
