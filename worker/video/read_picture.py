"""What a decoded frame and its container say about the picture: shape, colours, crop, HDR, and what lies beside it."""

import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import av.logging
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.scene_cuts import LumaImage
from worker.video.colour import conversion_matrix
from worker.video.values import Colour, ContentLight, Crop, MasteringDisplay, Picture

FULL_RANGE = 2
UNTAGGED = (2, 0, 2, 2)
"""Matrix, range, primaries and transfer that say nothing."""

_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_PIXEL_FORMAT_DETAILS = re.compile(r", \w+\(([^()]*)\)")
_STREAM_LINE = re.compile(r"\s*Stream #0:(\d+)")
_CROP_LINE = re.compile(r"\s*Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", re.IGNORECASE)
_DOLBY_VISION_LINE = re.compile(r"\s*DOVI configuration record:")

_CANNOT_KEEP = {
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+ dynamic metadata",
    SideDataType.DYNAMIC_HDR_VIVID: "HDR Vivid dynamic metadata",
    SideDataType.DOVI_METADATA: "Dolby Vision dynamic metadata",
    SideDataType.DOVI_RPU_BUFFER: "Dolby Vision dynamic metadata",
    SideDataType.AMBIENT_VIEWING_ENVIRONMENT: "the HDR viewing environment (SMPTE ST 2094-10's ambient light)",
    SideDataType.SPHERICAL: "the mark of spherical (360 degrees) video",
    SideDataType.STEREO3D: "the mark of stereoscopic (3D) video",
    SideDataType.ICC_PROFILE: "an ICC colour profile",
    SideDataType.A53_CC: "closed captions inside the picture (CEA-608/708)",
}
_DROPPED = {
    SideDataType.AFD: "the active format description (AFD) is dropped: the picture keeps its shape",
    SideDataType.PANSCAN: "pan and scan offsets are dropped: the whole picture is kept",
    SideDataType.GOP_TIMECODE: "time codes inside the picture are dropped",
    SideDataType.S12M_TIMECODE: "time codes inside the picture are dropped",
}
_STEREO_2D = 0
_PANSCAN_OFFSETS_AT = 12
_CAPTION_BYTES = 3
_VALID_CAPTION, _EMPTY_CAPTION = 0x04, (0x80, 0x80)


def read_picture(container: InputContainer, stream: VideoStream, first: VideoFrame) -> Picture:
    """Describe the frames of a stream by the first one, as the decoder gave it.

    Fields are not judged here, and neither is whether a format that could be transparent is so.
    """
    side_data = side_data_of(first)
    description = _description(container, stream)
    return Picture(
        width=first.width,
        height=first.height,
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        colour=Colour(
            matrix=int(first.colorspace),
            range=FULL_RANGE if is_full_range(first) else int(first.color_range),
            primaries=int(first.color_primaries),
            transfer=int(first.color_trc),
            conversion=conversion_matrix(int(first.colorspace), first.height),
            chroma_location=_chroma_location(description),
        ),
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        display_matrix=_display_matrix(side_data),
        field_order="progressive",
        has_alpha=any(component.is_alpha for component in first.format.components),
        crop=_crop(description),
        mastering_display=_mastering_display(side_data),
        content_light=_content_light(side_data),
    )


def is_full_range(frame: VideoFrame) -> bool:
    return bool(frame.color_range == FULL_RANGE) or frame.format.name.startswith("yuvj")


def luma_plane(frame: VideoFrame) -> LumaImage | None:
    """Return a view of the luma (H, W) where it lies in a plane of its own, as in most video; else None."""
    components = frame.format.components
    luma = components[0]
    alone = [component.plane for component in components].count(0) == 1
    if frame.format.is_rgb or frame.format.is_big_endian or not alone or not 8 <= luma.bits <= 16:
        return None
    if frame.format.name.startswith("p"):  # pal8, and p010 and the like, whose samples are shifted
        return None
    plane = frame.planes[0]
    pixels = np.frombuffer(memoryview(plane), np.uint8 if luma.bits == 8 else np.uint16)
    return cast("LumaImage", pixels.reshape(plane.height, -1)[:, : frame.width])


def is_transparent(frame: VideoFrame) -> bool:
    """Whether a pixel of a frame in 8-bit RGB with alpha, or with a palette, is not opaque."""
    place = {"bgra": 3, "rgba": 3, "argb": 0, "abgr": 0}.get(frame.format.name)
    if place is None and not frame.format.has_palette:
        return False
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    if place is not None:
        return bool(rows[:, place : 4 * frame.width : 4].min() < 255)
    palette = np.frombuffer(memoryview(frame.planes[1]), np.uint32)[:256]
    return bool((palette >> 24 < 255)[rows[:, : frame.width]].any())


def side_data_of(frame: VideoFrame) -> dict[SideDataType, bytes]:
    """PyAV's container of side data iterates over its values, not over keys as its stubs say.

    It cannot be read at all where it holds a kind that PyAV has no name for (Exif).
    """
    try:
        return {item.type: bytes(item) for item in cast(Any, frame.side_data)}
    except ValueError:
        return {}


