"""One reading of a source from end to end: what it is, every frame in it, and why it is refused if it is."""

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Literal, cast

import av
from av.codec.context import CodecContext
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.scene_cuts import CutDetector, RgbImage
from worker.settings import VideoLimits
from worker.video.animation import animation_note
from worker.video.colour import conversion_matrix
from worker.video.deinterlace import FieldOrder, FieldWatch, can_be_deinterlaced
from worker.video.packet_ledger import PacketLedger
from worker.video.read_picture import (
    FULL_RANGE,
    UNTAGGED,
    SideDataWatch,
    colour_tags,
    is_full_range,
    is_transparent,
    luma_plane,
    read_picture,
)
from worker.video.source import decode_all, frame_crc32, frame_stamp, main_video_stream, new_ledger, open_source
from worker.video.values import MAX_LANGUAGE_LETTERS, Colour, FrameTable, OtherStream, Survey

_REPEAT = -1
_WAY_OUT = "Mend the file, or go on with what can be decoded (--on-error conceal, on_error=conceal)"
_CONTAINER_FIELDS: dict[int, FieldOrder] = {2: "top_first", 3: "bottom_first", 4: "top_first", 5: "bottom_first"}
_MATROSKA_DURATION_SLACK_SECONDS = 1.0
_STEADY_SHARE = 0.9
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
    conceal = on_error == "conceal"
    with open_source(source, limits.max_pixels) as container:
        stream = main_video_stream(container, limits.max_pixels, conceal=conceal)
        _check_size(stream.width, stream.height, limits)
        codec = stream.codec_context.codec.canonical_name
        ledger = new_ledger(container, stream)
        seen = _Seen()
        time_base = _time_base(stream)
        try:
            for frame in decode_all(container, stream, on_progress, conceal=conceal, ledger=ledger):
                seen.see(frame, time_base, limits)
        except JobFailureError as failure:
            if failure.code is not FailureCode.CORRUPT_FRAME or conceal:
                raise
            raise JobFailureError(failure.code, f"{failure.message}. {_WAY_OUT}") from failure
        if seen.first is None or ledger.first_frame is None:
            raise JobFailureError(FailureCode.NO_FRAMES, "the video stream has no frames that can be decoded")
        lost, before_start = ledger.lost()
        table, origins = _table(seen, ledger, lost, container.format.name, time_base, conceal=conceal)
        _check_not_truncated(source, container, table, on_progress)
        if lost and not conceal:
            raise _lost_packets(ledger, lost, time_base)
        # Known to the decoder only now, after it has seen frames.
        picture = read_picture(container, stream, ledger.first_frame).model_copy(
            update={"pixel_format": seen.first.format.name, "has_alpha": seen.has_alpha(codec)}
        )
        fields = seen.fields.verdict(
            deinterlace,
            _CONTAINER_FIELDS.get(stream.codec_context.field_order, "progressive"),
            can_be_done=can_be_deinterlaced(picture),
        )
        places = {frame: place for place, frame in reversed(list(enumerate(origins)))}
        return Survey(
            format_names=tuple(container.format.name.split(",")),
            is_quicktime=container.metadata.get("major_brand", "").strip() == "qt",
            is_webm=_is_webm(source),
            stream_index=stream.index,
            codec=codec,
            picture=picture.model_copy(update={"colour": seen.tagged(picture.colour), "field_order": fields.order}),
            frames=table.model_copy(
                update={"progressive": _at(fields.progressive, origins), "taken_as_it_comes": conceal}
            ),
            average_rate=_average_rate(stream, table),
            others=tuple(_other(other) for other in container.streams if other.index != stream.index),
            cuts=tuple(places[cut] for cut in seen.cuts),
            cannot_keep=seen.side_data.cannot_keep(container, stream),
            notes=(
                *filter(None, [animation_note(source, container.format.name)]),
                *seen.colour_notes,
                *fields.notes,
                *seen.side_data.notes(),
                *_packet_notes(ledger, before_start, table, time_base, container.format.name),
            ),
        )


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width > limits.max_width or height > limits.max_height or width * height > limits.max_pixels:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED,
            f"the video is {width}x{height}; the limit is {limits.max_width}x{limits.max_height} "
            f"and {limits.max_pixels} pixels",
        )


