"""Segments as browsers play them while the rest is rendered: fragmented mp4, one timeline through all segments.

What a player reads of a segment is one fragment: a `moof` box, which says when each frame is decoded and shown, and the
segment's packets as they lie in its file. So nothing is stored twice, and segments stay as they are. Decoding times are
the times of display in order, from the first frame of the video on; what is shown later than it is decoded, or before,
says so by its offset. So the fragments of neighbours touch, at any frame rate.
"""

import base64
import io
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from worker.contract.job import VideoCodec
from worker.contract.stream import StreamSegment
from worker.video.codecs import CODECS
from worker.video.packets import is_end_mark
from worker.video.side_data import template_stream
from worker.video.values import Encoding, Picture

_HEADER = {"fflags": "+bitexact", "movflags": "+empty_moov+default_base_moof"}
_FILE = {"fflags": "+bitexact", "movflags": "+faststart"}
_FRAGMENT = {
    "fflags": "+bitexact",
    "movflags": "+empty_moov+default_base_moof+frag_custom+frag_discont+negative_cts_offsets+skip_trailer",
    "avoid_negative_ts": "disabled",
}
_MDAT_HEAD_BYTES = 8
_INSTEAD = "submit with codec h264 to watch it"


@dataclass(frozen=True)
class Timing:
    """When the frames of a segment are shown, in units of `time_base`."""

    pts: Sequence[int]
    """In order, however they count."""
    begins_at: int
    """From the first frame of the video on."""
    ends_at: int
    time_base: Fraction


def why_not_streamed(encoding: Encoding) -> str | None:
    """Say why browsers play no segments of this kind, and what to do about it. None: they do."""
    codec = encoding.codec
    if codec not in (VideoCodec.H264, VideoCodec.HEVC, VideoCodec.AV1):
        return f"No browser plays {codec} as a stream: {_INSTEAD}."
    if encoding.quality == "lossless":
        return f"Few browsers play lossless {codec}, and none at its rate: submit with quality high to watch it."
    return None


def write_header(target: Path, segment: Path, picture: Picture, encoding: Encoding) -> None:
    """Write what a player reads before the first fragment. All segments of a job give the same."""
    header = io.BytesIO()
    with _opened(segment, encoding) as encoded, av.open(header, "w", format="mp4", container_options=_HEADER) as output:
        _add_video(output, encoded, picture, encoding)
        output.start_encoding()
        target.write_bytes(header.getvalue())


def write_playable(target: Path, segment: Path, picture: Picture, encoding: Encoding) -> None:
    """Write a segment as a file of its own, that browsers begin to play before they have all of it."""
    with (
        _opened(segment, encoding) as encoded,
        av.open(str(target), "w", format="mp4", container_options=_FILE) as output,
    ):
        stream = _add_video(output, encoded, picture, encoding)
        output.start_encoding()
        encoded.seek(0)
        for packet in encoded.demux(encoded.streams.video[0]):
            if not is_end_mark(packet):
                packet.stream = stream
                output.mux_one(packet)


def _opened(segment: Path, encoding: Encoding) -> InputContainer:
    return av.open(str(segment), "r", format=CODECS[encoding.codec].segment_format)


def _add_video(output: OutputContainer, encoded: InputContainer, picture: Picture, encoding: Encoding) -> VideoStream:
    """Add a stream like that of the segment, with all that is known of the picture."""
    codec, video = encoding.codec, encoded.streams.video[0]
    first_packet = next(packet for packet in encoded.demux(video) if not is_end_mark(packet))
    with template_stream(codec, picture, video, first_packet) as template:
        stream = output.add_stream_from_template(template, opaque=True)
    stream.time_base = Fraction(1, encoding.time_base.denominator)
    stream.codec_context.sample_aspect_ratio = picture.sample_aspect_ratio or Fraction(0)
    if codec is VideoCodec.HEVC:
        stream.codec_context.codec_tag = "hvc1"  # Apple's players take no other
    stream.set_display_matrix(picture.display_matrix)
    return stream


