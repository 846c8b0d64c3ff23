"""What is shown of a job while it is rendered, written down beside its segments (worker.contract.stream)."""

import mmap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from worker.contract.failure import JobFailureError
from worker.contract.job import JobError
from worker.contract.storage import JobFolder, publishing, write_atomically
from worker.contract.stream import PreviewFacts, StreamSegment
from worker.pipeline import Stills
from worker.plan import Plan, sha256_of_file
from worker.task_watch import JobCanceledError, TaskGivenBackError
from worker.video.stream import found_in_result, stream_segment, why_not_streamed, write_header, write_playable

log = structlog.get_logger(__name__)

_MAX_STILLS = 40
"""Of one job, evenly over its segments: a picture of 2160 lines takes about a megabyte."""


def write_live_facts(folder: JobFolder, plan: Plan) -> None:
    """As soon as there is a plan, and again whenever it is looked at."""
    folder.make_live()
    write_atomically(folder.live_facts, plan.live_facts().model_dump_json().encode())


def stills_of(plan: Plan, index: int) -> Stills | None:
    """What to fill while segment `index` is rendered. None: this one is shown by no picture."""
    return Stills() if index % -(-len(plan.segments) // _MAX_STILLS) == 0 else None


def as_streamed(plan: Plan, index: int, segment: Path) -> StreamSegment | None:
    """Return how players read a finished segment, which lies at `segment`. None: they play no such."""
    if why_not_streamed(plan.encoding) is not None:
        return None
    try:
        return stream_segment(segment, plan.timing(index))
    except ValueError as error:
        log.warning("segment_not_streamed", index=index, reason=str(error))
        return None
    except Exception:  # a bug: the stream ends here, but no job fails for it
        log.exception("segment_not_streamed", index=index)
        return None


def publish_live(
    folder: JobFolder, plan: Plan, index: int, segment: Path, streamed: StreamSegment | None, stills: Stills | None
) -> None:
    """Write down how to show a segment that is about to be published, and lies at `segment` still.

    To be called under the job's lock, as the segment itself is published: what is written here is true of no other.
    """
    folder.make_live()
    if streamed is not None and _has_header(folder, plan, segment):
        write_atomically(folder.stream_segment(index), streamed.model_dump_json().encode())
    else:
        folder.stream_segment(index).unlink(missing_ok=True)
    if stills and stills.source and stills.result:
        # The result's last: where that is, both are.
        write_atomically(folder.still(f"{index:05d}", "source"), stills.source)
        write_atomically(folder.still(f"{index:05d}", "result"), stills.result)


def _has_header(folder: JobFolder, plan: Plan, segment: Path) -> bool:
    """Whether the stream's header is there, or could be made."""
    if folder.stream_header.exists():
        return True
    try:
        with publishing(folder.stream_header) as partial:
            write_header(partial, segment, plan.picture, plan.encoding)
    except Exception:  # no job fails for its stream; a full disk ends the segment itself
        log.exception("stream_header_not_made")
        return False
    return True


def publish_stream_in_result(
    folder: JobFolder, plan: Plan, result: Path, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Write down where the result has what was streamed, so that the segments can go and be watched nevertheless.

    `on_progress` is called for every segment; it may stop the work by raising. Where something is missing there is no
    stream from now on: a result is not held back for it.
    """
    if why_not_streamed(plan.encoding) is not None:
        return
    try:
        lines, begin = [], 0
        with result.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for segment in plan.segments:
                on_progress()
                streamed = StreamSegment.model_validate_json(folder.stream_segment(segment.index).read_bytes())
                found, begin = found_in_result(content, begin, plan.segment_file(folder, segment.index), streamed)
                lines.append(found.model_dump_json() + "\n")
        write_atomically(folder.stream_in_result, "".join(lines).encode())
    except (JobCanceledError, TaskGivenBackError):
        raise
    except (FileNotFoundError, ValidationError, LookupError, JobFailureError) as error:
        log.warning("result_not_streamed", reason=str(error))
        folder.stream_in_result.unlink(missing_ok=True)
    except Exception:  # of a file system without maps, of FFmpeg: the result is there, and is whole
        log.exception("result_not_streamed")
        folder.stream_in_result.unlink(missing_ok=True)


def forget_stream(folder: JobFolder) -> None:
    """What is said and shown of segments that are no more; a preview stays."""
    for old in (folder.stream_header, folder.stream_in_result, *folder.live.glob("[0-9]*")):
        old.unlink(missing_ok=True)


def remove_streamed_segments(folder: JobFolder) -> None:
    """What is said of segments that the result replaces."""
    for described in folder.live.glob("[0-9]*.json"):
        described.unlink(missing_ok=True)


def remove_preview(folder: JobFolder) -> None:
    """An earlier one, or what is left of it: first that it is there."""
    pictures = (folder.still("preview", "source"), folder.still("preview", "result"))
    for old in (folder.preview_facts, folder.preview, *pictures):
        old.unlink(missing_ok=True)


def make_playable(target: Path, part: Plan, rendered: Path) -> PreviewFacts:
    """Write the frames of `part`, a preview's plan, which were rendered as a segment, as a file for browsers."""
    write_playable(target, rendered, part.picture, part.encoding)
    begins_at_seconds = part.live_facts().borders_seconds[0]
    return PreviewFacts(at_seconds=begins_at_seconds, frames=part.segments[0].frames, sha256=sha256_of_file(target))


def publish_preview(folder: JobFolder, playable: Path, facts: PreviewFacts, stills: Stills) -> None:
    """Move a preview to its place, with its first frame as pictures."""
    with publishing(folder.preview) as partial:
        playable.rename(partial)
    if stills.source and stills.result:
        write_atomically(folder.still("preview", "source"), stills.source)
        write_atomically(folder.still("preview", "result"), stills.result)
    write_atomically(folder.preview_facts, facts.model_dump_json().encode())


def publish_failed_preview(folder: JobFolder, at_seconds: float, error: JobError) -> None:
    """Say why there is none; nothing where the job is gone."""
    with suppress(FileNotFoundError):
        folder.make_live()
        write_atomically(
            folder.preview_facts, PreviewFacts(at_seconds=at_seconds, error=error).model_dump_json().encode()
        )