def _time_base(stream: VideoStream) -> Fraction:
    time_base = stream.time_base or Fraction(0)
    if time_base <= 0:
        raise JobFailureError(FailureCode.BAD_TIMESTAMPS, "the video stream has no time base")
    return time_base


class _Seen:
    """What is kept of the frames: of each its time and checksum only, of the first the frame itself."""

    def __init__(self) -> None:
        self.first: VideoFrame | None = None
        self.stamps: list[int] = []
        self.crc32: list[int] = []
        self.cuts: list[int] = []
        self.last_duration = 0
        self.fields = FieldWatch()
        self.side_data = SideDataWatch()
        self.colour_notes: list[str] = []
        self._cut_detector = CutDetector()
        self._tags = (0, 0, 0, 0)
        self._transparent = False

    def see(self, frame: VideoFrame, time_base: Fraction, limits: VideoLimits) -> None:
        """Raises `JobFailureError` where the frame does not fit those before it, or exceeds a limit."""
        number = len(self.stamps)
        if self.first is None:
            self.first = frame
            self._tags = colour_tags(frame)
            _check_size(frame.width, frame.height, limits)  # the header need not have told the truth
        stamp = frame_stamp(frame)
        if stamp is None:
            raise JobFailureError(
                FailureCode.BAD_TIMESTAMPS, f"frame {number} has no timestamp: remux the file, to mkv for example"
            )
        _check_unchanged(frame, self.first, number, float(stamp * time_base))
        self._check_colours(frame, number, float(stamp * time_base))
        luma = luma_plane(frame)
        if luma is not None:
            bits = frame.format.components[0].bits
            black, white = (0, (1 << bits) - 1) if is_full_range(frame) else (16 << bits - 8, 235 << bits - 8)
            begins_shot = self._cut_detector.begins_shot_luma(luma, black, white)
            self.fields.see(frame, luma, bits)
        else:
            rgb = cast("RgbImage", frame.to_ndarray(format="rgb24"))
            begins_shot = self._cut_detector.begins_shot(rgb)
            self.fields.see(frame, rgb[:, :, 1], 8)
        if begins_shot:
            self.cuts.append(number)
        self.side_data.see(frame)
        self._transparent = self._transparent or is_transparent(frame)
        self.stamps.append(stamp)
        self.crc32.append(frame_crc32(frame))
        self.last_duration = frame.duration
        _check_length(self.stamps, frame.width * frame.height, time_base, limits)

    def _check_colours(self, frame: VideoFrame, number: int, seconds: float) -> None:
        """Let tags appear later than in the first frame as long as nothing is shown otherwise than it was."""
        now, before = colour_tags(frame), self._tags
        if now == before:
            return
        taken = tuple(new if old == unknown else old for old, new, unknown in zip(before, now, UNTAGGED, strict=True))
        same_conversion = len({conversion_matrix(tags[0], frame.height) for tags in (before, now, taken)}) == 1
        same_range = len({tags[1] == FULL_RANGE for tags in (before, now, taken)}) == 1
        same_look = all(new in (old, UNTAGGED[2]) for old, new in zip(taken[2:], now[2:], strict=True))
        if not (same_conversion and same_range and same_look):
            raise JobFailureError(
                FailureCode.UNSUPPORTED_SOURCE,
                f"the colours change from {_colour_words(before)} to {_colour_words(now)} "
                f"at frame {number} ({seconds:.3f} s): split the file there",
            )
        if taken != before:
            self.colour_notes.append(f"the first {number} frames lack colour tags that the later ones have")
            self._tags = cast("tuple[int, int, int, int]", taken)

    def tagged(self, colour: Colour) -> Colour:
        """Return the colours of the first frame with tags that only later ones have."""
        matrix, _range, primaries, transfer = self._tags
        limited_or_full = colour.range if colour.range == FULL_RANGE else _range
        return colour.model_copy(
            update={"matrix": matrix, "range": limited_or_full, "primaries": primaries, "transfer": transfer}
        )

    def has_alpha(self, codec: str) -> bool:
        """Whether frames can be transparent: by their format, or where that says nothing by their pixels."""
        assert self.first is not None
        if codec == "gif" or self.first.format.has_palette:
            return self._transparent  # FFmpeg gives every GIF an alpha channel
        return any(component.is_alpha for component in self.first.format.components)


