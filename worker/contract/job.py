"""A job as the gateway and the workers know it. `JobRecord` is what `job.json` holds; clients see `app.schemas`."""

import re
import secrets
import time
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from worker.contract.failure import FailureCode

# What is used where nobody names networks.
DEFAULT_PRESET = "aligned"

JOB_ID_PATTERN = r"^[0-9a-z]{20}$"
JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)


class PartialResult(StrEnum):
    """What becomes of the frames that a canceled job had finished, where that was asked for."""

    BEING_MADE = "being_made"
    KEPT = "kept"
    NOTHING_FINISHED = "nothing_finished"
    FAILED = "failed"


class VideoCodec(StrEnum):
    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"
    VP9 = "vp9"
    FFV1 = "ffv1"
    PRORES = "prores"
    PNG = "png"


class Container(StrEnum):
    MP4 = "mp4"
    MKV = "mkv"
    MOV = "mov"
    WEBM = "webm"
    ZIP = "zip"
    """A sequence of PNG pictures, with their times beside them."""

    @property
    def media_type(self) -> str:
        return {
            "mp4": "video/mp4",
            "mkv": "video/x-matroska",
            "mov": "video/quicktime",
            "webm": "video/webm",
            "zip": "application/zip",
        }[self]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _in_words(pattern: str, words: str) -> AfterValidator:
    """Demand `pattern`, and say so in words: the expression itself tells few people what to write."""

    def matching(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("string_pattern_mismatch", "should be {words}", {"words": words})
        return text

    return AfterValidator(matching)


_ENCODER_OPTIONS = r"^$|^[a-z0-9-]+=[A-Za-z0-9.,-]+(:[a-z0-9-]+=[A-Za-z0-9.,-]+)*$"
_FRAME_RATE = r"^[1-9][0-9]{0,6}(/[1-9][0-9]{0,6})?$"
_EncoderOptions = Annotated[
    str,
    _in_words(_ENCODER_OPTIONS, "NAME=VALUE:NAME=VALUE, as tune=film:aq-mode=3"),
    WithJsonSchema({"type": "string", "maxLength": 500, "pattern": _ENCODER_OPTIONS}),
]
_FrameRate = Annotated[
    str,
    _in_words(_FRAME_RATE, "a whole number or a fraction, as 24000/1001"),
    WithJsonSchema({"type": "string", "pattern": _FRAME_RATE}),
]


class JobOptions(_Frozen):
    """What the user chose; every default is spelled out in the record, so that an upgrade never changes an old job."""

    preset: str = Field(DEFAULT_PRESET, pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="Networks and weights.")
    container: Container | None = Field(
        None, description="Container of the result. None: the source's own where it can hold the result, else mkv."
    )
    codec: VideoCodec | None = Field(
        None,
        description="Video codec of the result. None: h264 (hevc for more than 8 bits, av1 in webm, png in zip), or "
        "the first that keeps what that one cannot, such as transparency.",
    )
    quality: Literal["small", "balanced", "high", "lossless"] | None = Field(
        None, description="In words, for every codec; instead of `crf`. None: balanced."
    )
    crf: int | None = Field(
        None,
        ge=0,
        le=63,
        description="Constant quality in the codec's own numbers, lower is better. None: by `quality`.",
    )
    encoder_preset: Literal["ultrafast", "veryfast", "faster", "fast", "medium", "slow", "veryslow"] = Field(
        "medium", description="Encoder effort; av1 and vp9 map the names to their numbers."
    )
    encoder_options: _EncoderOptions = Field(
        "",
        max_length=500,
        description='More options of the encoder, as "tune=film:aq-mode=3"; some would break segments and are refused.',
    )
    deinterlace: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: where the fields of the picture are of different times."
    )
    on_error: Literal["fail", "conceal"] = Field(
        "fail",
        description="What becomes of a frame that cannot be decoded. conceal: what the decoder makes of it, or the "
        "frame before it; the report names each.",
    )
    frame_rate: _FrameRate | None = Field(
        None,
        description='Of a sequence of pictures: how many per second, as "24000/1001". None: by its own times, else 25.',
    )
    drop_unsupported: bool = Field(
        False,
        description="Go on without what the result cannot hold, instead of refusing the job; the report names it.",
    )
    reuse: bool = Field(
        False,
        description="Work in tiles, and do not compute again what is the same as in the frame before: for "
        "recordings of a screen; what a camera took is slower so than in whole frames. The result is that of tiles, "
        "bit for bit.",
    )


