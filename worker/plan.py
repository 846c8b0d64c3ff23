"""What will be done to one video, segment by segment: `plan.json`. No GPU and no torch are needed to make it."""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.failure import FailureCode, JobFailureError
from worker.contract.job import Container, JobOptions, SourceInfo, StreamInfo, VideoCodec, fraction_text
from worker.contract.storage import JobFolder
from worker.contract.stream import LiveFacts
from worker.settings import VideoLimits
from worker.video.codecs import CODECS, DEFAULT_CODECS, Quality
from worker.video.colour import encoded_picture, shortcomings
from worker.video.containers import chapter_tracks, copy_problems, has_edit_lists, holds_codec, own_container
from worker.video.encode import check_encoder, segment_suffix
from worker.video.sound import SUBSTITUTES, can_be_converted
from worker.video.stream import Timing, why_not_streamed
from worker.video.survey import survey
from worker.video.values import Encoding, OtherStream, Picture, Survey

PIPELINE_VERSION = 3
"""Raise it whenever the same source, options and weights give other bytes than before."""

SCALE = 2
SEGMENT_SECONDS = 4
MIN_SEGMENT_FRAMES, MAX_SEGMENT_FRAMES = 24, 240
_HASHED_AT_ONCE_BYTES = 4 * 1024 * 1024
_MKV_CAN = "; mkv can"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SegmentPlan(_Frozen):
    """Consecutive frames that are computed and encoded alone: `first` to `stop - 1`."""

    index: int
    first: int
    stop: int

    @property
    def frames(self) -> int:
        return self.stop - self.first


class StreamPlan(_Frozen):
    """What becomes of a stream of the source that is not upscaled."""

    stream: OtherStream
    action: Literal["copy", "convert", "rewrite", "drop"]
    why: str | None = Field(None, description="For the report, where the stream is not simply copied.")