def _colour_words(tags: tuple[int, int, int, int]) -> str:
    matrix, _range, primaries, transfer = tags
    limited_or_full = {1: "limited", FULL_RANGE: "full"}.get(_range, "untagged")
    return f"matrix {matrix}, {limited_or_full} range, primaries {primaries}, transfer {transfer}"


def _table(
    seen: _Seen, ledger: PacketLedger, lost: Sequence[int], format_name: str, time_base: Fraction, *, conceal: bool
) -> tuple[FrameTable, list[int]]:
    """Lay out all frames and, with `conceal`, in the places of `lost` packets the frame before (the first: behind).

    Returns for every place also the number of the decoded frame that is shown there.
    """
    shown_at, lost = list(seen.stamps), lost if conceal else ()
    for place, packet in zip(ledger.stand_ins(), lost, strict=False):
        shown_at[place] = ledger.times[packet] or 0
        ledger.frames[place] = packet
        ledger.damaged.add(packet)
    pts = _presentation_times(shown_at, time_base, dealt_out=conceal or format_name in ("avi", "asf"))
    times = {time for packet in lost if (time := ledger.times[packet]) is not None} - set(pts)
    places = sorted([*zip(pts, range(len(pts)), strict=True), *((time, _REPEAT) for time in times)])
    origins: list[int] = []
    for _, frame in places:
        origins.append(frame if frame != _REPEAT else origins[-1] if origins else 0)
    stamps = tuple(seen.stamps[frame] if frame != _REPEAT else time for time, frame in places)
    all_pts = tuple(time for time, _ in places)
    last_duration = seen.last_duration
    if last_duration <= 0 or places[-1][1] == _REPEAT:
        last_duration = all_pts[-1] - all_pts[-2] if len(all_pts) > 1 else max(1, round(Fraction(1, 25) / time_base))
    return FrameTable(
        pts=all_pts,
        stamps=None if stamps == all_pts else stamps,
        crc32=tuple(seen.crc32[frame] for frame in origins),
        time_base=time_base,
        last_duration=last_duration,
        concealed=tuple(
            place
            for place, (_, frame) in enumerate(places)
            if frame == _REPEAT or ledger.frames[frame] in ledger.damaged
        ),
    ), origins


def _at(frames: Collection[int], origins: Sequence[int]) -> tuple[int, ...]:
    """Return the places that show these decoded frames."""
    wanted = frozenset(frames)
    return tuple(place for place, frame in enumerate(origins) if frame in wanted)


def _lost_packets(ledger: PacketLedger, lost: Sequence[int], time_base: Fraction) -> JobFailureError:
    time = ledger.times[lost[0]]
    where = f"packet {lost[0]}" + (f" ({float(time * time_base):.3f} s)" if time is not None else "")
    return JobFailureError(
        FailureCode.CORRUPT_FRAME,
        f"{len(lost)} of {len(ledger.times)} frames cannot be decoded, the first from {where}. {_WAY_OUT}",
    )


def _gap_notes(table: FrameTable) -> list[str]:
    """Tell of holes in a steady rate: in a broadcast a damaged frame may be gone without any other trace."""
    steps = [later - earlier for earlier, later in pairwise(table.pts)]
    if not steps:
        return []
    usual = median_low(steps)
    gaps = [number for number, step in enumerate(steps) if step > 1.5 * usual]
    is_steady = sum(abs(step - usual) <= 0.1 * usual for step in steps) >= _STEADY_SHARE * len(steps)
    if not gaps or not is_steady:
        return []
    longest = max(steps[number] for number in gaps) * table.time_base
    places = "a gap" if len(gaps) == 1 else f"{len(gaps)} gaps"
    return [
        f"the times of the frames leave {places} of up to {float(longest):.3f} s, the first after frame {gaps[0]} "
        f"({table.seconds(gaps[0]):.3f} s): frames may be missing in the source there"
    ]


