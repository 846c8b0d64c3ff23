"""The last step: segments and the source's other streams become the finished file, which is read back and checked."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.job import Container, JobOptions, VideoCodec
from worker.contract.storage import publishing
from worker.plan import PIPELINE_VERSION, SCALE, Plan, StreamPlan
from worker.video.containers import has_edit_lists
from worker.video.mux import UpscaledVideo, read_order, trouble_named, write_result
from worker.video.packets import StreamContents, read_contents
from worker.video.sound import Conversion
from worker.video.source import open_source, stream_at
from worker.video.tag import tag_text
from worker.video.verify import Check, check_result

_OUTCOMES: dict[str, Literal["copied", "converted", "rewritten", "dropped"]] = {
    "copy": "copied",
    "convert": "converted",
    "rewrite": "rewritten",
    "drop": "dropped",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StreamReport(_Frozen):
    """What became of one stream of the source."""

    index: int
    type: str
    codec: str | None
    outcome: Literal["upscaled", "copied", "converted", "rewritten", "dropped"]
    why: str | None = None
    packets: int | None = Field(None, description="Of a copied stream: as many in the source as in the result.")
    sha256: str | None = Field(None, description="Of a copied stream's payload: the same in source and result.")


class Report(_Frozen):
    """`report.json`: what was kept, what was changed, and what the check of the finished file found."""

    container: Container
    codec: VideoCodec
    width: int
    height: int
    frames: int = Field(description="In the source as in the result; counted in both.")
    timestamps: str = Field(description="How the frames' times compare with the source's.")
    streams: tuple[StreamReport, ...]
    notes: tuple[str, ...]
    tag: str = Field(description="The mark in the file that stands for its source, options and weights.")
    stage_seconds: dict[str, float] | None = Field(None, description="Seconds by stage, over all segments, if known.")


def assemble(
    plan: Plan,
    source: Path,
    segments: Sequence[Path],
    target: Path,
    on_progress: Callable[[], None] = lambda: None,
) -> Report:
    """Write the finished file and publish it once it has been read back and found right.

    Raises `JobFailureError(VERIFICATION_FAILED)` if it is not, or if the segments do not fit together. `on_progress` is
    called for every packet read or written; it may stop the work by raising.
    """
    order = read_order(segments, [segment.frames for segment in plan.segments], on_progress)
    upscaled = UpscaledVideo(segments, order, plan.survey.frames, plan.picture, plan.encoding)
    tag = result_tag(plan.source_sha256, plan.options, plan.container, order.made_by, plan.segment_frames)
    conversions = {
        stream.stream.index: Conversion(source, plan.max_pixels, stream.stream.index, plan.container)
        for stream in plan.streams
        if stream.action == "convert"
    }
    with publishing(target) as partial, trouble_named(plan.container):
        with open_source(source, plan.max_pixels) as opened:
            copied = [opened.streams[stream.stream.index] for stream in plan.streams if stream.action == "copy"]
            contents = read_contents(opened, copied, hidden_too=has_edit_lists(plan.container), on_progress=on_progress)
            copies = {stream.index: facts for stream, facts in zip(copied, contents, strict=True)}
        with open_source(source, plan.max_pixels) as opened:
            replaced = stream_at(opened, plan.survey.stream_index)
            write_result(partial, plan.container, opened, replaced, upscaled, copies, conversions, tag, on_progress)
            converted = set(conversions)
            check = check_result(partial, plan.container, opened, replaced, upscaled, copies, converted, on_progress)
    return _report(plan, copies, check, tag)


def result_tag(
    source_sha256: str, options: JobOptions, container: Container, network: str, segment_frames: int | None = None
) -> str:
    """Return the mark of a result: what it was made of, and how. Equal marks mean equal files.

    It stands in the file itself, so that a second run can tell a finished result from anything else without a file
    beside it, and the result may be moved. `network` is the fingerprint of the weights; `segment_frames` the length of
    segments where a setting replaced the usual one, as another length gives other bytes.
    """
    chosen = options.model_copy(update={"container": container}).model_dump_json()
    cut = f" {segment_frames}" if segment_frames else ""
    identity = f"{PIPELINE_VERSION} {source_sha256} {chosen} {network}{cut}"
    return tag_text(hashlib.sha256(identity.encode()).hexdigest()[:32])


def _report(plan: Plan, copies: Mapping[int, StreamContents], check: Check, tag: str) -> Report:
    streams = [_stream_report(stream, copies, plan.container) for stream in plan.streams]
    upscaled = StreamReport(
        index=plan.survey.stream_index,
        type="video",
        codec=plan.survey.codec,
        outcome="upscaled",
        why=f"{SCALE}x, encoded as {plan.encoding.codec}",
    )
    return Report(
        container=plan.container,
        codec=plan.encoding.codec,
        width=plan.picture.width,
        height=plan.picture.height,
        frames=plan.frames,
        timestamps=_timestamps(check),
        streams=tuple(sorted([upscaled, *streams], key=lambda stream: stream.index)),
        notes=plan.survey.notes + _colour_notes(plan) + check.lost,
        tag=tag,
    )


def _stream_report(plan: StreamPlan, copies: Mapping[int, StreamContents], container: Container) -> StreamReport:
    stream = plan.stream
    facts = copies.get(stream.index)
    why = plan.why
    if facts is not None and facts.framed:
        why = "the transport stream's own framing was taken off, as the container demands; the payload is the same"
    if facts is not None and facts.hidden:
        why = f"without {facts.hidden} packets that an edit list hides: {container} has no edit lists"
    return StreamReport(
        index=stream.index,
        type=stream.type,
        codec=stream.codec,
        outcome=_OUTCOMES[plan.action],
        why=why,
        packets=len(facts.pts) if facts is not None else None,
        sha256=facts.sha256 if facts is not None else None,
    )


def _colour_notes(plan: Plan) -> tuple[str, ...]:
    before, after = plan.survey.picture.colour, plan.picture.colour
    if after.matrix == before.matrix:
        return ()
    return (f"the result is tagged {after.conversion}, as players take the source, so that it shows the same colours",)


def _timestamps(check: Check) -> str:
    text = "exact: every frame is shown at the source's own time"
    if check.rounding:
        text = f"rounded to the container's clock, by at most {float(check.rounding) * 1000:.3f} ms"
    if check.shift:
        text += f"; all streams alike start {float(check.shift) * 1000:.3f} ms later: mkv and webm begin at zero"
    return text
