"""Frames through a lossy codec and back, in memory: what uploaded video looks like, for training on it.

Whole sequences go through the encoder, with its usual prediction from frame to frame, so that what it does to the
pictures is what it does to video. One thread, and code that is the same on all processors: the same frames give the
same result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from worker.video.colour import FromRgb, ToRgb, conversion_matrix
from worker.video.encode import SAME_CODE_EVERYWHERE
from worker.video.frames import Frame
from worker.video.values import Colour, Picture

RgbFrames = npt.NDArray[np.uint8]
"""(T, H, W, 3) uint8."""

_RATE = Fraction(25)
_TIME_BASE = 1 / _RATE
_UNKNOWN, _LIMITED_RANGE = 2, 1


class LossyCodec(StrEnum):
    """Codecs that video comes in. H.264 and HEVC have crf 0 to 51, VP9 0 to 63; higher is worse."""

    H264 = "h264"
    HEVC = "hevc"
    VP9 = "vp9"


# x265 takes sides from 16 px on, but where one is not longer than its block of 64 px it gives other bytes from run to
# run (measured: up to 34 encodes in 40 of the same 25 frames of 64x128; from 66 px on, none in 400).
_MIN_SIDE_PX = {LossyCodec.H264: 16, LossyCodec.HEVC: 72, LossyCodec.VP9: 16}
_ENCODERS = {LossyCodec.H264: "libx264", LossyCodec.HEVC: "libx265", LossyCodec.VP9: "libvpx-vp9"}
_OPTIONS = {
    # Else the presets' own choices: B-frames, references and key frames as in most video on the net.
    LossyCodec.H264: {"preset": "medium", "x264-params": ":".join(SAME_CODE_EVERYWHERE)},
    LossyCodec.HEVC: {
        "preset": "medium",
        "x265-params": ":".join(["pools=none", "frame-threads=1", "log-level=error", *SAME_CODE_EVERYWHERE]),
    },
    LossyCodec.VP9: {"deadline": "good", "cpu-used": "2", "row-mt": "0", "b": "0"},
}


@dataclass(frozen=True)
class Recompressed:
    """What came out of the codec, and in how many bytes and kinds of pictures ("I", "P", "B") it was kept."""

    frames: RgbFrames
    size_bytes: int
    picture_types: str


def recompress(frames: RgbFrames, codec: LossyCodec, crf: int) -> Recompressed:
    """Encode 8-bit frames as 4:2:0 video at a constant quality, and decode them.

    Sides that the codec cannot have are filled up by repeating the edge, and cut off again.
    """
    height, width = frames.shape[1:3]
    padded = _padded(frames, _MIN_SIDE_PX[codec])
    picture = _picture(padded, "yuv420p")
    packets = list(_encoded(padded, picture, codec, crf))
    decoder = av.CodecContext.create(codec.value, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    to_rgb = ToRgb(picture)
    result = np.stack([to_rgb(frame).rgb[:height, :width] for frame in decoded]).astype(np.uint8, copy=False)
    if len(result) != len(frames):
        raise RuntimeError(f"{len(frames)} frames went into {codec}, {len(result)} came out")
    return Recompressed(
        result,
        sum(packet.size for packet in packets),
        "".join(PictureType(frame.pict_type).name[0] for frame in decoded),
    )


def subsample_chroma(frames: RgbFrames, pixel_format: str) -> RgbFrames:
    """To 8-bit YUV of a format such as "yuv420p" and back, without any codec."""
    height, width = frames.shape[1:3]
    padded = _padded(frames, 2)
    picture = _picture(padded, pixel_format)
    from_rgb, to_rgb = FromRgb(picture), ToRgb(picture)
    return np.stack([to_rgb(from_rgb(Frame(rgb))).rgb[:height, :width] for rgb in padded]).astype(np.uint8, copy=False)


def _encoded(frames: RgbFrames, picture: Picture, codec: LossyCodec, crf: int) -> "Iterator[av.Packet[VideoStream]]":
    encoder = av.CodecContext.create(_ENCODERS[codec], "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.pixel_format
    encoder.time_base, encoder.framerate = _TIME_BASE, _RATE
    encoder.color_range = _LIMITED_RANGE
    encoder.thread_count = 1
    encoder.options = {**_OPTIONS[codec], "crf": str(crf)}
    from_rgb = FromRgb(picture)
    for number, rgb in enumerate(frames):
        frame = from_rgb(Frame(rgb))
        frame.pts, frame.time_base = number, _TIME_BASE
        yield from encoder.encode(frame)
    yield from encoder.encode(None)


def _padded(frames: RgbFrames, min_side_px: int) -> RgbFrames:
    """With sides of at least so many px, and even ones, as 4:2:0 needs."""
    height, width = frames.shape[1:3]
    more = [max(min_side_px, side + side % 2) - side for side in (height, width)]
    return np.pad(frames, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), mode="edge") if any(more) else frames


def _picture(frames: RgbFrames, pixel_format: str) -> Picture:
    """Untagged limited-range video, of the matrix that players take it for."""
    height, width = frames.shape[1:3]
    return Picture(
        width=width,
        height=height,
        pixel_format=pixel_format,
        bit_depth=8,
        colour=Colour(
            matrix=_UNKNOWN,
            range=_LIMITED_RANGE,
            primaries=_UNKNOWN,
            transfer=_UNKNOWN,
            conversion=conversion_matrix(_UNKNOWN, height),
            chroma_location="left",
        ),
        sample_aspect_ratio=None,
        display_matrix=None,
        field_order="progressive",
    )
