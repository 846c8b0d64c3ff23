"""What clients see. These classes are the public wire format: they change only by addition within version 1."""

from datetime import datetime
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from app.guarded_http import shown_url
from worker.contract.failure import FailureCode
from worker.contract.job import (
    Container,
    JobOptions,
    JobRecord,
    JobStatus,
    PartialResult,
    Progress,
    StreamInfo,
    VideoCodec,
)

UPLOAD_ID_PATTERN = r"^[0-9A-Za-z_-]{1,64}$"
WEBHOOK_URL_DESCRIPTION = (
    "An https URL that is told of the job's end: job.succeeded, job.failed or job.canceled, signed as in Standard "
    "Webhooks, at least once. Only where the service is set up for it."
)


KEEP_PARTIAL_DESCRIPTION = (
    "Make a playable result of the frames that are finished from the start without a gap; all other streams end with "
    "them. The job is canceled at once; `partial_result` tells when the result is there."
)
REUSE_RESULT_DESCRIPTION = (
    "If a job of yours already has the result of the same bytes with the same options and networks, answer with that "
    "job (200 instead of 202, `result_is_reused`) instead of making it again. No webhook is sent for it."
)


class Problem(BaseModel):
    """RFC 9457. Switch on `code`, which never changes; show `detail` to people; quote `request_id` to the operator."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str | None = None
    code: str
    request_id: str | None = None


class SubmitUpload(JobOptions):
    """JSON body of `POST /v1/jobs`: a finished upload and the options."""

    upload_id: str = Field(
        pattern=UPLOAD_ID_PATTERN, description="Of a finished upload, raw PUT or tus; used up by this."
    )
    filename: str = Field("video", description="The user's name for the file, for the result's name.")
    webhook_url: str | None = Field(None, description=WEBHOOK_URL_DESCRIPTION)
    reuse_result: bool = Field(False, description=REUSE_RESULT_DESCRIPTION)

    @property
    def options(self) -> JobOptions:
        return JobOptions.model_validate(
            self.model_dump(exclude={"upload_id", "filename", "webhook_url", "reuse_result"})
        )


class SubmitUrl(JobOptions):
    """JSON body of `POST /v1/jobs`: where the source is to be fetched from, and the options."""

    source_url: str = Field(
        description="An https URL of the file itself. Only where the service is set up for it. Its query is not shown."
    )
    filename: str | None = Field(None, description="For the result's name. None: the URL's last part.")
    webhook_url: str | None = Field(None, description=WEBHOOK_URL_DESCRIPTION)

    @property
    def options(self) -> JobOptions:
        return JobOptions.model_validate(self.model_dump(exclude={"source_url", "filename", "webhook_url"}))


class CancelJob(BaseModel):
    """JSON body of `POST /v1/jobs/{id}/cancel`, which may be left out."""

    model_config = ConfigDict(extra="forbid")

    keep_partial: bool = Field(False, description=KEEP_PARTIAL_DESCRIPTION)


class OpenSession(BaseModel):
    """JSON body of `PUT /v1/session`."""

    model_config = ConfigDict(extra="forbid")

    key: SecretStr = Field(min_length=1, max_length=1024, description="A key of this service.")


class Session(BaseModel):
    needs_key: bool = Field(description="Whether this service has keys. If not, it answers its own machine.")
    authenticated: bool = Field(description="Whether this very request would be let in.")


def _with_numbers(schema: dict[str, Any]) -> None:
    """A browser knows a rate as a number, and pydantic only the type that other models have."""
    schema["properties"]["frame_rate"]["anyOf"].append({"type": "number", "exclusiveMinimum": 0, "maximum": 1000})


class EstimateWish(JobOptions):
    """JSON body of `POST /v1/estimate`: the video's size and length, and the options."""

    model_config = ConfigDict(json_schema_extra=_with_numbers)

    width: int = Field(ge=1, le=65536, description="Of the source, in pixels.")
    height: int = Field(ge=1, le=65536)
    frames: int | None = Field(None, ge=1, le=10**9, description="Or `duration_seconds`.")
    duration_seconds: float | None = Field(
        None, gt=0, le=10**7, description="With `frame_rate`, or 30 frames a second where that is left out."
    )

    @field_validator("frame_rate", mode="before")
    @classmethod
    def as_fraction(cls, rate: object) -> object:
        if isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 1000:
            fraction = Fraction(rate).limit_denominator(1001)
            return f"{max(fraction.numerator, 1)}/{fraction.denominator}"
        return rate

    @model_validator(mode="after")
    def either_frames_or_duration(self) -> Self:
        if (self.frames is None) == (self.duration_seconds is None):
            raise ValueError("say either frames or duration_seconds")
        return self

    @property
    def options(self) -> JobOptions:
        return JobOptions.model_validate(self.model_dump(include=set(JobOptions.model_fields)))

    @property
    def frames_asked(self) -> int:
        return self.frames or max(1, round((self.duration_seconds or 0) * Fraction(self.frame_rate or 30)))