class Plan(_Frozen):
    """Everything that decides the result, beside the networks' weights."""

    version: Literal[1] = 1
    pipeline_version: int = Field(description="`PIPELINE_VERSION` of the program that made it.")
    source_sha256: str
    source_size_bytes: int
    options: JobOptions = Field(description="As chosen; `container` and `encoding` say what that came to.")
    container: Container
    survey: Survey
    picture: Picture = Field(description="Of the result.")
    encoding: Encoding
    segments: tuple[SegmentPlan, ...]
    segment_frames: int | None = Field(None, description="Where a setting replaced the usual length of segments.")
    streams: tuple[StreamPlan, ...]
    losses: tuple[str, ...] = Field((), description="What the result will lack, in words; the user agreed to it.")
    max_pixels: int = Field(description="The limit under which the source was accepted.")
    segments_in_flight: int = Field(
        4, ge=1, description="How many of the job's segments may wait or run at a time. It decides no bytes."
    )
    survey_seconds: float = Field(0.0, description="What reading the source took, for the report.")

    @property
    def is_current(self) -> bool:
        """Whether this program would go on from this plan's segments with the same bytes."""
        return self.pipeline_version == PIPELINE_VERSION

    @property
    def frames(self) -> int:
        return len(self.survey.frames)

    def cut_to(self, segments: int) -> "Plan":
        """Return the plan of the first so many segments alone, as if the picture ended there."""
        stop = self.segments[segments - 1].stop
        table = self.survey.frames
        if stop == len(table):
            return self
        kept = table.model_copy(
            update={
                "pts": table.pts[:stop],
                "stamps": table.stamps[:stop] if table.stamps else None,
                "crc32": table.crc32[:stop],
                "last_duration": table.pts[stop] - table.pts[stop - 1],
                "concealed": tuple(frame for frame in table.concealed if frame < stop),
                "progressive": tuple(frame for frame in table.progressive if frame < stop),
            }
        )
        cuts = tuple(frame for frame in self.survey.cuts if frame < stop)
        survey = self.survey.model_copy(update={"frames": kept, "cuts": cuts})
        return self.model_copy(update={"survey": survey, "segments": self.segments[:segments]})

    def without(self, streams: Collection[int], why: str) -> "Plan":
        """Return the plan that drops these of the source's streams too."""
        changed = tuple(
            stream.model_copy(update={"action": "drop", "why": why}) if stream.stream.index in streams else stream
            for stream in self.streams
        )
        return self.model_copy(update={"streams": changed})

    def demand_usable(self, options: JobOptions, limits: VideoLimits) -> None:
        """Make sure that the plan is for what was asked, and that the encoder takes it, where `make_plan` did not.

        Whoever made it read a stranger's file: what it says about the source harms at most that job; what reaches
        encoders must be the user's own words.
        """
        encoding, picture = self.encoding, self.survey.picture
        if (
            self.options != options
            or (encoding.encoder_options, encoding.encoder_preset) != (options.encoder_options, options.encoder_preset)
            or self.max_pixels != limits.max_pixels
            or picture.width * picture.height > limits.max_pixels
            or (self.picture.width, self.picture.height) != (picture.width * SCALE, picture.height * SCALE)
            or len(self.survey.frames) > limits.max_frames
        ):
            raise JobFailureError(FailureCode.DECODER_CRASHED, "the decoder went astray: convert the file first")
        check_encoder(self.picture, encoding)

    def segment_file(self, folder: JobFolder, index: int) -> Path:
        """Where segment `index` is, or will be."""
        return folder.segment(index, segment_suffix(self.encoding))

    def figures_file(self, folder: JobFolder, index: int) -> Path:
        """Where the figures of segment `index` for the report are, or will be: beside it."""
        return self.segment_file(folder, index).with_suffix(".json")

    def segment_files(self, folder: JobFolder) -> list[Path]:
        return [self.segment_file(folder, segment.index) for segment in self.segments]

    def timing(self, index: int) -> Timing:
        """When the frames of segment `index` are shown to who watches while it is rendered."""
        segment, table = self.segments[index], self.survey.frames
        return Timing(
            table.pts[segment.first : segment.stop],
            self._stands_at(segment.first),
            self._stands_at(segment.stop),
            table.time_base,
        )

    def live_facts(self) -> LiveFacts:
        """Return what the gateway has to know of the segments."""
        borders = [self.segments[0].first, *(segment.stop for segment in self.segments)]
        return LiveFacts(
            segment_suffix=segment_suffix(self.encoding),
            borders_seconds=tuple(float(self._stands_at(frame) * self.survey.frames.time_base) for frame in borders),
            why_not_streamed=why_not_streamed(self.encoding),
        )

    def _stands_at(self, frame: int) -> int:
        """When this frame is shown, in units of the time base after the first; behind the last one, the end of all."""
        table = self.survey.frames
        return (table.pts[frame] if frame < len(table) else table.pts[-1] + table.last_duration) - table.pts[0]

    def source_info(self) -> SourceInfo:
        """Return what clients are told about the source."""
        table, picture = self.survey.frames, self.survey.picture
        ticks = table.pts[-1] + table.last_duration - table.pts[0]
        video = StreamInfo(index=self.survey.stream_index, type="video", codec=self.survey.codec)
        others = [
            StreamInfo(index=other.index, type=other.type, codec=other.codec, language=other.language)
            for other in self.survey.others
        ]
        return SourceInfo(
            container=self.survey.format_names[0],
            width=picture.width,
            height=picture.height,
            frames=self.frames,
            duration_seconds=float(ticks * table.time_base),
            frame_rate=fraction_text(self.survey.average_rate),
            pixel_format=picture.pixel_format,
            streams=sorted([video, *others], key=lambda stream: stream.index),
        )


