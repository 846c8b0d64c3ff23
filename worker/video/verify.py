"""Reading the finished file back: every frame and packet must be there, when it should be, as it was."""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container
from worker.contract.report import SoundOffset, StreamFacts
from worker.video.check_picture import check_picture
from worker.video.containers import FORMATS, has_edit_lists
from worker.video.mux import UpscaledVideo, kept_chapters, kept_metadata
from worker.video.packets import StreamContents, read_contents
from worker.video.png_sequence import FACTS_NAME, check_zip, picture_name, read_facts
from worker.video.read_picture import read_picture
from worker.video.sound import heard_times
from worker.video.values import MAX_LANGUAGE_LETTERS, FrameTable, Picture, shortened, shown

_MAX_SHIFT_SECONDS = 1
_MAX_KEYS_SHOWN = 20
_MAX_TITLE_LETTERS = 500
_MAX_OFFSET_CHANGE_SECONDS = 0.001 + 1e-6  # the offsets are told in whole microseconds
_MAX_CHAPTER_CHANGE = Fraction(1, 1000)
_DURATION_SLACK = Fraction(1, 10)

# Of a stream: said by the container, or told by facts of its own (language, title).
_OTHER_STREAM_METADATA = frozenset(
    ("alpha_mode", "handler_name", "vendor_id", "encoder", "language", "title", "name", "timecode", "creation_time")
)


Place = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Timing:
    """How the times of the result's frames compare with the source's."""

    shift: Fraction
    """Seconds by which all streams alike come later: Matroska cannot hold times before zero."""
    rounding: Fraction
    """The largest rounding of a video frame's time to the container's clock, in seconds."""


@dataclass(frozen=True)
class SourceFacts:
    """What the report says of the source beside its survey."""

    streams: Mapping[int, StreamFacts]
    """Of all streams, by index; with contents where they were read."""
    chapters: int


@dataclass(frozen=True)
class Check:
    """What the check of a good result found in the file."""

    timing: Timing
    picture: Picture
    codec: str
    average_rate: Fraction
    time_base: Fraction
    duration: Fraction
    """Of the picture, in seconds."""
    frames: int
    chapters: int
    streams: Mapping[int, StreamFacts]
    """By the index of the source's stream that each one comes from."""
    sound_offsets: tuple[SoundOffset, ...]
    lost: tuple[str, ...]
    """What the container did not hold, in words."""


def check_result(
    target: Path,
    container: Container,
    source: InputContainer,
    replaced: VideoStream,
    upscaled: UpscaledVideo,
    copies: Mapping[int, StreamContents],
    converted: Mapping[int, Callable[[], Iterator[av.AudioFrame]]],
    on_progress: Callable[[], None] = lambda: None,
) -> Check:
    """Compare `target` with what it was made from. Raises `JobFailureError(VERIFICATION_FAILED)` for any difference.

    What the container has no place for is no failure, but told in `lost`. `converted` gives the decoded sound of the
    source's streams that are now of another codec.
    """
    table = upscaled.table
    with av.open(str(target), "r") as result:
        present = {replaced.index, *copies, *converted}
        expected = [stream for stream in source.streams if stream.index in present]
        pairs = _pairs(expected, result)
        video = pairs[replaced.index]
        picture, lost = _check_video(target, video, upscaled.picture)
        lost += _lost_metadata(source, result)
        for index, stream in pairs.items():
            lost += _lost_of_stream(source.streams[index], stream, container)
        read = read_contents(result, list(pairs.values()), on_progress=on_progress)
        contents = dict(zip(pairs, read, strict=True))
        streams = {index: _stream_facts(stream, contents[index]) for index, stream in pairs.items()}
        timing = check_video_times(contents[replaced.index], table, container)
        lost += _lost_chapters(kept_chapters(source, upscaled.until), result, timing)
        _check_duration(result, container, contents[replaced.index], contents.values())
        if FORMATS[container] not in result.format.name.split(","):
            raise _failure(f"it is a {result.format.name} file")
        average_rate = video.average_rate
        codec, chapters = video.codec_context.codec.canonical_name, len(result.chapters())
    offsets: list[SoundOffset] = []
    frame_times = sorted(contents[replaced.index].pts)
    for index, original in copies.items():
        stream = source.streams[index]
        _check_copy(index, original, contents[index], stream, timing, container)
        if stream.type == "audio" and original.pts:
            offsets += _offsets_of_copy(index, original, contents[index], table, frame_times, contents[replaced.index])
    for index, decode_source in converted.items():
        if not contents[index].pts:
            raise _failure(f"the converted stream {index} is empty")
        offsets += _offsets_of_conversion(index, decode_source, target, streams[index].index, table, timing)
    for offset in offsets:
        _check_offset(offset)
    first, last = min(contents[replaced.index].pts), contents[replaced.index].end
    return Check(
        timing=timing,
        picture=picture,
        codec=codec,
        average_rate=average_rate or Fraction(0),
        time_base=contents[replaced.index].time_base,
        duration=last - first * contents[replaced.index].time_base,
        frames=len(contents[replaced.index].pts),
        chapters=chapters,
        streams=streams,
        sound_offsets=tuple(offsets),
        lost=tuple(lost),
    )