class Estimate(BaseModel):
    frames: int
    seconds: float | None = Field(description="That the job would take if it were alone.")
    wait_seconds: float | None = Field(
        description="What the jobs that are there add to it: they and this one take turns."
    )
    frames_per_second: float | None = Field(description="If it were alone.")
    result_bytes: int | None = Field(description="About, and without sound: it depends on what the video shows.")
    basis: Literal["measured", "unknown"] = Field(
        description="measured: from segments that this service finished lately. unknown: there were none."
    )


class Upload(BaseModel):
    id: str
    size_bytes: int
    sha256: str


class JobProgress(BaseModel):
    frames_done: int
    frames_total: int = Field(description="0 while not yet known.")
    fraction: float = Field(ge=0, le=1)
    fps: float | None = Field(description="Frames finished per second.")
    eta_seconds: float | None
    segments_done: int
    segments_total: int
    batch_frames: int | None = Field(None, description="Frames that go through the networks at a time.")
    tile_px: int | None = Field(
        None, description="Side of the tiles that frames are cut into, in pixels of the source. Null: whole frames."
    )


class JobSource(BaseModel):
    """The source file; what is inside is null until it has been probed."""

    name: str
    url: str | None = Field(None, description="Where it is fetched from, without the query; null for an upload.")
    size_bytes: int | None = Field(description="Null until it has been fetched; an upload is there at once.")
    sha256: str | None = Field(description="Null until it has been fetched.")
    container: str | None = None
    width: int | None = Field(None, description="Stored width in pixels, before any display rotation.")
    height: int | None = None
    frames: int | None = None
    duration_seconds: float | None = None
    frame_rate: str | None = Field(None, description='Average rate as a fraction, e.g. "30000/1001".')
    pixel_format: str | None = None
    streams: list[StreamInfo] | None = None


class JobResult(BaseModel):
    url: str
    size_bytes: int
    sha256: str
    container: str
    width: int
    height: int
    frames: int
    expires_at: AwareDatetime | None = Field(description="When it may be removed: 410 from then on. Null: never.")


class JobProblem(BaseModel):
    code: FailureCode
    message: str


class JobLinks(BaseModel):
    self: str
    cancel: str
    retry: str
    result: str
    report: str
    webhook: str | None = Field(None, description="What became of the webhook; null where there is none.")
    events: str = Field(description="Every change of the job, as server-sent events.")
    stream: str | None = Field(
        None, description="HLS of what is finished so far; null for a codec that no browser plays, and once removed."
    )
    preview: str | None = Field(
        None, description="POST: two seconds of it before everything else; GET: the file. Null once the job has ended."
    )
    thumbnail: str | None = Field(None, description="One frame as JPEG, of source or result. Null once removed.")
    source: str | None = Field(None, description="The file that was sent. Null until it is here, and once removed.")


