"""One reading of a source from end to end: what it is, every frame in it, and why it is refused if it is."""

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import av
import av.logging
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.scene_cuts import CutDetector, LumaImage, RgbImage
from worker.settings import VideoLimits
from worker.video.colour import conversion_matrix
from worker.video.source import decode_all, frame_crc32, frame_stamp, main_video_stream, open_source
from worker.video.values import Colour, FrameTable, OtherStream, Picture, Survey

_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_PIXEL_FORMAT_DETAILS = re.compile(r", \w+\(([^()]*)\)")
_INTERLACED_FIELD_ORDERS = (2, 3, 4, 5)
_FULL_RANGE = 2
_MATROSKA_DURATION_SLACK_SECONDS = 1.0
_PIXELS_TO_DEMUX = 1024 * 1024  # opening decodes a little of every stream; here no picture is wanted


def survey(
    source: Path,
    limits: VideoLimits,
    on_progress: Callable[[], None] = lambda: None,
    *,
    deinterlace: Literal["auto", "always", "never"] = "auto",
    on_error: Literal["fail", "conceal"] = "fail",
) -> Survey:
    """Decode every frame once. Raises `JobFailureError` for anything that cannot be upscaled whole and in order.

    `on_progress` is called for every frame and packet read; it may stop the work by raising.
    """
    with open_source(source, limits.max_pixels) as container:
        stream = main_video_stream(container, limits.max_pixels)
        _check_size(stream.width, stream.height, limits)
        table, first, cuts = _read_frames(container, stream, limits, on_progress)
        _check_not_truncated(source, container, table, on_progress)
        # Known to the decoder only now, after it has seen frames.
        picture = read_picture(container, stream, first)
        return Survey(
            format_names=tuple(container.format.name.split(",")),
            is_quicktime=container.metadata.get("major_brand", "").strip() == "qt",
            is_webm=_is_webm(source),
            stream_index=stream.index,
            codec=stream.codec_context.codec.canonical_name,
            picture=picture,
            frames=table,
            average_rate=_average_rate(stream, table),
            others=tuple(_other(other) for other in container.streams if other.index != stream.index),
            cuts=tuple(cuts),
            notes=tuple(_notes(first, picture)),
        )


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width > limits.max_width or height > limits.max_height or width * height > limits.max_pixels:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED,
            f"the video is {width}x{height}; the limit is {limits.max_width}x{limits.max_height} "
            f"and {limits.max_pixels} pixels",
        )


def _read_frames(
    container: InputContainer, stream: VideoStream, limits: VideoLimits, on_progress: Callable[[], None]
) -> tuple[FrameTable, VideoFrame, list[int]]:
    """Decode all frames, keeping of each its time and checksum only, of the first the frame itself, and the cuts."""
    first: VideoFrame | None = None
    cut_detector = CutDetector()
    cuts: list[int] = []
    stamps: list[int] = []
    crc32: list[int] = []
    time_base = stream.time_base or Fraction(0)
    if time_base <= 0:
        raise JobFailureError(FailureCode.BAD_TIMESTAMPS, "the video stream has no time base")
    last_duration = 0
    for frame in decode_all(container, stream, on_progress):
        if first is None:
            first = frame
            _check_size(first.width, first.height, limits)  # the header need not have told the truth
        _check_unchanged(frame, first, len(stamps), time_base)
        stamp = frame_stamp(frame)
        if stamp is None:
            raise JobFailureError(
                FailureCode.BAD_TIMESTAMPS, f"frame {len(stamps)} has no timestamp: remux the file, to mkv for example"
            )
        if _begins_shot(cut_detector, frame):
            cuts.append(len(stamps))
        stamps.append(stamp)
        crc32.append(frame_crc32(frame))
        last_duration = frame.duration
        _check_length(stamps, time_base, limits)
    if first is None:
        raise JobFailureError(FailureCode.NO_FRAMES, "the video stream has no frames that can be decoded")
    pts = _presentation_times(stamps, container.format.name, time_base)
    if last_duration <= 0:
        last_duration = pts[-1] - pts[-2] if len(pts) > 1 else max(1, round(Fraction(1, 25) / time_base))
    table = FrameTable(
        pts=tuple(pts),
        stamps=None if stamps == pts else tuple(stamps),
        crc32=tuple(crc32),
        time_base=time_base,
        last_duration=last_duration,
    )
    return table, first, cuts


