"""Reading the finished file back: every frame and packet must be there, when it should be, as it was."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import AttachmentStream, Disposition, Stream
from av.video.stream import VideoStream

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container
from worker.video.containers import has_edit_lists
from worker.video.mux import UpscaledVideo, kept_metadata
from worker.video.packets import StreamContents, read_contents
from worker.video.values import FrameTable, Picture

_MAX_SHIFT_SECONDS = 1


@dataclass(frozen=True)
class Check:
    """What the check of a good result found."""

    shift: Fraction
    """Seconds by which all streams alike come later: Matroska cannot hold times before zero."""
    rounding: Fraction
    """The largest rounding of a video frame's time to the container's clock, in seconds."""
    lost: tuple[str, ...] = ()
    """What the container did not hold, in words."""


def check_result(
    target: Path,
    container: Container,
    source: InputContainer,
    replaced: VideoStream,
    upscaled: UpscaledVideo,
    copies: Mapping[int, StreamContents],
    converted: Set[int],
    on_progress: Callable[[], None] = lambda: None,
) -> Check:
    """Compare `target` with what it was made from. Raises `JobFailureError(VERIFICATION_FAILED)` for any difference."""
    with av.open(str(target), "r") as result:
        present = {replaced.index, *copies, *converted}
        expected = [stream for stream in source.streams if stream.index in present]
        pairs = _pairs(expected, result)
        video = _check_video(pairs[replaced.index], upscaled.picture)
        lost = _lost(source, result, video, upscaled.picture)
        read = read_contents(result, list(pairs.values()), on_progress=on_progress)
        contents = dict(zip(pairs, read, strict=True))
    timing = _check_video_times(contents[replaced.index], upscaled.table, container)
    for index, original in copies.items():
        _check_copy(index, original, contents[index], source.streams[index], timing, container)
    for index in converted:
        if not contents[index].pts:
            raise _failure(f"the converted stream {index} is empty")
    return replace(timing, lost=lost)


def _lost(source: InputContainer, result: InputContainer, video: VideoStream, picture: Picture) -> tuple[str, ...]:
    lost = []
    there = {key.lower() for key in result.metadata}
    missing = sorted(key for key in kept_metadata(source.metadata) if key.lower() not in there)
    if missing:
        lost.append(f"the container has no place for these metadata: {', '.join(missing)}")
    if len(result.chapters()) != len(source.chapters()):
        lost.append("the container does not hold the chapters")
    square = Fraction(1)
    if (video.sample_aspect_ratio or square) != (picture.sample_aspect_ratio or square):
        lost.append(f"the pixels' aspect ratio {picture.sample_aspect_ratio} cannot be stored: they become square")
    return tuple(lost)


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


def _check_video(stream: Stream, picture: Picture) -> VideoStream:
    if not isinstance(stream, VideoStream):
        raise _failure("the upscaled stream is no video")
    if (stream.width, stream.height) != (picture.width, picture.height):
        raise _failure(f"the picture is {stream.width}x{stream.height} instead of {picture.width}x{picture.height}")
    return stream


def _check_video_times(contents: StreamContents, table: FrameTable, container: Container) -> Check:
    if len(contents.pts) != len(table):
        raise _failure(f"{len(contents.pts)} frames are there instead of {len(table)}")
    found = [time * contents.time_base for time in sorted(contents.pts)]
    wanted = [time * table.time_base for time in table.pts]
    shift = Fraction(0)
    clock = Fraction(0)
    if not has_edit_lists(container):
        clock = contents.time_base
        shift = max(Fraction(0), found[0] - wanted[0] - clock / 2)
        shift = Fraction(0) if shift < clock else found[0] - wanted[0]
    differences = [abs(there - time - shift) for there, time in zip(found, wanted, strict=True)]
    if max(differences) > clock or shift > _MAX_SHIFT_SECONDS:
        worst = differences.index(max(differences))
        raise _failure(f"frame {worst} is at {float(found[worst]):.6f} s instead of {float(wanted[worst]):.6f} s")
    return Check(shift, max(differences))


def _check_copy(
    index: int, original: StreamContents, copy: StreamContents, stream: Stream, timing: Check, container: Container
) -> None:
    if copy.sha256 != original.sha256:
        raise _failure(f"the {stream.type} stream {index} is not what it was")
    if isinstance(stream, AttachmentStream) or stream.disposition & Disposition.attached_pic:
        return
    is_pcm = stream.codec_context is not None and stream.codec_context.name.startswith("pcm_")
    if is_pcm:
        return  # mov stores samples, not packets: they come back grouped otherwise
    if len(copy.pts) != len(original.pts):
        raise _failure(f"the {stream.type} stream {index} has {len(copy.pts)} packets instead of {len(original.pts)}")
    tolerance = copy.time_base if not has_edit_lists(container) else copy.time_base / 2
    for number, (there, time) in enumerate(zip(copy.pts, original.pts, strict=True)):
        difference = there * copy.time_base - time * original.time_base - timing.shift
        if abs(difference) > tolerance:
            raise _failure(f"packet {number} of the {stream.type} stream {index} is off by {float(difference):.6f} s")


def _failure(what: str) -> JobFailureError:
    return JobFailureError(FailureCode.VERIFICATION_FAILED, f"the finished file did not pass its check: {what}")
