"""Streams as sequences of packets: what is in them, told in a form that source and result can be compared by."""

import hashlib
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Disposition, Stream

_ADTS_HEADER_BYTES, _ADTS_CRC_BYTES = 7, 2
_ANNEX_B_START = re.compile(rb"\x00*\x00\x00\x01")


@dataclass
class StreamContents:
    """All packets of one stream: their times, and the checksum of their payloads in file order."""

    time_base: Fraction
    framed: bool
    pts: "array[int]" = field(default_factory=lambda: array("q"))
    sha256: str = ""
    disorder: int | None = None
    """The first packet whose decoding time is not later than that of the packet before it; None: all are."""
    end: Fraction = Fraction(0)
    """When the last packet ends, in seconds."""
    hidden: int = 0
    """Packets left out because an edit list of the source hides them from the viewer."""
    picture: bytes = b""
    """Of a cover picture, its one packet."""


class EditListWatch:
    """Says which packets that an edit list of the source hides are left out of the result.

    `hidden_too`: the result's container can hide packets as well. But what is written of edit lists is only where a
    stream begins: what lies before that can stay hidden, not what lies between two parts of a cut.
    """

    def __init__(self, *, hidden_too: bool) -> None:
        self._hidden_too = hidden_too
        self._begins: dict[int, int] = {}
        self._latest_dts: dict[int, int] = {}

    def leaves_out(self, packet: "Packet[Any]") -> bool:
        """To be asked of every packet, in the order of the file."""
        stream, pts, dts = packet.stream_index, packet.pts or 0, packet.dts or 0
        if not packet.is_discard:
            self._begins.setdefault(stream, pts)
        elif (
            not self._hidden_too
            or pts >= self._begins.get(stream, pts + 1)
            or dts <= self._latest_dts.get(stream, dts - 1)
        ):
            return True
        self._latest_dts[stream] = dts
        return False


def read_contents(
    container: InputContainer,
    streams: Sequence[Stream],
    *,
    hidden_too: bool = True,
    until: Fraction | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> list[StreamContents]:
    """Read a container that was just opened to its end and return the contents of `streams`, in their order.

    It must be just opened: seeking back to zero would skip packets of before zero, such as an encoder's lead-in. An
    attachment (a font) has no packets; its bytes lie in the header. `hidden_too`: see `EditListWatch`. `until`: see
    `is_behind`. `on_progress` is called for every packet; it may stop the work by raising.
    """
    contents = [StreamContents(stream.time_base or Fraction(1), _is_framed(stream)) for stream in streams]
    hashes = [hashlib.sha256(stream.data if isinstance(stream, AttachmentStream) else b"") for stream in streams]
    place = {stream.index: number for number, stream in enumerate(streams)}
    ends = [0] * len(streams)
    dts_before: list[int | None] = [None] * len(streams)
    edits = EditListWatch(hidden_too=hidden_too)
    with_packets = [stream for stream in streams if not isinstance(stream, AttachmentStream)]
    if with_packets:
        for packet in container.demux(with_packets):
            on_progress()
            if is_end_mark(packet):
                continue
            if is_behind(packet, until):
                continue
            if edits.leaves_out(packet):
                contents[place[packet.stream_index]].hidden += 1
                continue
            number = place[packet.stream_index]
            payload = bytes(packet)
            hashes[number].update(unframed(payload) if contents[number].framed else payload)
            if streams[number].disposition & Disposition.attached_pic:
                contents[number].picture = payload
            pts = packet.pts if packet.pts is not None else packet.dts or 0
            contents[number].pts.append(pts)
            ends[number] = max(ends[number], pts + (packet.duration or 0))
            before = dts_before[number]
            if packet.dts is not None and before is not None and packet.dts <= before:
                contents[number].disorder = contents[number].disorder or len(contents[number].pts) - 1
            dts_before[number] = packet.dts
    for number, one_hash in enumerate(hashes):
        contents[number].sha256 = one_hash.hexdigest()
        contents[number].end = ends[number] * contents[number].time_base
    return contents


def is_behind(packet: "Packet[Any]", until: Fraction | None) -> bool:
    """Say whether a packet belongs to what comes after `until`, in seconds, where a result ends before its source does.

    By decoding time: what a kept packet of a video refers to is kept too. Cover pictures belong to the whole.
    """
    if until is None or packet.stream.disposition & Disposition.attached_pic:
        return False
    time = packet.pts if packet.dts is None else packet.dts
    return time is not None and time * packet.time_base >= until


def is_end_mark(packet: "Packet[Any]") -> bool:
    """PyAV ends every stream with an empty packet, to flush decoders."""
    return packet.size == 0 and packet.dts is None and packet.pts is None


def unframed(payload: bytes) -> bytes:
    """Return a transport stream's packet as mp4 and Matroska hold it: AAC without ADTS headers, H.264 with lengths."""
    if payload[:1] == b"\xff":
        has_no_crc = payload[1] & 1
        return payload[_ADTS_HEADER_BYTES + (0 if has_no_crc else _ADTS_CRC_BYTES) :]
    units = [unit for unit in _ANNEX_B_START.split(payload) if unit]
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def _is_framed(stream: Stream) -> bool:
    """Say whether packets carry their own framing, as in MPEG-TS, which muxers of other formats take off."""
    context = cast("CodecContext | None", stream.codec_context)
    if context is None:
        return False
    extradata = context.extradata or b""
    if context.codec.canonical_name == "aac":
        return not extradata
    if context.codec.canonical_name in ("h264", "hevc"):
        return not extradata or extradata[:3] == b"\0\0\1" or extradata[:4] == b"\0\0\0\1"
    return False
