"""Which file is opened as the video."""

from collections.abc import Callable
from pathlib import Path

from worker.cage import Decoding
from worker.contract.job import JobOptions
from worker.settings import VideoLimits
from worker.video.png_source import is_picture_sequence, take_in


def opened_source(
    decoding: Decoding,
    source: Path,
    pictures: Path,
    options: JobOptions,
    limits: VideoLimits,
    on_progress: Callable[[], None],
) -> Path:
    """Return `source`, or `pictures` where that is a sequence of them: made here first, whole or not at all."""
    if not is_picture_sequence(source):
        return take_in(source, pictures, options, limits)  # which reads nothing then, and refuses a frame rate
    if not pictures.exists():
        with decoding.making(pictures) as (writer, path):
            writer.call(take_in, source, path, options, limits, returns=Path, on_progress=on_progress)
    return pictures
