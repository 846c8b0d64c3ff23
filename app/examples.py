"""What the API's description shows: one video on its way through every call, and every problem in its own words.

All of it is made by the models and the errors themselves, so that an example cannot differ from what is really sent.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from app.errors import (
    PROBLEM_MEDIA_TYPE,
    ChecksumMismatchError,
    EmptyFileError,
    IdempotencyConflictError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    JobCanceledError,
    JobEndedError,
    JobFailedError,
    JobNotFoundError,
    JobSucceededError,
    KeyStorageFullError,
    MalformedBodyError,
    NoPictureError,
    NoPreviewError,
    NotFinishedError,
    NothingFinishedError,
    NotStreamableError,
    OutOfDiskError,
    PreviewFailedError,
    PreviewUnderWayError,
    ProblemError,
    QueueUnavailableError,
    RangeNotSatisfiableError,
    ResultExpiredError,
    SourceUrlsOffError,
    TooManyConnectionsError,
    TooManyJobsError,
    TooManyKeyJobsError,
    TooManyKeyListenersError,
    TooManyKeyUploadsError,
    TooManyListenersError,
    TooManyPreviewsError,
    TooManyUploadsError,
    TusVersionError,
    UnauthorizedError,
    UnknownPresetError,
    UnsupportedChecksumError,
    UnsupportedMediaTypeError,
    UploadBusyError,
    UploadNotFoundError,
    UploadOffsetError,
    UploadOverrunError,
    UploadStalledError,
    UploadTakenOverError,
    UploadTooLargeError,
    UrlRefusedError,
    WebhookNotFoundError,
    WebhooksOffError,
    render,
)
from app.live import PreviewPlace
from app.schemas import (
    Estimate,
    Health,
    Job,
    JobPage,
    Model,
    ModelList,
    Readiness,
    Session,
    Upload,
    public_job,
)
from app.webhook_events import Attempt, EventState, EventType
from app.webhooks import Webhook, WebhookDelivery
from worker.contract.failure import FailureCode
from worker.contract.job import (
    DEFAULT_PRESET,
    Container,
    JobError,
    JobOptions,
    JobRecord,
    JobStatus,
    Progress,
    ResultInfo,
    SourceInfo,
    StreamInfo,
)
from worker.contract.presets import PRESETS
from worker.contract.report import (
    FileFacts,
    FrameReport,
    PropertyReport,
    QualityReport,
    RenderingReport,
    Report,
    StreamFacts,
    StreamReport,
    TimestampReport,
)

JOB_ID = "mwt3k2v0q8c4z1x7b5n9"
UPLOAD_ID = "holiday-2026"
_REQUEST_ID = "3f1c2ab09d7e4c558a61f0e2b9d8c7a4"
_CREATED_AT = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
_SOURCE_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_RESULT_SHA256 = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"


def add_examples(document: dict[str, Any]) -> None:
    """To every parameter, body and answer of an OpenAPI document that is neither bytes nor empty."""
    problems, bodies, answers = _problems(), _bodies(), _answers()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            call = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", []):
                if parameter["name"] in _PARAMETERS:
                    parameter["example"] = _PARAMETERS[parameter["name"]]
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                if (body := bodies.get((call, media_type))) is not None:
                    content["example"] = body
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {}).items():
                    if media_type == PROBLEM_MEDIA_TYPE:
                        for code, example in content["examples"].items():
                            example["value"] = problems.get(code, example["value"])
                    elif (shown := answers.get((call, int(status)))) is not None:
                        content["example"] = shown


_PARAMETERS: dict[str, object] = {
    "job_id": JOB_ID,
    "upload_id": UPLOAD_ID,
    "Idempotency-Key": "holiday-2026-first-try",
    "Upload-Length": 14680064,
    "Upload-Offset": 8388608,
    "Upload-Metadata": "filename aG9saWRheS5tcDQ=",
    "Upload-Checksum": "sha256 n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
    "Tus-Resumable": "1.0.0",
    "status": "running",
    "limit": 20,
    "cursor": JOB_ID,
    "id": [JOB_ID],
    "keep_partial": True,
    "last-event-id": "2-6b1f9c0d2e4a",
    "if-none-match": f'"{_RESULT_SHA256}"',
    "name": "00000.m4s",
    "of": "result",
    "at_seconds": 1.5,
}


def _bodies() -> dict[tuple[str, str], object]:
    """By call and media type."""
    return {
        ("PUT /v1/session", "application/json"): {"key": "vsr_your-own-key"},
        ("POST /v1/jobs", "application/json"): {
            "upload_id": UPLOAD_ID,
            "filename": "holiday.mp4",
            "preset": DEFAULT_PRESET,
            "quality": "high",
        },
        ("POST /v1/jobs", "multipart/form-data"): {"file": "(the video)", "preset": DEFAULT_PRESET},
        ("POST /v1/jobs/{job_id}/cancel", "application/json"): {"keep_partial": True},
        ("POST /v1/jobs/{job_id}/preview", "application/json"): {"at_seconds": 12.5},
        ("POST /v1/estimate", "application/json"): {
            "width": 1280,
            "height": 720,
            "duration_seconds": 100,
            "frame_rate": 24,
            "preset": DEFAULT_PRESET,
        },
    }


def _answers() -> dict[tuple[str, int], object]:
    """By call and status."""
    queued, running, succeeded, canceled = (
        _json(_job(status)) for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.CANCELED)
    )
    webhook = _json(_webhook())
    page = JobPage(jobs=[_job(JobStatus.RUNNING)], next_cursor=None)
    loaded = [
        Model(preset=preset, description=description, loaded=True, scale=2, device="cuda:0")
        for preset, description in PRESETS.items()
        if preset == DEFAULT_PRESET
    ]
    return {
        ("GET /v1/session", 200): _json(Session(needs_key=True, authenticated=False)),
        ("PUT /v1/uploads/{upload_id}", 201): _json(Upload(id=UPLOAD_ID, size_bytes=14_680_064, sha256=_SOURCE_SHA256)),
        ("POST /v1/jobs", 202): queued,
        ("POST /v1/jobs", 200): succeeded | {"result_is_reused": True},
        ("GET /v1/jobs", 200): _json(page),
        ("GET /v1/jobs/{job_id}", 200): running,
        ("POST /v1/jobs/{job_id}/cancel", 200): canceled,
        ("POST /v1/jobs/{job_id}/retry", 200): queued,
        ("GET /v1/jobs/{job_id}/events", 200): "".join(_events()),
        ("GET /v1/jobs/{job_id}/stream.m3u8", 200): _PLAYLIST,
        ("POST /v1/jobs/{job_id}/preview", 202): _json(PreviewPlace(url=f"/v1/jobs/{JOB_ID}/preview", at_seconds=12.5)),
        ("GET /v1/jobs/{job_id}/report", 200): _json(_report()),
        ("GET /v1/jobs/{job_id}/webhook", 200): webhook,
        ("POST /v1/jobs/{job_id}/webhook/replay", 202): webhook,
        ("POST /v1/estimate", 200): _json(
            Estimate(
                frames=2400,
                seconds=340.4,
                wait_seconds=0,
                frames_per_second=7.05,
                result_bytes=61_000_000,
                basis="measured",
            )
        ),
        ("GET /v1/models", 200): _json(ModelList(models=loaded)),
        ("GET /healthz", 200): _json(Health(status="alive")),
        ("GET /readyz", 200): _json(Readiness(status="ready", missing=[], warnings=[], workers=2)),
        ("GET /readyz", 503): _json(
            Readiness(status="not_ready", missing=["redis does not answer"], warnings=[], workers=None)
        ),
        (
            "GET /metrics",
            200,
        ): '# HELP vsr_jobs Jobs by status.\n# TYPE vsr_jobs gauge\nvsr_jobs{status="running"} 1.0\n',
    }


def _problems() -> dict[str, object]:
    """By code."""
    found: list[ProblemError] = [
        ChecksumMismatchError("The bytes are not those that Upload-Checksum tells of; send them again."),
        EmptyFileError("The file has no bytes."),
        IdempotencyConflictError("Try again when the first request has been answered."),
        IdempotencyKeyReusedError("Another request was made with this Idempotency-Key; choose a new one."),
        InvalidRequestError.from_validation([{"loc": ("body", "crf"), "msg": "Input should be less than 64"}]),
        JobCanceledError("The job was canceled before it was done.", job_status=JobStatus.CANCELED),
        JobFailedError(
            "This is no video.",
            job_status=JobStatus.FAILED,
            error=JobError(code=FailureCode.NOT_A_VIDEO, message="This is no video.").model_dump(),
        ),
        JobEndedError("The job is succeeded.", job_status=JobStatus.SUCCEEDED),
        JobNotFoundError(JOB_ID),
        JobSucceededError("There is nothing to try again.", job_status=JobStatus.SUCCEEDED),
        KeyStorageFullError(100 * 1024**3),
        MalformedBodyError("The form ends before its closing boundary."),
        NoPictureError("The first frames are not finished yet."),
        NoPreviewError("Ask for one with POST.", job_status=JobStatus.RUNNING),
        NotFinishedError("The job is running; look at its progress.", job_status=JobStatus.RUNNING),
        NothingFinishedError("The first segment is not finished yet.", job_status=JobStatus.RUNNING),
        NotStreamableError("No browser plays prores: submit with codec h264 to watch it."),
        OutOfDiskError("The service's disk is nearly full. Try again later, or tell its operator."),
        PreviewFailedError(
            "The frames there cannot be decoded.",
            error=JobError(code=FailureCode.CORRUPT_FRAME, message="The frames there cannot be decoded.").model_dump(),
        ),
        PreviewUnderWayError("It is there in a moment."),
        QueueUnavailableError(),
        RangeNotSatisfiableError("The file has 61000000 bytes."),
        ResultExpiredError("The result of this job has been removed; submit the video again."),
        SourceUrlsOffError(),
        TooManyConnectionsError(1024),
        TooManyJobsError(1000),
        TooManyKeyJobsError(100),
        TooManyKeyListenersError(100),
        TooManyKeyUploadsError(32),
        TooManyListenersError(512),
        TooManyPreviewsError(1),
        TooManyUploadsError(256),
        TusVersionError("Send Tus-Resumable: 1.0.0, the version that is spoken here."),
        UnauthorizedError("Send the key as X-API-Key or as a bearer token."),
        UnknownPresetError(f"'best' is not one of: {', '.join(PRESETS)}.", known_presets=list(PRESETS)),
        UnsupportedChecksumError("The checksum is not base64."),
        UnsupportedMediaTypeError("Send multipart/form-data with the file, or application/json."),
        UploadBusyError("Another request is writing to this upload."),
        UploadNotFoundError(UPLOAD_ID),
        UploadOffsetError(8_388_608),
        UploadOverrunError(14_680_064),
        UploadStalledError("Nothing arrived for 60 seconds."),
        UploadTakenOverError("Another request has taken this upload over."),
        UploadTooLargeError(10 * 1024**3),
        UrlRefusedError("source_url: only https URLs are accepted."),
        WebhookNotFoundError(JOB_ID),
        WebhooksOffError(),
    ]
    return {one.code: json.loads(bytes(render(one).body)) | {"request_id": _REQUEST_ID} for one in found}


# --- the one video ----------------------------------------------------------------------------------------------------


def _job(status: JobStatus) -> Job:
    record = JobRecord(
        id=JOB_ID,
        status=status,
        created_at=_CREATED_AT,
        options=JobOptions(quality="high"),
        source_name="holiday.mp4",
        source_size_bytes=14_680_064,
        source_sha256=_SOURCE_SHA256,
    )
    if status is JobStatus.QUEUED:
        return public_job(record, Progress(), queue_position=3)
    frames_done = 2400 if status is JobStatus.SUCCEEDED else 1224
    progress = Progress(
        frames_done=frames_done,
        frames_total=2400,
        segments_done=frames_done // 96,
        segments_total=25,
        fps=7.05,
        batch_frames=8,
    )
    started = record.model_copy(
        update={
            "started_at": _CREATED_AT + timedelta(seconds=5),
            "finished_at": _CREATED_AT + timedelta(seconds=345) if status.is_final else None,
            "source": SourceInfo(
                container="mov,mp4,m4a,3gp,3g2,mj2",
                width=1280,
                height=720,
                frames=2400,
                duration_seconds=100.0,
                frame_rate="24/1",
                pixel_format="yuv420p",
                streams=[
                    StreamInfo(index=0, type="video", codec="h264"),
                    StreamInfo(index=1, type="audio", codec="aac", language="eng"),
                ],
            ),
            "result": ResultInfo(
                container=Container.MP4,
                width=2560,
                height=1440,
                frames=2400,
                size_bytes=61_000_000,
                sha256=_RESULT_SHA256,
            )
            if status is JobStatus.SUCCEEDED
            else None,
        }
    )
    return public_job(started, progress, queue_position=None, result_expires_at=_CREATED_AT + timedelta(days=7))


def _events() -> Iterator[str]:
    """With less in them than really is, so that they can be seen at a glance."""
    for name, event_id, status in (
        ("status", "2-6b1f9c0d2e4a", JobStatus.RUNNING),
        ("progress", "2-c07d55e1a930", JobStatus.RUNNING),
        ("status", "3", JobStatus.SUCCEEDED),
    ):
        content = _job(status).model_dump_json(include={"id": True, "status": True, "progress": {"fraction", "fps"}})
        yield f"event: {name}\ndata: {content}\nid: {event_id}\n\n"


_PLAYLIST = """#EXTM3U
#EXT-X-VERSION:7
#EXT-X-TARGETDURATION:4
#EXT-X-PLAYLIST-TYPE:EVENT
#EXT-X-MAP:URI="stream/header.mp4"
#EXTINF:4.000,
stream/00000.m4s
"""


def _webhook() -> Webhook:
    ended_at = _CREATED_AT + timedelta(seconds=346)
    delivery = WebhookDelivery(
        id="msg_6b1f9c0d2e4a",
        type=EventType.SUCCEEDED,
        created_at=ended_at,
        state=EventState.DELIVERED,
        attempts=[Attempt(at=ended_at, status_code=204, seconds=0.12)],
        next_attempt_at=None,
    )
    return Webhook(url="https://example.com/hooks/video", pending=False, events=[delivery])


def _report() -> Report:
    source = FileFacts(
        container="mp4",
        size_bytes=14_680_064,
        sha256=_SOURCE_SHA256,
        duration_seconds=100.0,
        frames=2400,
        frame_rate="24/1",
        time_base="1/12288",
        codec="h264",
        width=1280,
        height=720,
        pixel_format="yuv420p",
        bit_depth=8,
        transparency=False,
        sample_aspect_ratio="1/1",
        clean_aperture=None,
        rotation=None,
        display_matrix=None,
        field_order="progressive",
        colour_range="tv",
        colour_matrix="bt709",
        colour_primaries="bt709",
        colour_transfer="bt709",
        chroma_location="left",
        mastering_display=None,
        content_light=None,
        chapters=0,
    )
    result = source.model_copy(
        update={"size_bytes": 61_000_000, "sha256": _RESULT_SHA256, "width": 2560, "height": 1440}
    )
    sound = StreamFacts(
        index=1, codec="aac", language="eng", packets=4689, sha256=_SOURCE_SHA256, start_seconds=0.0, end_seconds=99.98
    )
    return Report(
        source=source,
        result=result,
        properties=(PropertyReport(name="width", source="1280", result="2560", outcome="upscaled"),),
        streams=(StreamReport(**sound.model_dump(), type="audio", outcome="copied", result=sound),),
        frames=FrameReport(source=2400, result=2400),
        timestamps=TimestampReport(exact=True, largest_rounding_seconds=0.0, shift_seconds=0.0, words="exactly kept"),
        sound_offsets=(),
        scene_cuts=(),
        losses=(),
        notes=(),
        quality=QualityReport(
            frames_compared=200,
            psnr_db=41.2,
            worst_psnr_db=38.7,
            worst_frame=None,
            encoding_psnr_db=45.1,
            tile_borders=None,
            segment_borders=None,
        ),
        rendering=RenderingReport(batch_frames=8, tile_px=None, backoffs=0),
        stage_seconds={"plan": 1.2, "decode": 9.8, "infer": 330.1, "wait": 2.3, "encode": 41.0, "assemble": 3.1},
        device_busy=0.993,
        frames_per_second=7.13,
        network="aligned 3d5c1a40 cuda",
        tag="6b1f9c0d2e4a",
    )


def _json(shown: BaseModel) -> dict[str, Any]:
    return shown.model_dump(mode="json")
