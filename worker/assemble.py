"""The last step: segments and the source's other streams become the finished file, which is read back and checked."""

import hashlib
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from worker.contract.job import Container, JobOptions
from worker.contract.report import Report
from worker.contract.storage import publishing
from worker.plan import PIPELINE_VERSION, Plan
from worker.report import make_report
from worker.self_check import read_figures
from worker.video.containers import has_edit_lists
from worker.video.mux import UpscaledVideo, read_order, trouble_named, write_result
from worker.video.packets import read_contents
from worker.video.png_sequence import write_zip
from worker.video.sound import Conversion
from worker.video.source import open_source, stream_at
from worker.video.tag import tag_text
from worker.video.verify import check_pictures, check_result, source_facts


def assemble(
    plan: Plan,
    source: Path,
    segments: Sequence[Path],
    target: Path,
    on_progress: Callable[[], None] = lambda: None,
    *,
    whole: Plan | None = None,
) -> Report:
    """Write the finished file and publish it once it has been read back and found right.

    What the self-check found in each of the `segments` lies beside it. Raises
    `JobFailureError(VERIFICATION_FAILED)` if the file is not right, or if the segments do not fit together.
    `on_progress` is called for every packet read or written; it may stop the work by raising. `whole`: where `plan`
    is only the beginning of it (`Plan.cut_to`); the other streams then end with the picture.
    """
    began = time.perf_counter()
    order = read_order(segments, [segment.frames for segment in plan.segments], on_progress)
    until = None if whole is None else _end_of_picture(plan)
    upscaled = UpscaledVideo(segments, order, plan.survey.frames, plan.picture, plan.encoding, until)
    first_frames = None if whole is None else plan.frames
    tag = result_tag(plan.source_sha256, plan.options, plan.container, order.made_by, plan.segment_frames, first_frames)
    conversions = {
        stream.stream.index: Conversion(source, plan.max_pixels, stream.stream.index, plan.container, until)
        for stream in plan.streams
        if stream.action == "convert"
    }
    with publishing(target) as partial, trouble_named(plan.container):
        with open_source(source, plan.max_pixels) as opened:
            copied = [opened.streams[stream.stream.index] for stream in plan.streams if stream.action == "copy"]
            contents = read_contents(
                opened, copied, hidden_too=has_edit_lists(plan.container), until=until, on_progress=on_progress
            )
            copies = {stream.index: facts for stream, facts in zip(copied, contents, strict=True)}
            if whole is not None:
                silent = {
                    index for index, conversion in conversions.items() if next(conversion.decoded(), None) is None
                }
                silent |= {
                    stream.index for stream in copied if not copies[stream.index].pts and stream.type != "attachment"
                }
                # Containers do not agree on streams without a packet: mp4 leaves them out.
                plan = plan.without(silent, "it begins after the last frame that was finished")
                copies = {index: facts for index, facts in copies.items() if index not in silent}
                conversions = {index: sound for index, sound in conversions.items() if index not in silent}
        with open_source(source, plan.max_pixels) as opened:
            facts = source_facts(opened, plan.survey.stream_index, (whole or plan).survey.frames, copies)
            replaced = stream_at(opened, plan.survey.stream_index)
            if plan.container is Container.ZIP:
                write_zip(partial, opened, upscaled, tag, on_progress)
                check = check_pictures(partial, opened, upscaled, on_progress)
            else:
                write_result(partial, plan.container, opened, replaced, upscaled, copies, conversions, tag, on_progress)
                decoded = {index: conversion.decoded for index, conversion in conversions.items()}
                check = check_result(partial, plan.container, opened, replaced, upscaled, copies, decoded, on_progress)
        seconds = {"plan": plan.survey_seconds, "assemble": time.perf_counter() - began}
        figures = [read_figures(segment.with_suffix(".json")) for segment in segments]
        made_by = network_name(order.made_by)
        return make_report(
            plan,
            facts,
            partial,
            check,
            copies,
            figures,
            made_by,
            tag,
            seconds,
            whole=whole,
            on_progress=on_progress,
        )


def _end_of_picture(plan: Plan) -> Fraction:
    table = plan.survey.frames
    return (table.pts[-1] + table.last_duration) * table.time_base


def network_name(fingerprint: str) -> str:
    """Name what decides a result beside its source and options. `fingerprint`: of the weights."""
    return f"{PIPELINE_VERSION}:{fingerprint}"


def result_tag(
    source_sha256: str,
    options: JobOptions,
    container: Container,
    network: str,
    segment_frames: int | None = None,
    first_frames: int | None = None,
) -> str:
    """Return the mark of a result: what it was made of, and how. Equal marks mean equal files.

    It stands in the file itself, so that a second run can tell a finished result from anything else without a file
    beside it, and the result may be moved. `network` is the fingerprint of the weights; `segment_frames` the length of
    segments where a setting replaced the usual one, as another length gives other bytes; `first_frames` how many
    frames a result has that is only the beginning.
    """
    # Of `reuse` only the tiles change a result, and those are part of `network`.
    chosen = options.model_copy(update={"container": container}).model_dump_json(exclude={"reuse"})
    cut = f" {segment_frames}" if segment_frames else ""
    beginning = f" first {first_frames}" if first_frames else ""
    identity = f"{PIPELINE_VERSION} {source_sha256} {chosen} {network}{cut}{beginning}"
    return tag_text(hashlib.sha256(identity.encode()).hexdigest()[:32])
