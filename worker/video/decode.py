"""Frames of a surveyed source, from any point, each proven to be the frame that the survey saw."""

from collections.abc import Callable, Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.colour import ToRgb
from worker.video.frames import Frame
from worker.video.source import decode_all, frame_crc32, frame_stamp, open_source, prepare_decoder, stream_at
from worker.video.values import FrameTable, Survey

_SEEK_MARGIN_FRAMES = 16
"""The most that codecs reorder: seeking finds key frames by decoding time, which may lie that many frames earlier."""


def decode_frames(
    source: Path,
    survey: Survey,
    first: int,
    stop: int,
    *,
    max_pixels: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[Frame]:
    """Yield frames `first` to `stop - 1` of the video that the survey chose.

    Decoding starts at a key frame before `first`. Should what comes out differ from the survey in time or content
    (seeking is inexact in some files), decoding goes on from the start of the file instead. Should that differ too:
    `JobFailureError(CORRUPT_FRAME)`.

    `on_progress` is called for every frame decoded, also for those on the way to `first`, which from the start of a
    long file are many; it may stop the work by raising.
    """
    table = survey.frames
    to_rgb = ToRgb(survey.picture)
    position = first
    failure = JobFailureError(
        FailureCode.CORRUPT_FRAME,
        f"frames from {first} ({table.seconds(first):.3f} s) on no longer decode as when the source was first read",
    )
    for seeking in (True, False) if first > _SEEK_MARGIN_FRAMES else (False,):
        try:
            with open_source(source, max_pixels) as container:
                stream = stream_at(container, survey.stream_index)
                prepare_decoder(stream, max_pixels)
                for frame in _from(container, stream, table, position, seeking, on_progress):
                    if frame_stamp(frame) != table.stamp(position) or frame_crc32(frame) != table.crc32[position]:
                        break
                    yield to_rgb(frame)
                    position += 1
                    if position == stop:
                        return
        except JobFailureError as error:
            failure = error
    raise failure


def _from(
    container: InputContainer,
    stream: VideoStream,
    table: FrameTable,
    position: int,
    seeking: bool,
    on_progress: Callable[[], None],
) -> Iterator[av.VideoFrame]:
    """Yield frames from the one at `position` on, found by its time after a seek, by counting from the start."""
    if seeking:
        try:
            container.seek(min(table.pts[position - _SEEK_MARGIN_FRAMES], table.stamp(position)), stream=stream)
        except av.FFmpegError:
            return
    found = False
    for number, frame in enumerate(decode_all(container, stream, on_progress)):
        found = found or (frame_stamp(frame) == table.stamp(position) if seeking else number == position)
        if found:
            yield frame
