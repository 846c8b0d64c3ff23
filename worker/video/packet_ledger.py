"""Which packets of a stream became frames."""

from dataclasses import dataclass, field
from typing import cast

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_ONE_FRAME_PER_PACKET = frozenset(
    (
        *("h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg", "prores", "dnxhd"),
        *("ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "png", "rawvideo", "v210", "dvvideo", "cfhd"),
    )
)
"""Codecs each of whose packets shows one picture, apart from those that `_is_hidden` knows. Others have ways of their
own to say that a frame is shown longer."""
_VP9_MARKER = 0b10
_MPEG4_PICTURE = b"\x00\x00\x01\xb6"
_LONGEST_EMPTY_MPEG4_BYTES = 64  # "not coded", and what fills the place of a B-frame packed with another frame


@dataclass
class PacketLedger:
    """Which packets became frames.

    Decoders let some go without a word, and PyAV swallows an error that comes behind a good frame: to know that
    nothing is missing, packets and frames have to be compared. Packets are numbered in the order of the file.
    """

    codec: str
    may_start_anywhere: bool = False
    """Broadcasts and bare streams: nobody promises that their first packet is a key frame."""
    times: list[int | None] = field(default_factory=list)
    """When the packet's frame is shown or, where the container does not say that, decoded."""
    decoding_times: list[int | None] = field(default_factory=list)
    frames: list[int | None] = field(default_factory=list)
    """For every frame that came out the number of its packet, in the order of display."""
    damaged: set[int] = field(default_factory=set)
    """Packets that the decoder refused, or of which it made no more than a part of the picture."""
    breaks: list[int] = field(default_factory=list)
    """Packets before which, as the container says, something is missing."""
    first_frame: VideoFrame | None = None
    """As it came from the decoder, with its side data."""
    _by_time: dict[int | None, int] = field(default_factory=dict)
    _without_frame: set[int] = field(default_factory=set)
    _second_fields: set[int] = field(default_factory=set)
    _first_key: int | None = None
    _numbered: bool = True

    def enter(self, packet: "Packet[VideoStream]") -> int:
        """Number a packet on its way to the decoder."""
        number = len(self.times)
        self.times.append(packet.dts if packet.pts is None else packet.pts)
        self.decoding_times.append(packet.dts)
        if packet.pts is not None and not packet.is_discard:  # whose times an edit list may give to others too
            self._by_time[packet.pts] = number
        if not packet.is_discard and (number == 0 or not _is_hidden(self.codec, packet)):
            self._without_frame.add(number)
        if packet.is_corrupt:
            self.breaks.append(number)
        if packet.is_keyframe and self._first_key is None:
            self._first_key = number
        return number

    def came_out(self, frame: VideoFrame) -> int | None:
        """Take note of a frame from the decoder; returns the number of its packet."""
        number = self.number_of(frame)
        if number is None:
            self._numbered = False
            return None
        self._without_frame.discard(number)
        if frame.interlaced_frame:
            self._second_fields.add(number + 1)  # where each field has a packet of its own
        return number

    def number_of(self, frame: VideoFrame) -> int | None:
        """Return the number of a decoded frame's packet; None where the decoder does not hand it on.

        The time comes first: a packet that shows an earlier, hidden frame (VP9) hands on the label of that one.
        """
        if frame.pts in self._by_time:
            return self._by_time[frame.pts]
        label = cast("list[int] | None", frame.opaque)
        return None if label is None else label[0]

    def is_before_start(self, number: int) -> bool:
        """Whether a frame cannot be decoded by rights: it refers to one before the stream's first key frame."""
        if self._first_key is None or number < self._first_key:
            return True
        time, start = self.times[number], self.times[self._first_key]
        return time is not None and start is not None and time < start

    def lost(self) -> tuple[list[int], list[int]]:
        """Return the packets without a frame: those that should have given one, and those before the start."""
        if not self._numbered:
            return [], []
        missing = sorted(self._without_frame - self._second_fields)
        early = [number for number in missing if self.is_before_start(number)]
        if not self.may_start_anywhere and any(number <= early[-1] for number in self.damaged if early):
            early = []  # the start itself is damaged
        if self.codec not in _ONE_FRAME_PER_PACKET:
            missing = [number for number in missing if number in self.damaged]
        return [number for number in missing if number not in early], early

    def stand_ins(self) -> list[int]:
        """Return the places of frames made for want of a reference, and labelled like the one that needed it."""
        last = {number: place for place, number in enumerate(self.frames)}
        return [place for place, number in enumerate(self.frames) if number is not None and last[number] != place]


def _is_hidden(codec: str, packet: "Packet[VideoStream]") -> bool:
    """Whether the packet itself says that it is not to be shown, or that nothing has changed."""
    if codec not in ("vp8", "vp9", "mpeg4"):
        return False
    data = bytes(packet)
    if codec == "vp8":
        is_inter_frame, show = data[0] & 1, data[0] >> 4 & 1
        return bool(is_inter_frame and not show)
    if codec == "mpeg4":
        return len(data) <= _LONGEST_EMPTY_MPEG4_BYTES and _MPEG4_PICTURE in data
    if data[0] >> 6 != _VP9_MARKER:
        return False  # damaged
    profile_3 = data[0] >> 4 & 3 == 3
    show_existing, show = (data[0] >> shift & 1 for shift in ((2, 0) if profile_3 else (3, 1)))
    is_superframe = data[-1] >> 5 == 0b110
    return not (is_superframe or show_existing or show)
