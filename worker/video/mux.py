"""Putting the finished file together by stream copy: the encoded segments, and all other streams of the source."""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, VideoCodec
from worker.video.codecs import CODECS
from worker.video.containers import FORMATS, has_edit_lists
from worker.video.matroska_aspect import write_aspect_ratio
from worker.video.packets import EditListWatch, StreamContents, is_behind, is_end_mark
from worker.video.side_data import template_stream
from worker.video.sound import Conversion
from worker.video.tag import tag_metadata
from worker.video.values import Encoding, FrameTable, Picture

if TYPE_CHECKING:
    from av.container.core import Chapter  # in PyAV's stubs only

# Said by the container itself, or true of the source's encoding only.
_STALE_METADATA = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "encoding_tool",
    "duration",
    "alpha_mode",
}
_STALE_MKV_STATISTICS = ("BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES", "_STATISTICS_")
_SEGMENT_FORMATS = {facts.segment_suffix: facts.segment_format for facts in CODECS.values()}
_ANY_BYTES = "application/octet-stream"
_MAX_MOVIE_TIMESCALE = 2**31 - 1
_USUAL_MOVIE_TIMESCALE = 1000


@dataclass(frozen=True)
class SegmentOrder:
    """How the frames of all segments follow one another in the file."""

    display_ranks: list[list[int]]
    """For each segment, the place in the order of display of every packet, in the order of the file."""
    reorder_depth: int
    """The most that a packet lies later in the file than in the order of display."""
    made_by: str
    """What `encode_frames` was told; the same in all segments."""


@dataclass(frozen=True)
class UpscaledVideo:
    """The video of the result: its segments, and when their frames are shown."""

    segments: Sequence[Path]
    order: SegmentOrder
    table: FrameTable
    picture: Picture
    encoding: Encoding
    until: Fraction | None = None
    """When it ends, in seconds, where that is before the source does: what of other streams comes later is left out."""


@contextmanager
def trouble_named(container: Container) -> Iterator[None]:
    """Turn what FFmpeg raises over a stranger's streams into a failure that says what to do."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # of the disk, not of the streams
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE,
            f"the source's streams cannot be put together as {container} ({error.strerror}): "
            "remux the source, or choose another container",
        ) from error


def read_order(
    segments: Sequence[Path], expected_frames: Sequence[int], on_progress: Callable[[], None] = lambda: None
) -> SegmentOrder:
    """Read the segments' packets. Raises `JobFailureError(VERIFICATION_FAILED)` where they do not fit together."""
    display_ranks: list[list[int]] = []
    depth = 0
    headers: set[bytes | None] = set()
    makers: set[str] = set()
    for number, (path, frames) in enumerate(zip(segments, expected_frames, strict=True)):
        on_progress()
        with _opened(path) as container:
            pts = [packet.pts for packet in container.demux(0) if packet.pts is not None]
            headers.add(container.streams.video[0].codec_context.extradata)
            makers.add(container.metadata.get("title", ""))
        if len(pts) != frames:
            raise JobFailureError(
                FailureCode.VERIFICATION_FAILED, f"segment {number} holds {len(pts)} frames instead of {frames}"
            )
        ranks = {time: rank for rank, time in enumerate(sorted(pts))}
        display_ranks.append([ranks[time] for time in pts])
        depth = max(depth, *(place - rank for place, rank in enumerate(display_ranks[-1])))
    if len(headers) != 1 or len(makers) != 1:
        what = "encoder settings" if len(headers) != 1 else "networks"
        raise JobFailureError(
            FailureCode.VERIFICATION_FAILED, f"the segments were made with different {what}: render them again"
        )
    return SegmentOrder(display_ranks, depth, makers.pop())


def segment_maker(path: Path) -> str:
    """Return what `encode_frames` was told when it made this segment."""
    with _opened(path) as container:
        return container.metadata.get("title", "")


def _opened(segment: Path) -> InputContainer:
    return av.open(str(segment), "r", format=_SEGMENT_FORMATS[segment.suffix])


def decoding_times(table: FrameTable, reorder_depth: int) -> list[int]:
    """Return the DTS of every packet in file order: the presentation times, `reorder_depth` packets late.

    Computed once over the whole video, so that they rise across the joints of segments as well, at any frame rate. The
    first packets come before the first presentation time, at the spacing of the first two frames.
    """
    spacing = table.pts[1] - table.pts[0] if len(table) > 1 else 1
    lead_in = [table.pts[0] - spacing * ahead for ahead in range(reorder_depth, 0, -1)]
    return [*lead_in, *table.pts][: len(table)]