def make_plan(
    source: Path,
    options: JobOptions,
    limits: VideoLimits,
    source_suffix: str = "",
    *,
    opened: Path | None = None,
    source_sha256: str | None = None,
    segment_frames: int | None = None,
    try_encoder: bool = True,
    on_progress: Callable[[], None] = lambda: None,
) -> Plan:
    """Read the whole source once and lay out the work. Raises `JobFailureError` for what cannot be done.

    `source_suffix` is that of the user's file name (".mov"); it only tells containers of one family apart.
    `opened` is the video that was made of a source that is pictures (`worker.video.png_source.take_in`).
    `source_sha256` spares reading the file for it where it is known. `segment_frames` replaces the usual length of
    about four seconds; the tests cut short videos finely with it. `on_progress` is called for every frame and packet
    read; it may stop the work by raising.
    """
    began = time.perf_counter()
    video = opened or source
    facts = survey(video, limits, on_progress, deinterlace=options.deinterlace, on_error=options.on_error)
    if video != source:
        facts = facts.model_copy(update={"format_names": (Container.ZIP.value,)})
    container, codec = _container_and_codec(options, facts, source_suffix)
    picture, losses = encoded_picture(facts.picture, SCALE, codec, container, facts.codec)
    quality, crf = _quality(options, codec)
    encoding = Encoding(
        codec=codec,
        crf=crf,
        encoder_preset=options.encoder_preset,
        quality=quality,
        encoder_options=options.encoder_options,
        average_rate=facts.average_rate,
        time_base=facts.frames.time_base,
    )
    if try_encoder:
        check_encoder(picture, encoding)
    streams = _stream_plans(video, facts, container, limits.max_pixels)
    losses = (*facts.cannot_keep, *losses, *(_loss(stream) for stream in streams if stream.action == "drop"))
    if losses and not options.drop_unsupported:
        raise JobFailureError(
            FailureCode.WOULD_LOSE,
            f"{container} with {codec} would lose: {'; '.join(losses)}. "
            f"{_way_out(facts, container, codec, streams)}agree to it (--drop-unsupported, drop_unsupported=true)",
        )
    return Plan(
        pipeline_version=PIPELINE_VERSION,
        source_sha256=source_sha256 or sha256_of_file(source, on_progress),
        source_size_bytes=(video if source.is_dir() else source).stat().st_size,
        options=options,
        container=container,
        survey=facts,
        picture=picture,
        encoding=encoding,
        segments=lay_out_segments(len(facts.frames), segment_frames or _usual_segment_frames(facts)),
        segment_frames=segment_frames,
        streams=streams,
        losses=losses,
        max_pixels=limits.max_pixels,
        survey_seconds=time.perf_counter() - began,
    )


