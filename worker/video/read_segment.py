"""Frames of a finished segment, as everyone who plays the result will see them."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import av

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.colour import ToRgb
from worker.video.encode import ENCODER_THREADS
from worker.video.frames import RgbFrame
from worker.video.values import Picture

# Ours, from our own encoders: nothing else is to be found in its place.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm", "protocol_whitelist": "file"}


def read_segment(
    segment: Path,
    picture: Picture,
    frames: int,
    wanted: Collection[int],
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, RgbFrame]]:
    """Decode all of it, and yield the `wanted` of its frames, counted from zero, in the order of display.

    Raises `JobFailureError(VERIFICATION_FAILED)` unless there are exactly `frames`. `on_progress` is called for every
    frame; it may stop the work by raising.
    """
    to_rgb: ToRgb | None = None
    decoded = 0
    try:
        with av.open(str(segment), "r", options=_OPTIONS) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "AUTO", ENCODER_THREADS
            for frame in container.decode(stream):
                on_progress()
                if decoded in wanted:
                    # Decoders have names of their own for some formats: of full range, of VP9 with transparency.
                    found = {"pixel_format": frame.format.name, "has_alpha": False}
                    to_rgb = to_rgb or ToRgb(picture.model_copy(update=found))
                    yield decoded, to_rgb(frame).rgb
                decoded += 1
    except av.FFmpegError as error:
        raise _failure(f"cannot be decoded behind frame {decoded} ({error.strerror})") from error
    if decoded != frames:
        raise _failure(f"decodes to {decoded} frames instead of {frames}")


def _failure(what: str) -> JobFailureError:
    return JobFailureError(FailureCode.VERIFICATION_FAILED, f"the finished segment {what}")