class StreamInfo(_Frozen):
    """One stream of the source, as probed."""

    index: int
    type: str = Field(description="video, audio, subtitle, data or attachment")
    codec: str | None
    language: str | None = None


class SourceInfo(_Frozen):
    """What `plan` found in the source."""

    container: str
    width: int = Field(description="Stored width in pixels, before any display rotation.")
    height: int
    frames: int
    duration_seconds: float
    frame_rate: str | None = Field(description='Average rate as a fraction, e.g. "30000/1001".')
    pixel_format: str
    streams: list[StreamInfo]


class ResultInfo(_Frozen):
    container: Container
    width: int
    height: int
    frames: int
    size_bytes: int
    sha256: str
    expires_at: AwareDatetime | None = None


class JobError(_Frozen):
    code: FailureCode
    message: str


class Idempotency(_Frozen):
    """The Idempotency-Key under which a job was asked for, and what was asked: as digests, as it may hold anything."""

    key_sha256: str
    fingerprint: str


class Progress(_Frozen):
    """Live figures, kept in Redis only; storage can always rebuild them by counting segments."""

    frames_done: int = 0
    frames_total: int = 0
    segments_done: int = 0
    segments_total: int = 0
    fps: float | None = Field(None, description="Frames finished per second since the first segment began.")
    batch_frames: int | None = Field(None, description="Frames that go through the networks at a time.")
    tile_px: int | None = Field(None, description="Side of the tiles, in pixels of the source. None: whole frames.")

    @property
    def fraction(self) -> float:
        return self.frames_done / self.frames_total if self.frames_total else 0.0

    @property
    def eta_seconds(self) -> float | None:
        return (self.frames_total - self.frames_done) / self.fps if self.fps else None


class JobRecord(_Frozen):
    """`jobs/{id}/job.json`: fsynced before the 202 and at every change of status. The truth about a job."""

    id: JobId
    status: JobStatus = JobStatus.QUEUED
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    options: JobOptions
    source_name: str = Field(description="The user's file name, for display and download only; never a path of ours.")
    source_size_bytes: int
    source_sha256: str
    source: SourceInfo | None = None
    result: ResultInfo | None = None
    error: JobError | None = None
    partial_result: PartialResult | None = Field(
        None, description="Of a canceled job: whether `result` is, or will be, what it had finished. None: not wanted."
    )
    media_removed_at: AwareDatetime | None = Field(
        None, description="When source and result expired. From then on the job is only remembered, and cannot be run."
    )
    owner: str | None = Field(
        None, pattern=r"^[0-9a-f]{12}$", description="The id of the API key that made it. None: made without keys."
    )
    source_url: str | None = Field(
        None, description="Where the source is fetched from; once it is here, without the query, which may be a secret."
    )
    webhook_url: str | None = Field(None, description="Who is told of the job's end.")
    request_id: str | None = Field(None, description="Of the request that made the job; on every log line about it.")
    trace_parent: str | None = Field(
        None,
        pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        description="Of the request that made the job, where it is traced: all work on the job belongs to that trace.",
    )
    idempotency: Idempotency | None = Field(None, description="How a repeated request knows this job again.")
    revision: int = Field(0, ge=0, description="Raised by every change: of two copies the higher one is the later.")

    @property
    def wants_partial_result(self) -> bool:
        """Canceled, and a worker still has to put together what was finished."""
        return (
            self.status is JobStatus.CANCELED
            and self.partial_result is PartialResult.BEING_MADE
            and self.media_removed_at is None
        )

    @property
    def awaits_source(self) -> bool:
        """Still to be fetched: what is said of the source's bytes is not known yet (0, and an empty checksum)."""
        return self.source_url is not None and not self.source_sha256


def new_job_id() -> str:
    """20 characters, unguessable (60 random bits), sortable by time of creation: 8 of milliseconds, 12 of chance."""
    return _base36(time.time_ns() // 1_000_000, 8)[-8:] + _base36(secrets.randbits(62), 12)


def now() -> datetime:
    return datetime.now(UTC)


def fraction_text(value: Fraction | None) -> str | None:
    return None if value is None else f"{value.numerator}/{value.denominator}"


def _base36(number: int, width: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
    return digits.rjust(width, "0")