def stream_segment(segment: Path, timing: Timing) -> StreamSegment:
    """Return how the file of a finished segment becomes a fragment. For a moment all of it is in memory."""
    pts = timing.pts
    fragment = io.BytesIO()
    ranges: list[tuple[int, int]] = []
    # The segment's own muxer has written its packets in the order of the file: the n-th is decoded when the n-th frame
    # is shown.
    decoded_at = [timing.begins_at + shown_at - pts[0] for shown_at in pts]
    ends = [*decoded_at[1:], timing.ends_at]
    with (
        av.open(str(segment), "r", format="mp4") as encoded,
        av.open(fragment, "w", format="mp4", container_options=_FRAGMENT) as output,
    ):
        source = encoded.streams.video[0]
        stream = output.add_stream_from_template(source, opaque=True)
        stream.time_base = Fraction(1, timing.time_base.denominator)
        output.start_encoding()
        # The times of a fragment are differences in 32 bits. FFmpeg does not refuse greater ones: it ends the process.
        if (timing.ends_at - timing.begins_at) * timing.time_base / (stream.time_base or timing.time_base) >= 2**31:
            raise ValueError(f"{segment.name} is too long for its units of time, {timing.time_base} s, to be streamed")
        packets = [packet for packet in encoded.demux(source) if not is_end_mark(packet)]
        shown_in_order = sorted(packet.pts or 0 for packet in packets)
        shown_at = dict(zip(shown_in_order, decoded_at, strict=True))
        for packet, decoded, end in zip(packets, decoded_at, ends, strict=True):
            ranges.append((packet.pos or 0, packet.size))
            packet.stream, packet.time_base = stream, timing.time_base
            packet.pts = shown_at[packet.pts or 0]
            # Before every time of display: the muxer wants it so. It moves all by as much as puts the first one right.
            packet.dts = decoded - decoded_at[-1] + timing.begins_at
            packet.duration = end - decoded
            output.mux_one(packet)
    content = fragment.getvalue()
    packets_begin = len(content) - sum(length for _, length in ranges)
    head = content[_place_of(b"moof", content) : packets_begin]
    if head[-_MDAT_HEAD_BYTES:] != struct.pack(">I4s", _MDAT_HEAD_BYTES + len(content) - packets_begin, b"mdat"):
        raise ValueError(f"the muxer has changed packets of {segment.name}")
    return StreamSegment(
        head=base64.b64encode(head),
        file_bytes=segment.stat().st_size,
        ranges=tuple(_joined(ranges)),
    )


def found_in_result(result: mmap.mmap, begin: int, segment: Path, streamed: StreamSegment) -> tuple[StreamSegment, int]:
    """Return how the result becomes the fragment of a segment whose packets it holds, and where those end.

    `begin`: where to look from, as packets come in one order in both. Looked for by their bytes: so nothing of the
    result is parsed, in which there are a stranger's streams too. Raises `LookupError` if it does not hold them.
    """
    ranges: list[tuple[int, int]] = []
    with av.open(str(segment), "r", format="mp4") as encoded:
        for packet in encoded.demux(encoded.streams.video[0]):
            if is_end_mark(packet):
                continue
            offset = result.find(bytes(packet), begin)
            if offset < 0:
                raise LookupError(f"the result does not hold a packet of {segment.name} as it is")
            begin = offset + packet.size
            ranges.append((offset, packet.size))
    update = {"file_bytes": len(result), "ranges": tuple(_joined(ranges))}
    return streamed.model_copy(update=update), begin


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield offsets and lengths of what lies side by side as one."""
    begin = end = 0
    for offset, length in ranges:
        if offset != end and end > begin:
            yield begin, end - begin
        begin, end = (offset if offset != end or end == begin else begin), offset + length
    yield begin, end - begin


def _place_of(name: bytes, content: bytes) -> int:
    """Where the first box of this name begins, among those that are in no other."""
    place = 0
    while True:
        size, found = struct.unpack_from(">I4s", content, place)
        if found == name:
            return place
        place += size