class SideDataWatch:
    """Sees what lies beside the frames of a video and has no place in a result."""

    def __init__(self) -> None:
        self._seen: dict[SideDataType, None] = {}

    def see(self, frame: VideoFrame) -> None:
        for kind, content in side_data_of(frame).items():
            if kind not in self._seen and _says_something(kind, content):
                self._seen[kind] = None

    def cannot_keep(self, container: InputContainer, stream: VideoStream) -> tuple[str, ...]:
        """Name what is lost, in words."""
        words = [_CANNOT_KEEP[kind] for kind in self._seen if kind in _CANNOT_KEEP]
        if any(_DOLBY_VISION_LINE.match(line) for line in _description(container, stream)):
            words.append(_CANNOT_KEEP[SideDataType.DOVI_METADATA])
        return tuple(dict.fromkeys(words))

    def notes(self) -> tuple[str, ...]:
        """Name what is dropped without being missed."""
        return tuple(dict.fromkeys(_DROPPED[kind] for kind in self._seen if kind in _DROPPED))


def _says_something(kind: SideDataType, content: bytes) -> bool:
    """Broadcast video has room for captions in every frame, mostly empty."""
    if kind is SideDataType.STEREO3D:
        return struct.unpack_from("=i", content) != (_STEREO_2D,)
    if kind is SideDataType.PANSCAN:
        return any(struct.unpack_from("=6h", content, _PANSCAN_OFFSETS_AT))
    if kind is not SideDataType.A53_CC:
        return True
    triplets = (content[at : at + _CAPTION_BYTES] for at in range(0, len(content) - _CAPTION_BYTES + 1, _CAPTION_BYTES))
    return any(mark & _VALID_CAPTION and (one, two) != _EMPTY_CAPTION for mark, one, two in triplets)


def _description(container: InputContainer, stream: VideoStream) -> list[str]:
    """FFmpeg's own description of the stream, where alone PyAV shows some things, and only at this log level."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    av.logging.set_libav_level(av.logging.VERBOSE)
    try:
        lines = cast(Any, container).dumps_format().splitlines()  # not in PyAV's stubs
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        av.logging.set_level(level)
    begins = {int(match[1]): number for number, line in enumerate(lines) if (match := _STREAM_LINE.match(line))}
    begin = begins.get(stream.index, len(lines))
    end = min((number for number in begins.values() if number > begin), default=len(lines))
    return cast("list[str]", lines[begin:end])


def _chroma_location(description: Sequence[str]) -> str:
    # "Stream #0:0(und): Video: h264 (High), yuv420p(tv, bt709, top first, left), 64x48": whole items only, as the
    # order of fields has words in common with the place of chroma.
    details = _PIXEL_FORMAT_DETAILS.findall(description[0]) if description else []
    items = [item.strip() for detail in details for item in detail.split(",")]
    return next((item for item in items if item in _CHROMA_LOCATIONS), "unspecified")


def _crop(description: Sequence[str]) -> Crop | None:
    for line in description:
        if match := _CROP_LINE.match(line):
            left, right, top, bottom = (int(edge) for edge in match.groups())
            return Crop(left=left, right=right, top=top, bottom=bottom) if any((left, right, top, bottom)) else None
    return None


def _display_matrix(side_data: dict[SideDataType, bytes]) -> tuple[int, ...] | None:
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    return None if matrix is None else struct.unpack("=9i", matrix)


def _mastering_display(side_data: dict[SideDataType, bytes]) -> MasteringDisplay | None:
    """FFmpeg's AVMasteringDisplayMetadata: ten rationals, and whether the first eight and the last two are there."""
    content = side_data.get(SideDataType.MASTERING_DISPLAY_METADATA)
    if content is None:
        return None
    numbers = struct.unpack("=22i", content)
    values = [
        Fraction(over, under) if under else Fraction(0)
        for over, under in zip(numbers[:20:2], numbers[1:20:2], strict=True)
    ]
    has_primaries, has_luminance = numbers[20:]
    red, green, blue, white = ((values[at], values[at + 1]) for at in (0, 2, 4, 6))
    return MasteringDisplay(
        primaries=(red, green, blue) if has_primaries else None,
        white_point=white if has_primaries else None,
        min_luminance=values[8] if has_luminance else None,
        max_luminance=values[9] if has_luminance else None,
    )


def _content_light(side_data: dict[SideDataType, bytes]) -> ContentLight | None:
    content = side_data.get(SideDataType.CONTENT_LIGHT_LEVEL)
    if content is None:
        return None
    max_content, max_frame_average = struct.unpack("=2I", content)
    return ContentLight(max_content=max_content, max_frame_average=max_frame_average)


def colour_tags(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Matrix, range, primaries and transfer, as tagged."""
    return frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