def check_pictures(
    target: Path, source: InputContainer, upscaled: UpscaledVideo, on_progress: Callable[[], None] = lambda: None
) -> Check:
    """Do the same for a zip of pictures, which holds nothing else: what it says beside them is read back."""
    check_zip(target, upscaled, on_progress)
    with zipfile.ZipFile(target) as archive:
        facts = read_facts(archive.read(FACTS_NAME))
        first = archive.read(picture_name(0, len(upscaled.table)))
    if facts is None:
        raise _failure(f"{FACTS_NAME} cannot be read")
    with av.open(io.BytesIO(first), "r", format="png_pipe") as opened:
        picture_format = next(opened.decode(video=0)).format
    found = Picture(
        width=facts.width,
        height=facts.height,
        pixel_format=picture_format.name,
        bit_depth=max(component.bits for component in picture_format.components),
        colour=facts.colour,
        sample_aspect_ratio=facts.sample_aspect_ratio,
        display_matrix=facts.display_matrix,
        field_order="progressive",
        has_alpha=any(component.is_alpha for component in picture_format.components),
        crop=facts.crop,
        mastering_display=facts.mastering_display,
        content_light=facts.content_light,
    )
    wrong, lost = check_picture(found, upscaled.picture)
    if wrong:
        raise _failure("; ".join(wrong))
    missing = _missing_metadata(source.metadata, facts.metadata)
    lost += (f"the zip has no place for these metadata: {', '.join(missing)}",) if missing else ()
    return Check(
        timing=Timing(Fraction(0), Fraction(0)),
        picture=found,
        codec="png",
        average_rate=facts.average_rate,
        time_base=facts.time_base,
        duration=(facts.pts[-1] + facts.last_duration - facts.pts[0]) * facts.time_base,
        frames=len(facts.pts),
        chapters=len(facts.chapters),
        streams={},
        sound_offsets=(),
        lost=lost,
    )


def source_facts(
    source: InputContainer, video_index: int, table: FrameTable, copies: Mapping[int, StreamContents]
) -> SourceFacts:
    """Return the source's side of the report, as far as its header and the reading of its `copies` tell."""
    streams = {stream.index: _stream_facts(stream, copies.get(stream.index)) for stream in source.streams}
    times = {"start_seconds": table.seconds(0), "end_seconds": table.seconds(len(table) - 1)}
    streams[video_index] = streams[video_index].model_copy(update=times)
    return SourceFacts(streams, len(source.chapters()))


def _stream_facts(stream: Stream, contents: StreamContents | None = None) -> StreamFacts:
    """Return what the report says of one stream; of what is in it only where that was read."""
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else stream.name
    facts = StreamFacts(
        index=stream.index,
        codec=codec if not isinstance(stream, AttachmentStream) else stream.mimetype,
        language=shortened(_language(stream) or "", MAX_LANGUAGE_LETTERS) or None,
        title=shortened(_title(stream) or "", _MAX_TITLE_LETTERS) or None,
        disposition=tuple(flag.name.lower() for flag in stream.disposition if flag.name),
    )
    if contents is None:
        return facts
    found: dict[str, object] = {"packets": len(contents.pts), "sha256": contents.sha256}
    if contents.pts:
        found["start_seconds"] = _rounded(min(contents.pts) * contents.time_base)
        found["end_seconds"] = _rounded(max(contents.pts) * contents.time_base)
    return facts.model_copy(update=found)