def _begins_shot(detector: CutDetector, frame: VideoFrame) -> bool:
    luma = luma_plane(frame)
    if luma is None:
        return detector.begins_shot(cast("RgbImage", frame.to_ndarray(format="rgb24")))
    bits = frame.format.components[0].bits
    if frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj"):
        return detector.begins_shot_luma(luma, 0, (1 << bits) - 1)
    return detector.begins_shot_luma(luma, 16 << bits - 8, 235 << bits - 8)


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


def _presentation_times(stamps: list[int], format_name: str, time_base: Fraction) -> list[int]:
    """Return when each frame is shown, in the order of display.

    AVI and ASF may stamp packets in the order of decoding. The times are right, only dealt out to the wrong frames: the
    first frame shown has the earliest, and so on.
    """
    if format_name in ("avi", "asf") and len(set(stamps)) == len(stamps):
        return sorted(stamps)
    for number in range(1, len(stamps)):
        if stamps[number] <= stamps[number - 1]:
            raise JobFailureError(
                FailureCode.BAD_TIMESTAMPS,
                f"frame {number} is stamped {float(stamps[number] * time_base):.3f} s, not after the frame before it "
                f"({float(stamps[number - 1] * time_base):.3f} s): remux the file to mend its timestamps",
            )
    return stamps


def _check_unchanged(frame: VideoFrame, first: VideoFrame, number: int, time_base: Fraction) -> None:
    now = (frame.width, frame.height, frame.format.name)
    before = (first.width, first.height, first.format.name)
    if now != before:
        seconds = float((frame_stamp(frame) or 0) * time_base)
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE,
            f"the picture changes from {before[0]}x{before[1]} {before[2]} to {now[0]}x{now[1]} {now[2]} "
            f"at frame {number} ({seconds:.3f} s): split the file there",
        )


def _check_length(stamps: list[int], time_base: Fraction, limits: VideoLimits) -> None:
    if len(stamps) > limits.max_frames:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"the video has more than {limits.max_frames} frames, the limit"
        )
    if (stamps[-1] - stamps[0]) * time_base > limits.max_duration_seconds:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"the video is longer than {limits.max_duration_seconds:.0f} s, the limit"
        )


def _check_not_truncated(
    source: Path, container: InputContainer, table: FrameTable, on_progress: Callable[[], None]
) -> None:
    """Containers say how much they hold. FFmpeg ends a file that was cut off as if nothing were missing."""
    end_seconds = table.seconds(len(table) - 1)
    names = container.format.name.split(",")
    missing: str | None = None
    if "mp4" in names:
        missing = _missing_samples(container)
    elif "matroska" in names and container.duration is not None:
        declared_seconds = container.duration / av.time_base
        end_seconds = max(end_seconds, _end_of_any_stream(source, on_progress))
        if declared_seconds - end_seconds > _MATROSKA_DURATION_SLACK_SECONDS:
            missing = f"{declared_seconds:.3f} s were announced"
    elif "avi" in names:
        missing_bytes = _riff_bytes(source) - source.stat().st_size
        if missing_bytes > 1:  # one may be padding
            missing = f"{missing_bytes} bytes are missing"
    if missing is not None:
        raise JobFailureError(
            FailureCode.CORRUPT_FRAME,
            f"the file is cut off after video frame {len(table) - 1} ({end_seconds:.3f} s): {missing}",
        )


def _missing_samples(container: InputContainer) -> str | None:
    """Count what the index of an mp4 lists beyond the end of the file, in any stream."""
    for stream in container.streams:
        entries = list(stream.index_entries)
        missing = sum(entry.pos + entry.size > container.size for entry in entries)
        if missing:
            return f"{missing} of {len(entries)} samples of the {stream.type} stream {stream.index} are missing"
    return None