def lay_out_segments(frames: int, target_frames: int) -> tuple[SegmentPlan, ...]:
    """Cut `frames` into nearly equal segments of about `target_frames`, none of them below `MIN_SEGMENT_FRAMES`.

    Only a video, or a target, that is itself below the minimum gives shorter ones.
    """
    smallest = min(MIN_SEGMENT_FRAMES, target_frames)
    count = max(1, min(-(-frames // target_frames), frames // smallest))
    cuts = [number * frames // count for number in range(count + 1)]
    return tuple(SegmentPlan(index=i, first=cuts[i], stop=cuts[i + 1]) for i in range(count))


def _usual_segment_frames(facts: Survey) -> int:
    return min(max(round(SEGMENT_SECONDS * facts.average_rate), MIN_SEGMENT_FRAMES), MAX_SEGMENT_FRAMES)


def _container_and_codec(options: JobOptions, facts: Survey, source_suffix: str) -> tuple[Container, VideoCodec]:
    """Resolve what the options leave open, as their descriptions promise."""
    container = options.container
    if container is None:
        container = own_container(facts, source_suffix) or Container.MKV
        if options.codec is not None and not holds_codec(container, options.codec):
            container = Container.ZIP if options.codec is VideoCodec.PNG else Container.MKV
    codec = options.codec or _default_codec(facts, container, options)
    if not holds_codec(container, codec):
        raise JobFailureError(
            FailureCode.UNSUPPORTED_OUTPUT,
            f"{container} cannot hold {codec}: choose another container, or one of its codecs "
            f"({', '.join(fitting for fitting in VideoCodec if holds_codec(container, fitting))})",
        )
    return container, codec


def _default_codec(facts: Survey, container: Container, options: JobOptions) -> VideoCodec:
    """Return the first of the container's usual codecs that keeps the whole picture, else the one that loses least.

    Only those count that know the quality asked for and take pictures as small as this.
    """
    picture = facts.picture
    candidates = sorted(DEFAULT_CODECS[container], key=lambda codec: picture.bit_depth > 8 and codec is VideoCodec.H264)
    usual = [
        codec
        for codec in candidates
        if SCALE * min(picture.width, picture.height) >= CODECS[codec].min_side_px
        and (options.crf is None or CODECS[codec].crf)
        and (options.quality != "lossless" or CODECS[codec].lossless != "never")
    ] or candidates
    return min(usual, key=lambda codec: shortcomings(picture, codec, container, facts.codec))


def _quality(options: JobOptions, codec: VideoCodec) -> tuple[Quality, int | None]:
    """Resolve `quality` and `crf`, of which the user may say one, to a word and the codec's own number, if any."""
    facts = CODECS[codec]
    if options.crf is not None:
        if options.quality is not None:
            raise _unsupported("crf and quality say the same thing: choose one of them")
        if not facts.crf:
            instead = "it is always lossless" if facts.lossless == "always" else "use quality small, balanced or high"
            raise _unsupported(f"{codec} has no crf: {instead}")
        if options.crf > facts.max_crf:
            raise _unsupported(f"crf {options.crf} is out of range: {codec} takes 0 to {facts.max_crf}")
        return "balanced", options.crf
    quality = options.quality or "balanced"
    if facts.lossless == "always":
        return "lossless", None
    if quality == "lossless" and facts.lossless == "never":
        raise _unsupported(f"{codec} cannot be lossless here: use quality high, or another codec")
    return quality, facts.crf.get(quality)


def _unsupported(message: str) -> JobFailureError:
    return JobFailureError(FailureCode.UNSUPPORTED_OUTPUT, message)


def _stream_plans(source: Path, facts: Survey, container: Container, max_pixels: int) -> tuple[StreamPlan, ...]:
    """Decide for every stream that is not upscaled: copied if the container holds it, sound else converted."""
    problems = copy_problems(source, facts, container, max_pixels)
    mkv_problems = copy_problems(source, facts, Container.MKV, max_pixels)
    chapter_titles = chapter_tracks(source, max_pixels)
    plans = []
    for stream in facts.others:
        problem = problems[stream.index]
        only_mkv = container is not Container.MKV and mkv_problems[stream.index] is None
        rewritten = _rewritten(stream, container, is_chapters=stream.index in chapter_titles)
        if rewritten is not None:
            plans.append(StreamPlan(stream=stream, action="rewrite", why=rewritten))
        elif problem is None:
            plans.append(StreamPlan(stream=stream, action="copy"))
        elif stream.type == "audio" and can_be_converted(source, max_pixels, stream.index, container):
            why = f"{problem}: as {SUBSTITUTES[container]}" + ("; mkv keeps it as it is" if only_mkv else "")
            plans.append(StreamPlan(stream=stream, action="convert", why=why))
        else:
            plans.append(StreamPlan(stream=stream, action="drop", why=problem + (_MKV_CAN if only_mkv else "")))
    return tuple(plans)


def _rewritten(stream: OtherStream, container: Container, *, is_chapters: bool) -> str | None:
    """Say how a track of the mp4 family that tells what is known otherwise too comes into the result."""
    if is_chapters:
        return "written anew from the chapters" if has_edit_lists(container) else "kept as chapters"
    if stream.type == "data" and stream.codec == "tmcd" and container is not Container.ZIP:
        return "written anew from the timecode tag" if has_edit_lists(container) else "kept as the timecode tag"
    return None


def _loss(plan: StreamPlan) -> str:
    stream = plan.stream
    return f"{stream.type} stream {stream.index} ({stream.codec or 'of unknown codec'}): {plan.why}"


def _way_out(facts: Survey, container: Container, codec: VideoCodec, streams: Sequence[StreamPlan]) -> str:
    """Say which container and codec would keep what this one does not: the nearest to what was asked for."""
    dropped = [stream for stream in streams if stream.action == "drop"]
    containers = [Container.MKV] if dropped else [container, Container.MKV]
    if facts.cannot_keep or not all((stream.why or "").endswith(_MKV_CAN) for stream in dropped):
        return "If that is no matter, "
    for other in containers:
        for choice in (codec, *DEFAULT_CODECS[other]):
            if (other, choice) == (container, codec) or not holds_codec(other, choice):
                continue
            if not encoded_picture(facts.picture, SCALE, choice, other, facts.codec)[1]:
                with_codec = "" if choice is codec else f"codec {choice}"
                named = " with ".join(filter(None, ["" if other is container else other.value, with_codec]))
                return f"Choose {named}, or "
    return "If that is no matter, "


def sha256_of_file(path: Path, on_progress: Callable[[], None] = lambda: None) -> str:
    """Return the digest in hexadecimal. `on_progress` is called for every piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE_BYTES):
            digest.update(piece)
            on_progress()
    return digest.hexdigest()