class Job(BaseModel):
    id: str
    status: JobStatus
    progress: JobProgress
    queue_position: int | None = Field(description="1 for the next job to start; null once it has started.")
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    options: JobOptions
    source: JobSource
    result: JobResult | None = Field(description="Of a succeeded job; of a canceled one if it is to keep it.")
    partial_result: PartialResult | None = Field(
        None,
        description="Of a job canceled with `keep_partial`: being_made, kept (it is the result), nothing_finished (the "
        "first segment was not), or failed (the worker's log says why). Null: not asked for.",
    )
    error: JobProblem | None
    links: JobLinks
    result_is_reused: bool = Field(
        False, description="In the answer to a submission with `reuse_result`: this is an earlier job."
    )


class JobPage(BaseModel):
    jobs: list[Job] = Field(description="Newest first; those that were asked for by `id`, in that order.")
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")


class Model(BaseModel):
    preset: str
    description: str
    loaded: bool = Field(description="At least one live worker has it in memory.")
    scale: int | None = Field(None, description="Known once loaded.")
    device: str | None = None


class ModelList(BaseModel):
    models: list[Model]


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str = Field(description="ready or not_ready")
    missing: list[str] = Field(description="What keeps the service from accepting jobs.")
    warnings: list[str] = Field(description="What deserves attention but stops nothing.")
    workers: int | None = Field(description="Live worker processes; null when Redis cannot be asked.")


def public_job(
    record: JobRecord, progress: Progress, queue_position: int | None, result_expires_at: datetime | None = None
) -> Job:
    """The job as clients see it. `progress`: the live figures; a finished job needs none."""
    path = f"/v1/jobs/{record.id}"
    has_media = record.media_removed_at is None and not record.awaits_source
    if record.status == JobStatus.SUCCEEDED and record.result:
        # Also after Redis has forgotten the figures, a finished job is whole.
        frames = record.result.frames
        progress = progress.model_copy(update={"frames_done": frames, "frames_total": frames})
    eta_seconds = progress.eta_seconds if record.status == JobStatus.RUNNING else None
    return Job(
        id=record.id,
        status=record.status,
        progress=JobProgress(
            **progress.model_dump(exclude={"fps"}),
            fraction=round(min(progress.fraction, 1.0), 4),
            fps=None if progress.fps is None else round(progress.fps, 3),
            eta_seconds=None if eta_seconds is None else round(eta_seconds, 1),
        ),
        queue_position=queue_position,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        options=record.options,
        source=JobSource(
            name=record.source_name,
            url=shown_url(record.source_url) if record.source_url else None,
            size_bytes=None if record.awaits_source else record.source_size_bytes,
            sha256=None if record.awaits_source else record.source_sha256,
            **(record.source.model_dump() if record.source else {}),
        ),
        result=JobResult(
            url=f"{path}/result", expires_at=result_expires_at, **record.result.model_dump(exclude={"expires_at"})
        )
        if record.result
        else None,
        partial_result=record.partial_result,
        error=JobProblem(**record.error.model_dump()) if record.error else None,
        links=JobLinks(
            self=path,
            cancel=f"{path}/cancel",
            retry=f"{path}/retry",
            result=f"{path}/result",
            report=f"{path}/report",
            webhook=f"{path}/webhook" if record.webhook_url else None,
            events=f"{path}/events",
            stream=f"{path}/stream.m3u8" if has_media and _is_played_by_browsers(record.options) else None,
            preview=f"{path}/preview" if has_media and not record.status.is_final else None,
            thumbnail=f"{path}/thumbnail" if has_media else None,
            source=f"{path}/source" if has_media else None,
        ),
    )


def _is_played_by_browsers(options: JobOptions) -> bool:
    return (
        options.codec not in (VideoCodec.FFV1, VideoCodec.PRORES, VideoCodec.PNG)
        and options.container is not Container.ZIP
        and options.quality != "lossless"
    )