def _riff_bytes(source: Path) -> int:
    """Return how long the file's first RIFF chunk says that it is; 0 where the recorder never wrote it."""
    with source.open("rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:8], "little")
    return size + 8 if size else 0


def _end_of_any_stream(source: Path, on_progress: Callable[[], None]) -> float:
    """Return the latest time in the file, of sound and subtitles too: those may last longer than the picture."""
    end = 0.0
    with open_source(source, _PIXELS_TO_DEMUX) as container:
        for packet in container.demux():
            on_progress()
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end


def read_picture(container: InputContainer, stream: VideoStream, first: VideoFrame) -> Picture:
    return Picture(
        width=first.width,
        height=first.height,
        pixel_format=first.format.name,
        bit_depth=max(component.bits for component in first.format.components),
        colour=Colour(
            matrix=int(first.colorspace),
            range=2 if first.format.name.startswith("yuvj") else int(first.color_range),
            primaries=int(first.color_primaries),
            transfer=int(first.color_trc),
            conversion=conversion_matrix(int(first.colorspace), first.height),
            chroma_location=_chroma_location(container, stream),
        ),
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        display_matrix=_display_matrix(first),
        field_order="top_first"
        if first.interlaced_frame or stream.codec_context.field_order in _INTERLACED_FIELD_ORDERS
        else "progressive",
    )


def _chroma_location(container: InputContainer, stream: VideoStream) -> str:
    """Read it from FFmpeg's own description of the stream, where alone PyAV shows it, and only at this log level."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    av.logging.set_libav_level(av.logging.VERBOSE)
    try:
        lines = cast(Any, container).dumps_format().splitlines()  # not in PyAV's stubs
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        av.logging.set_level(level)
    line = next((text for text in lines if text.strip().startswith(f"Stream #0:{stream.index}")), "")
    # "Stream #0:0(und): Video: h264 (High), yuv420p(tv, bt709, top first, left), 64x48": whole items only, as the
    # order of fields has words in common with the place of chroma.
    items = [item.strip() for items in _PIXEL_FORMAT_DETAILS.findall(line) for item in items.split(",")]
    return next((item for item in items if item in _CHROMA_LOCATIONS), "unspecified")


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    matrix = _side_data(frame).get(SideDataType.DISPLAYMATRIX)
    return None if matrix is None else struct.unpack("=9i", matrix)


def _side_data(frame: VideoFrame) -> dict[SideDataType, bytes]:
    """PyAV's container of side data iterates over its values, not over keys as its stubs say."""
    return {item.type: bytes(item) for item in cast(Any, frame.side_data)}


def _average_rate(stream: VideoStream, table: FrameTable) -> Fraction:
    """Frames per second: what the container says, else what the timestamps say."""
    declared = stream.average_rate
    if declared and 0 < declared <= 1000:
        return declared
    if len(table) > 1:
        measured = (len(table) - 1) / ((table.pts[-1] - table.pts[0]) * table.time_base)
        return measured.limit_denominator(1001)
    return Fraction(25)


def _other(stream: Stream) -> OtherStream:
    context = cast("CodecContext | None", stream.codec_context)  # None where FFmpeg has no decoder
    codec = context.codec.canonical_name if context is not None else None
    if stream.type == "data":
        # QuickTime's timecode track has no codec in FFmpeg's eyes.
        codec = "tmcd" if "timecode" in stream.metadata else stream.name
    return OtherStream(
        index=stream.index,
        type=stream.type,
        codec=codec,
        language=stream.language,
        attached_picture=bool(stream.disposition & Disposition.attached_pic),
    )


def _is_webm(source: Path) -> bool:
    """EBML's DocType element (0x4282, 4 bytes) lies in the first header; FFmpeg's name is the same for both types."""
    with source.open("rb") as file:
        return b"\x42\x82\x84webm" in file.read(4096)


def _notes(first: VideoFrame, picture: Picture) -> list[str]:
    notes = []
    if any(component.is_alpha for component in first.format.components):
        notes.append("transparency is dropped: the result's codecs have none")
    if picture.bit_depth > 10:
        notes.append(f"{picture.bit_depth} bits per sample become 10")
    chroma_of_2x2 = (first.format.chroma_width(2), first.format.chroma_height(2))
    if chroma_of_2x2 != (1, 1):
        notes.append(f"{picture.pixel_format} becomes 4:2:0")
    if picture.field_order != "progressive":
        notes.append("the source is interlaced: its fields are upscaled woven together, as one frame")
    if {SideDataType.MASTERING_DISPLAY_METADATA, SideDataType.CONTENT_LIGHT_LEVEL} & _side_data(first).keys():
        notes.append("HDR mastering metadata (display and light level) is dropped; colour tags are kept")
    return notes