def write_result(
    target: Path,
    container: Container,
    source: InputContainer,
    replaced: VideoStream,
    upscaled: UpscaledVideo,
    copies: Mapping[int, StreamContents],
    conversions: Mapping[int, Conversion],
    tag: str,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Write `target`: `upscaled` in place of `replaced`, streams in `copies` bit for bit, and those in `conversions`.

    `source` must be just opened: it is read from its beginning, lead-in included.
    """
    options = {"fflags": "+bitexact"}
    later = Fraction(0)
    if has_edit_lists(container):
        later = _seconds_below_zero(source, upscaled.table, copies)
        options |= _mp4_options(container, source, copies, upscaled.table, later)
    with (
        _opened(upscaled.segments[0]) as first_segment,
        av.open(str(target), "w", format=FORMATS[container], container_options=options) as output,
    ):
        output.metadata.update(kept_metadata(source.metadata) | tag_metadata(container, tag))
        outputs: dict[int, Stream] = {}
        for stream in source.streams:
            if stream.index == replaced.index:
                outputs[stream.index] = _add_video(output, container, first_segment, replaced, upscaled)
            elif stream.index in copies:
                outputs[stream.index] = _add_copy(output, container, stream, copies[stream.index])
            elif stream.index in conversions:
                outputs[stream.index] = conversions[stream.index].add_to(output, stream)
        output.set_chapters([_later(chapter, later) for chapter in kept_chapters(source, upscaled.until)])
        output.start_encoding()
        copied = [
            source.streams[index]
            for index in copies
            if not isinstance(outputs[index], AttachmentStream)  # written with the header
        ]
        for packet in heapq.merge(
            _video_packets(upscaled, outputs[replaced.index]),
            _copied_packets(source, copied, outputs, hidden_too=has_edit_lists(container), until=upscaled.until),
            *(conversion.packets() for conversion in conversions.values()),
            key=_decoded_at,
        ):
            on_progress()
            if later:
                ticks = round(later / packet.time_base)
                packet.pts, packet.dts = (packet.pts or 0) + ticks, (packet.dts or 0) + ticks
            output.mux_one(packet)
    if upscaled.picture.sample_aspect_ratio is not None and not has_edit_lists(container):
        write_aspect_ratio(target, outputs[replaced.index].index + 1, upscaled.picture)


def _add_video(
    output: OutputContainer,
    container: Container,
    first_segment: InputContainer,
    original: VideoStream,
    upscaled: UpscaledVideo,
) -> VideoStream:
    codec, picture = upscaled.encoding.codec, upscaled.picture
    encoded = first_segment.streams.video[0]
    first_packet = next(packet for packet in first_segment.demux(encoded) if not is_end_mark(packet))
    with template_stream(codec, picture, encoded, first_packet) as template:
        stream = output.add_stream_from_template(template, opaque=True)
    # A muxer's time base is one over something: exact for every time of the source.
    stream.time_base = Fraction(1, upscaled.table.time_base.denominator)
    context = stream.codec_context
    context.framerate = upscaled.encoding.average_rate
    context.sample_aspect_ratio = picture.sample_aspect_ratio or Fraction(0)
    if codec is VideoCodec.HEVC and has_edit_lists(container):
        context.codec_tag = "hvc1"  # Apple's players take no other
    if codec is VideoCodec.PRORES:
        context.codec_tag = encoded.codec_context.codec_tag  # which alone says the profile
    stream.disposition = original.disposition
    stream.metadata.update(kept_metadata(original.metadata))
    if picture.has_alpha and codec is VideoCodec.VP9:
        stream.metadata["alpha_mode"] = "1"
    stream.set_display_matrix(picture.display_matrix)
    return stream


def _add_copy(output: OutputContainer, container: Container, original: Stream, contents: StreamContents) -> Stream:
    if isinstance(original, AttachmentStream):
        return output.add_attachment(original.name or "attachment", original.mimetype or _ANY_BYTES, original.data)
    if original.disposition & Disposition.attached_pic and container is Container.MKV:
        kind = {"mjpeg": "jpeg"}.get(original.codec_context.name, original.codec_context.name)
        name = original.metadata.get("filename", f"cover.{kind}")
        return output.add_attachment(name, f"image/{kind}", contents.picture)
    stream = output.add_stream_from_template(original, opaque=True)
    stream.disposition = original.disposition
    stream.metadata.update(original.metadata)
    return stream


def _video_packets(upscaled: UpscaledVideo, output: Stream) -> Iterator["Packet[Stream]"]:
    table, order = upscaled.table, upscaled.order
    dts = iter(decoding_times(table, order.reorder_depth))
    ends = [*table.pts[1:], table.pts[-1] + table.last_duration]
    first = 0
    for path, ranks in zip(upscaled.segments, order.display_ranks, strict=True):
        with _opened(path) as container:
            packets = (packet for packet in container.demux(0) if not is_end_mark(packet))
            for packet, rank in zip(packets, ranks, strict=True):
                frame = first + rank
                packet.stream = output
                packet.time_base = table.time_base
                packet.pts, packet.dts = table.pts[frame], next(dts)
                packet.duration = ends[frame] - table.pts[frame]
                yield packet
        first += len(ranks)


def _copied_packets(
    source: InputContainer,
    streams: Sequence[Stream],
    outputs: Mapping[int, Stream],
    *,
    hidden_too: bool,
    until: Fraction | None,
) -> Iterator["Packet[Stream]"]:
    if not streams:
        return
    edits = EditListWatch(hidden_too=hidden_too)
    for packet in source.demux(list(streams)):
        if is_end_mark(packet) or is_behind(packet, until) or edits.leaves_out(packet):
            continue
        packet.stream = outputs[packet.stream_index]
        if packet.dts is None:
            packet.dts = packet.pts
        yield packet


def _decoded_at(packet: "Packet[Stream]") -> Fraction:
    return (packet.dts or 0) * packet.time_base


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what is still true of the result: all but what tells of the old encoding or of the container itself."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE_METADATA and not key.startswith(_STALE_MKV_STATISTICS)
    }


def kept_chapters(source: InputContainer, until: Fraction | None) -> list["Chapter"]:
    """Return the chapters of the result: those that begin before `until`, in seconds, and end there at the latest."""
    if until is None:
        return source.chapters()
    kept: list[Chapter] = []
    for chapter in source.chapters():
        last_tick = math.ceil(until / (chapter["time_base"] or 1))
        if chapter["start"] < last_tick:
            kept.append({**chapter, "end": min(chapter["end"], last_tick)})
    return kept


def _seconds_below_zero(source: InputContainer, table: FrameTable, copies: Mapping[int, StreamContents]) -> Fraction:
    """Return how much later all streams have to start in the mp4 family, which shows nothing of before zero.

    Broadcasts start there when their clock turns over. What an edit list of the source hides may stay below.
    """
    start = Fraction(table.pts[0]) * table.time_base
    if start >= 0:
        return Fraction(0)
    others = [] if "mp4" in source.format.name.split(",") else [facts for facts in copies.values() if facts.pts]
    return -min([start, *(facts.pts[0] * facts.time_base for facts in others)])


def _later(chapter: "Chapter", seconds: Fraction) -> "Chapter":
    ticks = round(seconds / (chapter["time_base"] or 1))
    return {**chapter, "start": chapter["start"] + ticks, "end": chapter["end"] + ticks}


def _mp4_options(
    container: Container,
    source: InputContainer,
    copies: Mapping[int, StreamContents],
    table: FrameTable,
    later: Fraction,
) -> dict[str, str]:
    flags = "+faststart"
    if container is Container.MOV or any(key.startswith("com.") for key in source.metadata):
        # Apple's list of keys, which holds what the usual iTunes atoms have no place for.
        flags += "+use_metadata_tags"
    starts = [Fraction(table.pts[0]) * table.time_base]
    starts += [contents.pts[0] * contents.time_base for contents in copies.values() if contents.pts]
    return {"movflags": flags, "movie_timescale": str(_movie_timescale([start + later for start in starts]))}


def _movie_timescale(starts: Iterable[Fraction]) -> int:
    """Return ticks per second fine enough that the edit lists can start every stream exactly where it started."""
    exact = math.lcm(_USUAL_MOVIE_TIMESCALE, *(start.denominator for start in starts))
    return exact if exact <= _MAX_MOVIE_TIMESCALE else _USUAL_MOVIE_TIMESCALE
