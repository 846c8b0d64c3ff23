"""Writing the report: source and result side by side, each from what was read of it."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from worker.contract.job import Container
from worker.contract.report import (
    FileFacts,
    FramePlace,
    FrameReport,
    PropertyOutcome,
    PropertyReport,
    Report,
    StreamOutcome,
    StreamReport,
    TileReuseReport,
    TimestampReport,
)
from worker.plan import SCALE, Plan, StreamPlan, sha256_of_file
from worker.self_check import SegmentFigures, gather
from worker.video.check_picture import is_rgb
from worker.video.containers import has_edit_lists, own_container
from worker.video.packets import StreamContents
from worker.video.values import ContentLight, MasteringDisplay, Picture
from worker.video.verify import Check, SourceFacts, Timing

_OUTCOMES: dict[str, StreamOutcome] = {
    "copy": "copied",
    "convert": "converted",
    "rewrite": "rewritten",
    "drop": "dropped",
}

# ITU-T H.273 in FFmpeg's words. Code points without a name here are shown as numbers.
_MATRICES = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
}
_PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
_TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}
_RGB, _UNKNOWN = 0, 2
_FULL_RANGE = 2
_RANGES = {1: "limited", _FULL_RANGE: "full"}
_FIXED_POINT = 65536

# Compared one by one, in this order; the others are sizes of files, or told in more detail elsewhere.
_COMPARED = (
    "container",
    "codec",
    "duration_seconds",
    "frame_rate",
    "time_base",
    "pixel_format",
    "bit_depth",
    "transparency",
    "sample_aspect_ratio",
    "rotation",
    "field_order",
    "colour_range",
    "colour_matrix",
    "colour_primaries",
    "colour_transfer",
    "chroma_location",
    "mastering_display",
    "content_light",
    "chapters",
)
_WHY_CHANGED = {
    "container": "as chosen, or since the source's own is none that is written",
    "codec": "as chosen, or the container's usual one",
    "duration_seconds": "containers tell the duration of the last frame in different ways, or not at all",
    "frame_rate": "an average, which containers count in different ways",
    "time_base": "the unit in which the container counts: see timestamps",
    "pixel_format": "the nearest that the codec has",
    "bit_depth": "the nearest that the codec has",
    "colour_range": "converted, as the codec has no other",
    "chroma_location": "converted, as the codec has no other",
    "field_order": "deinterlaced by bwdif, one frame per frame",
    "colour_matrix": "so that players show the same colours",
}
_ONLY_THE_BEGINNING = "the job was canceled: only the frames finished from the start are here"
_DURATION_SLACK_SECONDS = 0.001
_STAGES = ("plan", "decode", "infer", "wait", "encode", "check", "assemble")
_ONE_AFTER_THE_OTHER = ("plan", "infer", "wait", "assemble")
"""The others are at work meanwhile (see `worker.pipeline.StageTimes`)."""


def make_report(
    plan: Plan,
    source: SourceFacts,
    result: Path,
    check: Check,
    copies: Mapping[int, StreamContents],
    figures: Sequence[SegmentFigures | None],
    network: str,
    tag: str,
    seconds_so_far: Mapping[str, float],
    *,
    whole: Plan | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Report:
    """Put together what is known. `seconds_so_far`: of stages outside of segments; the figures tell of those inside.

    `whole`: of a canceled job, where `plan` and the result are only the beginning. `on_progress` is called while the
    result is read once more; it may stop the work by raising.
    """
    table = plan.survey.frames
    before, after = _of_source(whole or plan, source), _of_result(plan, check, result, on_progress)
    seconds = _stage_seconds(figures, seconds_so_far)
    total = sum(seconds.get(stage, 0) for stage in _ONE_AFTER_THE_OTHER)
    return Report(
        source=before,
        result=after,
        properties=tuple(_properties(plan, before, after, is_beginning=whole is not None)),
        streams=tuple(_streams(plan, source, copies, check)),
        frames=FrameReport(source=before.frames, result=check.frames, concealed=_places(plan, table.concealed)),
        timestamps=timestamp_report(check.timing),
        sound_offsets=check.sound_offsets,
        scene_cuts=_places(plan, plan.survey.cuts),
        losses=plan.losses,
        lost_in_container=check.lost,
        notes=(*plan.survey.notes, *_colour_notes(plan), *_beginning_notes(plan, whole)),
        quality=gather(figures, [segment.first for segment in plan.segments], frozenset(plan.survey.cuts), table),
        tile_reuse=_tile_reuse(figures),
        stage_seconds=seconds,
        device_busy=_device_busy(seconds),
        frames_per_second=round(len(table) / total, 3) if total else None,
        network=network,
        tag=tag,
    )


# --- the two sides ----------------------------------------------------------------------------------------------------


def _of_source(plan: Plan, source: SourceFacts) -> FileFacts:
    survey, table = plan.survey, plan.survey.frames
    return _file_facts(
        survey.picture,
        container=own_container(survey, "") or survey.format_names[0],
        size_bytes=plan.source_size_bytes,
        sha256=plan.source_sha256,
        duration=(table.pts[-1] + table.last_duration - table.pts[0]) * table.time_base,
        frames=len(table),
        frame_rate=survey.average_rate,
        time_base=table.time_base,
        codec=survey.codec,
        chapters=source.chapters,
    )


def _of_result(plan: Plan, check: Check, result: Path, on_progress: Callable[[], None]) -> FileFacts:
    return _file_facts(
        check.picture,
        container=plan.container,
        size_bytes=result.stat().st_size,
        sha256=sha256_of_file(result, on_progress),
        duration=check.duration,
        frames=check.frames,
        frame_rate=check.average_rate,
        time_base=check.time_base,
        codec=check.codec,
        chapters=check.chapters,
    )


def _file_facts(
    picture: Picture,
    *,
    container: str,
    size_bytes: int,
    sha256: str,
    duration: Fraction,
    frames: int,
    frame_rate: Fraction,
    time_base: Fraction,
    codec: str,
    chapters: int,
) -> FileFacts:
    colour = picture.colour
    location = colour.chroma_location
    return FileFacts(
        container=container,
        size_bytes=size_bytes,
        sha256=sha256,
        duration_seconds=_rounded(duration),
        frames=frames,
        frame_rate=_ratio(frame_rate),
        time_base=_ratio(time_base),
        codec=codec,
        width=picture.width,
        height=picture.height,
        # FFmpeg's older names say the range too, which has a line of its own.
        pixel_format=picture.pixel_format.replace("yuvj", "yuv"),
        bit_depth=picture.bit_depth,
        transparency=picture.has_alpha,
        sample_aspect_ratio=_ratio(picture.sample_aspect_ratio) if picture.sample_aspect_ratio else None,
        clean_aperture=_aperture(picture, 1) if picture.crop else None,
        rotation=_rotation(picture.display_matrix),
        display_matrix=picture.display_matrix,
        field_order=picture.field_order,
        # RGB says both by being what it is.
        colour_range=_RANGES.get(_FULL_RANGE if is_rgb(picture) else colour.range),
        colour_matrix=_name_of(_RGB if is_rgb(picture) else colour.matrix, _MATRICES),
        colour_primaries=_name_of(colour.primaries, _PRIMARIES),
        colour_transfer=_name_of(colour.transfer, _TRANSFERS),
        chroma_location=None if location == "unspecified" else location,
        mastering_display=_mastering_words(picture.mastering_display),
        content_light=_light_words(picture.content_light),
        chapters=chapters,
    )


def _name_of(code: int, names: Mapping[int, str]) -> str | None:
    return None if code == _UNKNOWN else names.get(code, str(code))


def _aperture(picture: Picture, scale: int) -> str | None:
    crop = picture.crop
    if crop is None:
        return None
    width, height = picture.width - crop.left - crop.right, picture.height - crop.top - crop.bottom
    return f"{scale * width}x{scale * height}+{scale * crop.left}+{scale * crop.top}"


def _rotation(matrix: tuple[int, ...] | None) -> str | None:
    """Words for the matrix [[a, b], [c, d]] by which players place the picture; None: as it is stored."""
    if matrix is None:
        return None
    a, b, c, d = (matrix[place] / _FIXED_POINT for place in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    degrees = round(math.degrees(math.atan2(b, -a if mirrored else a)), 1) % 360
    words = [f"{degrees:g} degrees clockwise"] if degrees else []
    return ", then ".join([*words, *(["mirrored left to right"] if mirrored else [])]) or None


def _mastering_words(display: MasteringDisplay | None) -> str | None:
    if display is None:
        return None
    words = []
    if display.primaries is not None:
        words += [f"{name}({x:.4f},{y:.4f})" for name, (x, y) in zip("RGB", _floats(display.primaries), strict=True)]
    if display.white_point is not None:
        words += [f"WP({x:.4f},{y:.4f})" for x, y in _floats([display.white_point])]
    if display.max_luminance is not None and display.min_luminance is not None:
        # Codecs hold these in steps of their own: not more digits than those.
        words.append(f"{float(display.min_luminance):.3g} to {float(display.max_luminance):.5g} cd/m2")
    return " ".join(words)


def _light_words(light: ContentLight | None) -> str | None:
    return None if light is None else f"MaxCLL {light.max_content}, MaxFALL {light.max_frame_average} cd/m2"


def _floats(points: Iterable[tuple[Fraction, Fraction]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


# --- side by side -----------------------------------------------------------------------------------------------------


def _properties(plan: Plan, before: FileFacts, after: FileFacts, *, is_beginning: bool) -> Iterator[PropertyReport]:
    yield PropertyReport(
        name="frame_size",
        source=f"{before.width}x{before.height}",
        result=f"{after.width}x{after.height}",
        outcome="upscaled",
        why=f"{SCALE}x",
    )
    for name in _COMPARED:
        there, now = getattr(before, name), getattr(after, name)
        # What was promised has been found: decoders only have names of their own for it, as 12 bits for all of ProRes.
        promised = name in ("pixel_format", "bit_depth") and there == getattr(plan.picture, name)
        same = promised or _is_same(name, there, now)
        line = _compared(name, _shown(there), _shown(now), plan, is_same=same)
        if is_beginning and name in ("duration_seconds", "chapters") and line.why:
            line = line.model_copy(update={"why": _ONLY_THE_BEGINNING})
        yield line
    if before.clean_aperture or after.clean_aperture:
        same = after.clean_aperture == _aperture(plan.survey.picture, SCALE)
        yield _compared("clean_aperture", before.clean_aperture, after.clean_aperture, plan, is_same=same)


def _is_same(name: str, there: object, now: object) -> bool:
    if name == "duration_seconds" and isinstance(there, float) and isinstance(now, float):
        return abs(there - now) <= _DURATION_SLACK_SECONDS
    if name == "chroma_location" and {there, now} == {None, "left"}:
        return True  # what is usual where nothing is said
    if name == "colour_range" and {there, now} == {None, "limited"}:
        return True
    if name == "sample_aspect_ratio":
        return (there or "1/1") == (now or "1/1")
    return there == now


def _compared(name: str, there: str | None, now: str | None, plan: Plan, *, is_same: bool) -> PropertyReport:
    if is_same:
        return PropertyReport(name=name, source=there, result=now, outcome="kept")
    outcome: PropertyOutcome = "dropped" if there is not None and now is None else "converted"
    why = _WHY_CHANGED.get(name) if outcome == "converted" else None
    if why is None:
        why = "the user agreed to it: see losses" if plan.losses else "the container has no place for it"
    return PropertyReport(name=name, source=there, result=now, outcome=outcome, why=why)


def _shown(value: object) -> str | None:
    """What is absent is None: no transparency and no chapters too."""
    if value is None or value is False or value == 0:
        return None
    return "yes" if value is True else str(value)


def _streams(
    plan: Plan, source: SourceFacts, copies: Mapping[int, StreamContents], check: Check
) -> Iterator[StreamReport]:
    plans = {stream.stream.index: stream for stream in plan.streams}
    for index, facts in sorted(source.streams.items()):
        found = check.streams.get(index)
        if index in plans:
            kind, outcome = plans[index].stream.type, _OUTCOMES[plans[index].action]
            why = _why(plans[index], copies.get(index), plan.container)
            facts = facts.model_copy(update={"codec": plans[index].stream.codec or facts.codec})
        else:
            kind, outcome, why = "video", "upscaled", f"{SCALE}x, encoded as {check.codec}"
        yield StreamReport(**facts.model_dump(), type=kind, outcome=outcome, why=why, result=found)


def _why(plan: StreamPlan, copy: StreamContents | None, container: Container) -> str | None:
    if copy is not None and copy.hidden:
        why = "they lie between parts that are shown" if has_edit_lists(container) else f"{container} has no edit lists"
        return f"without {copy.hidden} packets that an edit list hides: {why}"
    if copy is not None and copy.framed:
        return "the transport stream's own framing was taken off, as the container demands; the payload is the same"
    return plan.why


def _places(plan: Plan, frames: Iterable[int]) -> tuple[FramePlace, ...]:
    table = plan.survey.frames
    return tuple(FramePlace(frame=frame, seconds=round(table.seconds(frame), 6)) for frame in frames)


def timestamp_report(timing: Timing) -> TimestampReport:
    """Put the comparison of all frame times into the report's words."""
    if timing.rounding:
        words = f"rounded to the container's clock, by at most {float(timing.rounding) * 1000:.3f} ms"
    elif timing.shift:
        words = "at the source's own distances"
    else:
        words = "exact: every frame is shown at the source's own time"
    if timing.shift:
        words += f"; all streams alike start {float(timing.shift) * 1000:.3f} ms later: the container begins at zero"
    return TimestampReport(
        exact=not timing.rounding and not timing.shift,
        largest_rounding_seconds=_rounded(timing.rounding),
        shift_seconds=_rounded(timing.shift),
        words=words,
    )


