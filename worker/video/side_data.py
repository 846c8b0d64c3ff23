"""Facts about a picture that lie beside it: HDR mastering display, light levels, clean aperture.

PyAV can copy such facts from a file into another one's header but not set them. So they are written down in a Matroska
header of our own, around the first packet of the video: what FFmpeg reads from that is the template of the result's
stream, whatever its container.
"""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from av.packet import Packet
from av.video.stream import VideoStream

from worker.contract.job import VideoCodec
from worker.video.values import MasteringDisplay, Picture

_CODEC_IDS = {
    VideoCodec.H264: "V_MPEG4/ISO/AVC",
    VideoCodec.HEVC: "V_MPEGH/ISO/HEVC",
    VideoCodec.AV1: "V_AV1",
    VideoCodec.VP9: "V_VP9",
    VideoCodec.FFV1: "V_FFV1",
    VideoCodec.PRORES: "V_PRORES",
}
_PRORES_FRAME_HEADER_BYTES = 8
"""Size and name ("icpf"), which Matroska leaves out."""

# Horizontal and vertical, as Matroska numbers them: 1 left or top, 2 half way.
_CHROMA_SITING = {"left": (1, 2), "center": (2, 2), "topleft": (1, 1), "top": (2, 1)}


def h26x_mastering_display(display: MasteringDisplay) -> str:
    """Return it as x264 and x265 take it: in steps of 0.00002, and of 0.0001 candelas per square metre."""
    return _mastering_display(display, lambda value: str(round(value * 50000)), lambda value: str(round(value * 10000)))


def av1_mastering_display(display: MasteringDisplay) -> str:
    """Return it as SVT-AV1 takes it: in decimal fractions."""
    return _mastering_display(display, lambda value: f"{float(value):.6f}", lambda value: f"{float(value):.5f}")


@contextmanager
def template_stream(
    codec: VideoCodec, picture: Picture, segment: VideoStream, first_packet: "Packet[VideoStream]"
) -> Iterator[VideoStream]:
    """Open a stream that has the segment's codec and header, and all that is known of the picture."""
    content = _matroska(codec, picture, segment, bytes(first_packet))
    with av.open(io.BytesIO(content), "r", format="matroska") as container:
        yield container.streams.video[0]


def _mastering_display(
    display: MasteringDisplay, coordinate: Callable[[Fraction], str], luminance: Callable[[Fraction], str]
) -> str:
    primaries, white_point = display.primaries, display.white_point
    if primaries is None or white_point is None or display.min_luminance is None or display.max_luminance is None:
        raise ValueError("an incomplete mastering display cannot be written")
    red, green, blue = primaries
    points = zip(("G", "B", "R", "WP"), (green, blue, red, white_point), strict=True)
    placed = "".join(f"{name}({coordinate(x)},{coordinate(y)})" for name, (x, y) in points)
    return f"{placed}L({luminance(display.max_luminance)},{luminance(display.min_luminance)})"


def _matroska(codec: VideoCodec, picture: Picture, segment: VideoStream, first_packet: bytes) -> bytes:
    """Return a whole little file. Names are Matroska's own (RFC 9559)."""
    private = segment.codec_context.extradata or b""
    if codec is VideoCodec.PRORES:
        private = segment.codec_context.codec_tag.encode()
        first_packet = first_packet[_PRORES_FRAME_HEADER_BYTES:]
    track = _element(
        0xAE,
        [  # TrackEntry
            _element(0xD7, 1),  # TrackNumber
            _element(0x73C5, 1),  # TrackUID
            _element(0x83, 1),  # TrackType: video
            _element(0x86, _CODEC_IDS[codec].encode()),
            _element(0x63A2, private) if private else b"",  # CodecPrivate
            _element(0xE0, _video(picture)),
        ],
    )
    segment_content = [
        _element(0x1549A966, [_element(0x2AD7B1, 1_000_000), _element(0x4D80, b"-"), _element(0x5741, b"-")]),  # Info
        _element(0x1654AE6B, track),  # Tracks
        _element(0x1F43B675, [_element(0xE7, 0), _element(0xA3, b"\x81\0\0\x80" + first_packet)]),  # Cluster
    ]
    header = [_element(0x4282, b"matroska"), _element(0x4287, 4), _element(0x4285, 2)]
    return _element(0x1A45DFA3, header) + _element(0x18538067, segment_content)


def _video(picture: Picture) -> list[bytes]:
    elements = [_element(0xB0, picture.width), _element(0xBA, picture.height)]
    crop = picture.crop
    if crop is not None:
        sides = {0x54AA: crop.bottom, 0x54BB: crop.top, 0x54CC: crop.left, 0x54DD: crop.right}
        elements += [_element(name, px) for name, px in sides.items() if px]
    return [*elements, _element(0x55B0, _colour(picture))]


def _colour(picture: Picture) -> list[bytes]:
    colour = picture.colour
    elements = [
        _element(0x55B1, colour.matrix),
        _element(0x55B9, colour.range),
        _element(0x55BA, colour.transfer),
        _element(0x55BB, colour.primaries),
    ]
    if colour.chroma_location in _CHROMA_SITING:
        horizontal, vertical = _CHROMA_SITING[colour.chroma_location]
        elements += [_element(0x55B7, horizontal), _element(0x55B8, vertical)]
    if picture.content_light is not None:
        elements.append(_element(0x55BC, picture.content_light.max_content))
        elements.append(_element(0x55BD, picture.content_light.max_frame_average))
    if picture.mastering_display is not None:
        elements.append(_element(0x55D0, _mastering_metadata(picture.mastering_display)))
    return elements


def _mastering_metadata(display: MasteringDisplay) -> list[bytes]:
    points = [*(display.primaries or ()), *([display.white_point] if display.white_point else [])]
    coordinates = [coordinate for point in points for coordinate in point]
    values = [*coordinates, display.max_luminance, display.min_luminance]
    return [_element(0x55D1 + number, float(value)) for number, value in enumerate(values) if value is not None]


def _element(name: int, content: int | float | bytes | list[bytes]) -> bytes:
    """One element of EBML: its name, its size in eight bytes, its content."""
    match content:
        case int():
            payload = content.to_bytes(8, "big")
        case float():
            payload = struct.pack(">d", content)
        case bytes():
            payload = content
        case _:
            payload = b"".join(content)
    return name.to_bytes(-(-name.bit_length() // 8), "big") + (1 << 56 | len(payload)).to_bytes(8, "big") + payload