def _pairs(expected: list[Stream], result: InputContainer) -> dict[int, Stream]:
    """Find every expected stream in the result, by kind and order: muxers put pictures and fonts last."""
    pairs: dict[int, Stream] = {}
    for kind in ("track", "picture", "attachment"):
        originals = [stream for stream in expected if _kind(stream) == kind]
        # A muxer may add tracks of its own behind ours: chapter titles, timecode.
        found = [stream for stream in result.streams if _kind(stream) == kind][: len(originals)]
        if len(found) != len(originals):
            raise _failure(f"{len(originals)} streams of kind {kind} were written, {len(found)} are there")
        pairs |= {original.index: stream for original, stream in zip(originals, found, strict=True)}
    return pairs


def _kind(stream: Stream) -> str:
    if isinstance(stream, AttachmentStream):
        return "attachment"
    return "picture" if stream.disposition & Disposition.attached_pic else "track"


# --- the picture ------------------------------------------------------------------------------------------------------


def _check_video(target: Path, stream: Stream, promised: Picture) -> tuple[Picture, list[str]]:
    if not isinstance(stream, VideoStream):
        raise _failure("the upscaled stream is no video")
    # In a reading of its own: some of it only the first frame tells.
    with av.open(str(target), "r") as result:
        opened = result.streams[stream.index]
        assert isinstance(opened, VideoStream)
        first = next(result.decode(opened), None)
        if first is None:
            raise _failure("no frame can be decoded")
        found = read_picture(result, opened, first)
        if first.interlaced_frame:
            found = found.model_copy(update={"field_order": "top_first"})
        if {key.lower(): value for key, value in opened.metadata.items()}.get("alpha_mode") == "1":
            # Beside the picture, as VP9 keeps it.
            whole = {"has_alpha": True, "pixel_format": found.pixel_format.replace("yuv", "yuva", 1)}
            found = found.model_copy(update=whole)
    wrong, lost = check_picture(found, promised)
    if wrong:
        raise _failure("; ".join(wrong))
    return found, list(lost)


def check_video_times(contents: StreamContents, table: FrameTable, container: Container) -> Timing:
    """Compare the times of the result's frames with the source's. Raises `JobFailureError(VERIFICATION_FAILED)`."""
    if len(contents.pts) != len(table):
        raise _failure(f"{len(contents.pts)} frames are there instead of {len(table)}")
    # Matroska holds no decoding times: there the reader guesses them.
    if contents.disorder is not None and has_edit_lists(container):
        raise _failure(f"packet {contents.disorder} of the picture is to be decoded before the one before it")
    found = [time * contents.time_base for time in sorted(contents.pts)]
    wanted = [time * table.time_base for time in table.pts]
    shift = Fraction(0)
    clock = Fraction(0)
    if not has_edit_lists(container):
        clock = contents.time_base
        shift = max(Fraction(0), found[0] - wanted[0] - clock / 2)
        shift = Fraction(0) if shift < clock else found[0] - wanted[0]
    elif wanted[0] < 0:
        shift = found[0] - wanted[0]
    differences = [abs(there - time - shift) for there, time in zip(found, wanted, strict=True)]
    if max(differences) > clock or shift > _MAX_SHIFT_SECONDS + max(Fraction(0), -wanted[0]):
        worst = differences.index(max(differences))
        raise _failure(f"frame {worst} is at {float(found[worst]):.6f} s instead of {float(wanted[worst]):.6f} s")
    return Timing(shift, max(differences))


# --- the other streams ------------------------------------------------------------------------------------------------