def _colour_notes(plan: Plan) -> tuple[str, ...]:
    before, after = plan.survey.picture.colour, plan.picture.colour
    if before.matrix != _UNKNOWN or after.matrix in (_UNKNOWN, _RGB) or is_rgb(plan.survey.picture):
        return ()
    return (f"the result is tagged {after.conversion}, as players take the source, so that it shows the same colours",)


def _beginning_notes(plan: Plan, whole: Plan | None) -> tuple[str, ...]:
    if whole is None:
        return ()
    return (
        f"the job was canceled: the first {plan.frames} of {whole.frames} frames were finished and are here; all other "
        "streams end with them, and are compared as far as that",
    )


def _tile_reuse(figures: Iterable[SegmentFigures | None]) -> TileReuseReport | None:
    known = [segment for segment in figures if segment is not None]
    computed = sum(segment.tiles_computed for segment in known)
    reused = sum(segment.tiles_reused for segment in known)
    return TileReuseReport(computed=computed, reused=reused) if computed + reused else None


def _stage_seconds(figures: Iterable[SegmentFigures | None], so_far: Mapping[str, float]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float, so_far)
    for segment in figures:
        for stage, spent in (segment.stage_seconds if segment is not None else {}).items():
            seconds[stage] += spent
    return {stage: round(seconds[stage], 3) for stage in _STAGES if stage in seconds}


def _device_busy(seconds: Mapping[str, float]) -> float | None:
    """None where segments do not say how long the networks had to wait, as those of earlier versions."""
    if "wait" not in seconds:
        return None
    in_segments = seconds["infer"] + seconds["wait"]
    return round(seconds["infer"] / in_segments, 3) if in_segments else None


def _rounded(seconds: Fraction) -> float:
    return round(float(seconds), 6)


def _ratio(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"
