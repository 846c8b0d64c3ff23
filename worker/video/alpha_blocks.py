"""Transparency that lies beside the picture: VP8 and VP9 in Matroska and WebM.

Neither codec has transparency of its own. WebM's way (https://wiki.webmproject.org/alpha-channel) is a second stream of
the same codec whose luma is the transparency; its packets travel with the picture's, as "block additions" of id 1.
FFmpeg's decoders leave them unread, and the picture comes out opaque. libvpx's wrapper reads them, but it decodes a
picture of any size before it can be asked about limits. So both are decoded here by FFmpeg's own, and put together.
"""

from typing import cast

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.stream import VideoStream

_CODECS = ("vp8", "vp9")
_ID_BYTES, _ALPHA_ID = 8, 1


class AlphaBlocks:
    """Decodes the transparency beside one stream, from where the stream's own decoder begins.

    Every packet goes to `feed` before it goes to the stream's decoder, and every frame through `join` behind it.
    """

    def __init__(self, stream: VideoStream) -> None:
        """`stream` must be prepared for decoding, and not have begun."""
        # This decoder has no delay: frame threads would give it one.
        self._decoder = cast(VideoCodecContext, av.CodecContext.create(stream.codec_context.name, "r"))
        self._decoder.thread_type = "SLICE"
        self._decoder.thread_count = stream.codec_context.thread_count
        self._decoder.options = {"max_pixels": stream.codec_context.options["max_pixels"]}
        self._waiting: dict[int | None, VideoFrame] = {}

    def feed(self, packet: "Packet[VideoStream]") -> None:
        """Raises what decoders raise."""
        block = _alpha_block(packet)
        if block is None:
            return
        alone = Packet(block)
        alone.pts, alone.dts, alone.time_base = packet.pts, packet.dts, packet.time_base
        for frame in self._decoder.decode(alone):
            self._waiting[frame.pts] = frame

    def join(self, frame: VideoFrame) -> VideoFrame:
        """Return the frame with its transparency; opaque, as browsers show it, where the file holds none for it.

        Raises `ValueError` where the two do not fit together. Side data stay with the frame that was given.
        """
        alpha = self._waiting.pop(frame.pts, None)
        # Earlier ones belong to frames that the decoder did not show.
        self._waiting = {pts: later for pts, later in self._waiting.items() if (pts or 0) > (frame.pts or 0)}
        joined = VideoFrame(frame.width, frame.height, _with_alpha(frame.format.name))
        joined.pts, joined.dts, joined.time_base, joined.duration = (
            frame.pts,
            frame.dts,
            frame.time_base,
            frame.duration,
        )
        joined.colorspace, joined.color_range = frame.colorspace, frame.color_range
        joined.color_primaries, joined.color_trc = frame.color_primaries, frame.color_trc
        for plane, original in zip(joined.planes, frame.planes, strict=False):  # the last one is still to come
            _samples(plane, joined)[:] = _samples(original, frame)
        bits = frame.format.components[0].bits
        if alpha is None:
            _samples(joined.planes[-1], joined)[:] = 2**bits - 1
        elif (alpha.width, alpha.height, alpha.format.components[0].bits) == (frame.width, frame.height, bits):
            _samples(joined.planes[-1], joined)[:] = _samples(alpha.planes[0], alpha)
        else:
            raise ValueError(f"the transparency is {alpha.width}x{alpha.height} {alpha.format.name}")
        return joined


def alpha_blocks(stream: VideoStream, first_packet: "Packet[VideoStream]") -> AlphaBlocks | None:
    """Return the decoder of the transparency beside `stream`; None where it has none, as nearly all streams.

    The mark in the file does not say it for certain: FFmpeg keeps it when it drops the transparency. So the first
    packet that is to be decoded decides.
    """
    context = stream.codec_context
    marks = [value for key, value in stream.metadata.items() if key.lower() == "alpha_mode"]
    if context.name not in _CODECS or marks != ["1"] or _alpha_block(first_packet) is None:
        return None
    return AlphaBlocks(stream)


def _alpha_block(packet: "Packet[VideoStream]") -> bytes | None:
    if not packet.has_sidedata("matroska_block_additional"):
        return None
    block = bytes(packet.get_sidedata("matroska_block_additional"))
    if int.from_bytes(block[:_ID_BYTES], "big") != _ALPHA_ID:
        return None
    return block[_ID_BYTES:] or None


def _with_alpha(pixel_format: str) -> str:
    return pixel_format.replace("yuv", "yuva", 1).replace("gbr", "gbra", 1)


def _samples(plane: VideoPlane, frame: VideoFrame) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8 | np.uint16]]":
    """The visible samples of one plane as (H, W); writing to them writes to the frame."""
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    rows = np.frombuffer(memoryview(plane), dtype)
    return rows.reshape(plane.height, -1)[:, : plane.width]  # type: ignore[return-value]
