"""Frames of a surveyed source, from any point, each proven to be the frame that the survey saw."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.video.colour import ToRgb
from worker.video.deinterlace import deinterlaced
from worker.video.frames import Frame
from worker.video.source import decode_all, frame_crc32, frame_stamp, open_source, prepare_decoder, stream_at
from worker.video.values import FrameTable, Survey

_SEEK_MARGINS_FRAMES = (16, 64, 256, 1024)
"""How much earlier to seek, one try after the other. 16 is the most that codecs reorder: seeking finds key frames by
decoding time, which may lie that many frames earlier. Where a container (MPEG-TS) does not know its key frames, seeking
finds any frame: then there has to be a key frame on the way."""


def decode_frames(
    source: Path,
    survey: Survey,
    first: int,
    stop: int,
    *,
    max_pixels: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[Frame]:
    """Yield frames `first` to `stop - 1` of the video that the survey chose, deinterlaced where it says so.

    Decoding starts at a key frame before `first`. Should what comes out differ from the survey in time or content
    (seeking is inexact in some files), earlier places are tried, and at last the start of the file. Should that differ
    too: `JobFailureError(CORRUPT_FRAME)`.

    `on_progress` is called for every frame decoded, also for those on the way to `first`, which from the start of a
    long file are many; it may stop the work by raising.
    """
    to_rgb = ToRgb(survey.picture)
    if survey.picture.field_order == "progressive":
        for frame in _as_surveyed(source, survey, first, stop, max_pixels, on_progress):
            yield to_rgb(frame)
        return
    # The filter looks one frame back and one ahead, but never into another shot.
    cuts = frozenset(survey.cuts)
    begin = first - 1 if first > 0 and first not in cuts else first
    end = stop + 1 if stop < len(survey.frames) and stop not in cuts else stop
    fields = _as_surveyed(source, survey, begin, end, max_pixels, on_progress)
    whole = deinterlaced(fields, begin, survey.picture, cuts, frozenset(survey.frames.progressive))
    for frame in islice(whole, first - begin, stop - begin):
        yield to_rgb(frame)


def _as_surveyed(
    source: Path, survey: Survey, first: int, stop: int, max_pixels: int, on_progress: Callable[[], None]
) -> Iterator[VideoFrame]:
    """Yield the frames as they are stored, those that were concealed included."""
    table = survey.frames
    concealed = frozenset(table.concealed)
    position = first
    failure = JobFailureError(
        FailureCode.CORRUPT_FRAME,
        f"frames from {first} ({table.seconds(first):.3f} s) on no longer decode as when the source was first read",
    )
    for margin in (*_SEEK_MARGINS_FRAMES, None):
        seeking = margin is not None
        # A frame that was concealed may be the one before it: there is nothing to be found at its own time.
        start = position
        while start > 0 and (not seeking or start in concealed):
            start -= 1
        if margin is not None and start <= margin:
            continue
        try:
            with open_source(source, max_pixels) as container:
                stream = stream_at(container, survey.stream_index)
                prepare_decoder(stream, max_pixels, conceal=table.taken_as_it_comes)
                decoded = _from(container, stream, table, start, margin, on_progress)
                for number, frame in _in_their_places(decoded, table, concealed, start, position):
                    if number < position:
                        continue
                    if frame_crc32(frame) != table.crc32[number]:
                        break
                    yield frame
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
    start: int,
    margin: int | None,
    on_progress: Callable[[], None],
) -> Iterator[VideoFrame]:
    """Yield frames from the one at `start` on, found by its time after a seek to `margin` frames before it, if any."""
    if margin is not None:
        try:
            container.seek(min(table.pts[start - margin], table.stamp(start)), stream=stream)
        except av.FFmpegError:
            return
    found = margin is None
    for frame in decode_all(container, stream, on_progress, conceal=table.taken_as_it_comes):
        stamp = frame_stamp(frame)
        found = found or stamp == table.stamp(start)
        if found:
            yield frame
        elif table.stamps is None and stamp is not None and stamp > table.pts[start]:
            return  # the key frame found is behind it


def _in_their_places(
    decoded: Iterator[VideoFrame], table: FrameTable, concealed: frozenset[int], start: int, wanted: int
) -> Iterator[tuple[int, VideoFrame]]:
    """Number the frames from `start` on, and repeat them where the survey did so for want of another.

    Ends where something else comes than was surveyed.
    """
    number = start
    before: VideoFrame | None = None
    for frame in decoded:
        while frame_stamp(frame) != table.stamp(number):
            if number not in concealed:
                return
            yield number, before or frame
            number += 1
            if number == len(table):
                return
        yield number, frame
        before = frame
        number += 1
        if number == len(table):
            return
    while before is not None and number < len(table) and number in concealed:
        yield number, before
        number += 1