def _packet_notes(
    ledger: PacketLedger, before_start: Sequence[int], table: FrameTable, time_base: Fraction, format_name: str
) -> list[str]:
    notes = []
    if before_start:
        notes.append(
            f"{len(before_start)} packets at the start refer to what is before it and have no picture, in players "
            f"neither: the first frame is shown at {table.seconds(0):.3f} s"
        )
    if ledger.breaks:
        time = ledger.times[ledger.breaks[0]]
        where = f", the first near {float(time * time_base):.3f} s" if time is not None else ""
        places = "one place" if len(ledger.breaks) == 1 else f"{len(ledger.breaks)} places"
        notes.append(f"the source is interrupted in {places}{where}: frames may be missing in it there")
    if format_name in ("mpegts", "mpeg"):
        notes += _gap_notes(table)
    if table.concealed:
        first = table.concealed[0]
        notes.append(
            f"{len(table.concealed)} frames could not be decoded whole, the first at {table.seconds(first):.3f} s: "
            "what the decoder made of them is taken, or the frame before them"
        )
    return notes


def _presentation_times(stamps: list[int], time_base: Fraction, *, dealt_out: bool) -> list[int]:
    """Return when each frame is shown, in the order of display.

    AVI and ASF may stamp packets in the order of decoding, and for want of a frame decoders show others out of turn.
    The times are right, only `dealt_out` to the wrong frames: the first frame shown has the earliest, and so on.
    """
    if dealt_out and len(set(stamps)) == len(stamps):
        return sorted(stamps)
    for number in range(1, len(stamps)):
        if stamps[number] <= stamps[number - 1]:
            raise JobFailureError(
                FailureCode.BAD_TIMESTAMPS,
                f"frame {number} is stamped {float(stamps[number] * time_base):.3f} s, not after the frame before it "
                f"({float(stamps[number - 1] * time_base):.3f} s): remux the file to mend its timestamps",
            )
    return stamps


def _check_unchanged(frame: VideoFrame, first: VideoFrame, number: int, seconds: float) -> None:
    now = (frame.width, frame.height, frame.format.name)
    before = (first.width, first.height, first.format.name)
    if now != before:
        raise JobFailureError(
            FailureCode.UNSUPPORTED_SOURCE,
            f"the picture changes from {before[0]}x{before[1]} {before[2]} to {now[0]}x{now[1]} {now[2]} "
            f"at frame {number} ({seconds:.3f} s): split the file there",
        )


def _check_length(stamps: list[int], frame_pixels: int, time_base: Fraction, limits: VideoLimits) -> None:
    if len(stamps) > limits.max_frames:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"the video has more than {limits.max_frames} frames, the limit"
        )
    if (stamps[-1] - stamps[0]) * time_base > limits.max_duration_seconds:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED, f"the video is longer than {limits.max_duration_seconds:.0f} s, the limit"
        )
    if len(stamps) * frame_pixels > limits.max_total_pixels:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED,
            f"the video has more than {limits.max_total_pixels} pixels in all its frames, the limit",
        )
    if abs(stamps[-1] - stamps[max(0, len(stamps) - 2)]) * time_base > limits.max_gap_seconds:
        raise JobFailureError(
            FailureCode.LIMIT_EXCEEDED,
            f"frame {len(stamps) - 1} comes more than {limits.max_gap_seconds:g} s after the one before it, the limit",
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
            f"the file is cut off after video frame {len(table) - 1} ({end_seconds:.3f} s): {missing}. "
            "Remux it to accept the loss (ffmpeg -i IN -c copy OUT)",
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
        language=stream.language and stream.language[:MAX_LANGUAGE_LETTERS],
        attached_picture=bool(stream.disposition & Disposition.attached_pic),
    )


def _is_webm(source: Path) -> bool:
    """EBML's DocType element (0x4282, 4 bytes) lies in the first header; FFmpeg's name is the same for both types."""
    with source.open("rb") as file:
        return b"\x42\x82\x84webm" in file.read(4096)