def _check_copy(
    index: int, original: StreamContents, copy: StreamContents, stream: Stream, timing: Timing, container: Container
) -> None:
    if copy.sha256 != original.sha256:
        raise _failure(f"the {stream.type} stream {index} is not what it was")
    if isinstance(stream, AttachmentStream) or stream.disposition & Disposition.attached_pic:
        return
    if _is_pcm(stream):
        return  # mov stores samples, not packets: they come back grouped otherwise
    if len(copy.pts) != len(original.pts):
        raise _failure(f"the {stream.type} stream {index} has {len(copy.pts)} packets instead of {len(original.pts)}")
    tolerance = copy.time_base if not has_edit_lists(container) else copy.time_base / 2
    for number, (there, time) in enumerate(zip(copy.pts, original.pts, strict=True)):
        difference = there * copy.time_base - time * original.time_base - timing.shift
        if abs(difference) > tolerance:
            raise _failure(f"packet {number} of the {stream.type} stream {index} is off by {float(difference):.6f} s")


def _is_pcm(stream: Stream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name.startswith("pcm_")


def _lost_of_stream(original: Stream, stream: Stream, container: Container) -> list[str]:
    """Say what a stream was called, and is no longer: the containers' places for this differ."""
    if _kind(original) != "track":
        return []
    lost = []
    for word, before, after in (
        ("language", _language(original), _language(stream)),
        ("title", _title(original), _title(stream)),
    ):
        if before is not None and after != before:
            lost.append(f"{word} {shown(before)!r} of the {original.type} stream {original.index}")
    flags = [flag.name.lower() for flag in original.disposition & ~stream.disposition if flag.name]
    if flags:
        lost.append(f"mark {', '.join(flags)} of the {original.type} stream {original.index}")
    missing = _missing_metadata(original.metadata, stream.metadata, but=_OTHER_STREAM_METADATA)
    if missing:
        lost.append(f"metadata {', '.join(missing)} of the {original.type} stream {original.index}")
    return [f"{container} has no place for the {one}" for one in lost]


def _language(stream: Stream) -> str | None:
    """No language and an undetermined one are the same."""
    return None if stream.language in (None, "", "und") else stream.language


def _title(stream: Stream) -> str | None:
    if isinstance(stream, AttachmentStream):
        return stream.name
    return stream.metadata.get("title") or stream.metadata.get("name") or None


def _lost_metadata(source: InputContainer, result: InputContainer) -> list[str]:
    missing = _missing_metadata(source.metadata, result.metadata)
    return [f"the container has no place for these metadata: {', '.join(missing)}"] if missing else []


def _missing_metadata(
    before: Mapping[str, str], after: Mapping[str, str], *, but: frozenset[str] = frozenset()
) -> list[str]:
    """Name the keys that are not there any more, or with another value: of a thousand, the first."""
    there = {key.lower(): value for key, value in after.items()}
    kept = kept_metadata(before)
    keys = sorted(key for key, value in kept.items() if key.lower() not in but and there.get(key.lower()) != value)
    more = [f"{len(keys) - _MAX_KEYS_SHOWN} more"] if len(keys) > _MAX_KEYS_SHOWN else []
    return [*map(shown, keys[:_MAX_KEYS_SHOWN]), *more]


def _lost_chapters(before: "Sequence[av.container.core.Chapter]", result: InputContainer, timing: Timing) -> list[str]:
    after = result.chapters()
    if len(before) != len(after):
        return [f"the container holds {len(after)} of {len(before)} chapters"]
    lost = []
    titles = [
        (one["metadata"].get("title"), other["metadata"].get("title")) for one, other in zip(before, after, strict=True)
    ]
    if any(one != other for one, other in titles):
        lost.append("the container changes titles of chapters")
    places: tuple[tuple[str, Literal["start", "end"]], ...] = (("chapters", "start"), ("ends of chapters", "end"))
    for what, place in places:
        moves = [
            abs(_chapter_time(other, place) - _chapter_time(one, place) - timing.shift)
            for one, other in zip(before, after, strict=True)
        ]
        if moves and max(moves) > _MAX_CHAPTER_CHANGE:
            lost.append(f"the container moves {what}, by at most {float(max(moves)):.3f} s")
    return lost


def _chapter_time(chapter: "av.container.core.Chapter", place: Literal["start", "end"]) -> Fraction:
    return chapter[place] * (chapter["time_base"] or Fraction(1))


# --- sound against picture --------------------------------------------------------------------------------------------


def _offsets_of_copy(
    index: int,
    original: StreamContents,
    copy: StreamContents,
    table: FrameTable,
    frame_times: Sequence[int],
    video: StreamContents,
) -> Iterator[SoundOffset]:
    """Yield how far packets of sound are from frames: the first ones, those in the middle, the last ones."""
    same_packets = len(copy.pts) == len(original.pts)
    middle_frame = len(table) // 2
    middle = float(table.pts[middle_frame] * table.time_base / original.time_base)
    nearest = min(range(len(original.pts)), key=lambda packet: abs(original.pts[packet] - middle))
    places: tuple[tuple[Place, int, int], ...] = (
        ("start", 0, 0),
        ("middle", middle_frame, nearest),
        ("end", len(table) - 1, -1),
    )
    for at, frame, packet in places:
        source_frame = table.pts[frame] * table.time_base
        result_frame = frame_times[frame] * video.time_base
        if same_packets or at == "start":
            sounds = original.pts[packet] * original.time_base, copy.pts[packet] * copy.time_base
        elif at == "end":
            sounds = original.end, copy.end
        else:
            continue  # grouped otherwise, without a gap: what holds at both ends holds between them
        yield SoundOffset(
            stream=index,
            at=at,
            source_seconds=_rounded(sounds[0] - source_frame),
            result_seconds=_rounded(sounds[1] - result_frame),
        )


def _offsets_of_conversion(
    index: int,
    decode_source: Callable[[], Iterator[av.AudioFrame]],
    target: Path,
    index_in_result: int,
    table: FrameTable,
    timing: Timing,
) -> Iterator[SoundOffset]:
    """Yield the same for sound in another codec, by the samples that a listener hears."""
    before = heard_times(decode_source())
    with av.open(str(target), "r") as result:
        sound = result.streams[index_in_result]
        after = heard_times(
            (frame for frame in result.decode(sound) if isinstance(frame, av.AudioFrame)), before.sound_seconds
        )
    places: tuple[tuple[Place, int, Fraction, Fraction], ...] = (
        ("start", 0, before.first, after.first),
        ("middle", len(table) // 2, before.middle, after.middle),
        ("end", len(table) - 1, before.last, after.last),
    )
    for at, frame, one, other in places:
        frame_time = table.pts[frame] * table.time_base
        yield SoundOffset(
            stream=index,
            at=at,
            source_seconds=_rounded(one - frame_time),
            result_seconds=_rounded(other - frame_time - timing.shift),
        )


def _check_offset(offset: SoundOffset) -> None:
    change = offset.result_seconds - offset.source_seconds
    if abs(change) > _MAX_OFFSET_CHANGE_SECONDS:
        raise _failure(
            f"the sound of stream {offset.stream} is {change * 1000:+.3f} ms off against the picture at the {offset.at}"
        )


def _check_duration(
    result: InputContainer, container: Container, picture: StreamContents, contents: Iterable[StreamContents]
) -> None:
    """The container announces no more than all that is in it, and no less than the picture.

    Of mp4 and mov the latter cannot be asked: FFmpeg adds up how long frames take to decode, which at a variable rate
    is another sum.
    """
    if result.duration is None:
        return
    announced = Fraction(result.duration, av.time_base)
    with_times = [one for one in contents if one.pts and not one.picture]
    begin = min(Fraction(0), *(min(one.pts) * one.time_base for one in with_times))
    end = max(one.end for one in with_times)
    shortest = Fraction(0) if has_edit_lists(container) else picture.end
    if not shortest - _DURATION_SLACK <= announced <= end - begin + _DURATION_SLACK:
        raise _failure(f"the file announces {float(announced):.3f} s, its streams end at {float(end):.3f} s")


def _rounded(seconds: Fraction) -> float:
    return round(float(seconds), 6)


def _failure(what: str) -> JobFailureError:
    return JobFailureError(FailureCode.VERIFICATION_FAILED, f"the finished file did not pass its check: {what}")
