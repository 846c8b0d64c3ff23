"""A job while it is rendered: what is finished as a stream, single frames as pictures, and its source.

All of it is made by the workers (worker.contract.stream); here it is found and handed out.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.bodies import json_body, read_json
from app.dependencies import OwnerDep, Services, ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    JobEndedError,
    JobNotFoundError,
    NoPictureError,
    NoPreviewError,
    NotFinishedError,
    NothingFinishedError,
    NotStreamableError,
    PreviewFailedError,
    PreviewUnderWayError,
    QueueUnavailableError,
    RangeNotSatisfiableError,
    ResultExpiredError,
    TooManyPreviewsError,
    UnauthorizedError,
    UploadStalledError,
    responses,
)
from app.jobs import JobRecordDep
from app.limits import one_at_a_time
from app.results import file_answer
from worker.contract.job import JobRecord, JobStatus
from worker.contract.storage import JobFolder
from worker.contract.stream import LiveFacts, PreviewFacts, StreamSegment

_HEADER_NAME = "header.mp4"
_READ_AT_ONCE_BYTES = 256 * 1024
# By the user's name for it; browsers look into the file anyway.
_SOURCE_MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".zip": "application/zip",
}
_LAST_PREVIEW_KEY = "vsr:preview:{owner}"
_LAST_PREVIEW_SECONDS = 24 * 3600
_ANY_BYTES = "application/octet-stream"

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["live"], dependencies=[Depends(require_api_key)])

_problems = (UnauthorizedError, JobNotFoundError, ResultExpiredError, InvalidRequestError, QueueUnavailableError)


def _binary(status: int, description: str, media_type: str) -> dict[int | str, dict[str, object]]:
    schema = {"type": "string", "format": "binary"}
    return {status: {"description": description, "content": {media_type: {"schema": schema}}}}


class PreviewWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Where it begins, from the first frame of the video on; behind the last one: with that.",
    )


class PreviewPlace(BaseModel):
    url: str = Field(description="Where it will be.")
    at_seconds: float


async def preview_wish(request: Request, services: ServicesDep) -> PreviewWish:
    return await read_json(request, services.settings, PreviewWish, if_left_out=PreviewWish())


@router.get(
    "/stream.m3u8",
    summary="Watch what is finished so far",
    response_class=Response,
    responses=_binary(200, "An HLS playlist.", "application/vnd.apple.mpegurl")
    | responses(*_problems, NothingFinishedError, NotStreamableError),
)
def get_playlist(record: JobRecordDep, services: ServicesDep) -> Response:
    """HLS with fragmented mp4: the finished segments from the first on without a gap, the result's very frames.

    Without sound. It grows until the job has ended, and stays until the media are removed.
    """
    folder, facts = _streamed(services, record)
    finished = _finished_segments(folder, facts, record)
    if finished == 0:
        raise NothingFinishedError("The first segment is not finished yet. Try again soon.", job_status=record.status)
    durations = [end - begin for begin, end in zip(facts.borders_seconds, facts.borders_seconds[1:], strict=False)]
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(1, math.ceil(max(durations)))}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        # Players would begin at the newest segment otherwise.
        "#EXT-X-START:TIME-OFFSET=0,PRECISE=YES",
        f'#EXT-X-MAP:URI="stream/{_HEADER_NAME}"',
    ]
    for index, duration in enumerate(durations[:finished]):
        lines += [f"#EXTINF:{duration:.6f},", f"stream/{index:05d}.m4s"]
    if record.status.is_final:
        lines.append("#EXT-X-ENDLIST")
    return Response("\n".join([*lines, ""]), media_type="application/vnd.apple.mpegurl")


@router.get(
    "/stream/{name}",
    summary="A part of the stream",
    response_class=Response,
    responses=_binary(200, "What the playlist names.", "video/mp4")
    | responses(*_problems, NothingFinishedError, NotStreamableError),
)
def get_stream_part(
    record: JobRecordDep,
    services: ServicesDep,
    name: Annotated[str, PathParameter(pattern=r"^(header\.mp4|[0-9]{5,7}\.m4s)$")],
) -> Response:
    folder, facts = _streamed(services, record)
    if name == _HEADER_NAME:
        try:
            return Response(folder.stream_header.read_bytes(), media_type="video/mp4")
        except FileNotFoundError:
            raise NothingFinishedError("The first segment is not finished yet.") from None
    try:
        segment, file = _streamed_segment(folder, facts, record, int(name.partition(".")[0]))
    except FileNotFoundError:
        segment, file = None, folder.path
    if segment is None:
        raise NothingFinishedError("This segment is not finished yet, or is being made anew.")
    headers = {"Content-Length": str(segment.size_bytes)}
    return StreamingResponse(_pieces(segment, file), headers=headers, media_type="video/iso.segment")


@router.get(
    "/thumbnail",
    summary="One frame, of source or result",
    response_class=Response,
    responses=_binary(200, "The picture; `VSR-At-Seconds` says of when.", "image/jpeg")
    | responses(*_problems, NoPictureError),
)
def get_thumbnail(
    record: JobRecordDep,
    services: ServicesDep,
    of: Annotated[Literal["source", "result"], Query()] = "result",
    at_seconds: Annotated[float, Query(ge=0, allow_inf_nan=False, description="From the first frame on.")] = 0.0,
) -> Response:
    """The nearest that there is, at its full size and as players show it. Of each instant there are both or none."""
    folder = _folder_with_media(services, record)
    facts = _live_facts(folder)
    stills = _stills(folder, facts) if facts else {}
    preview = _preview_facts(folder)
    if preview and not preview.error and folder.still("preview", "result").exists():
        stills["preview"] = preview.at_seconds
    if not stills:
        raise NoPictureError("The first segment is not finished yet. Try again soon.", job_status=record.status)
    name = min(stills, key=lambda still: (abs(stills[still] - at_seconds), stills[still]))
    headers = {"VSR-At-Seconds": f"{stills[name]:.6f}", "Cache-Control": "private, no-cache"}
    path = folder.still(name, of)
    if not path.exists():
        raise NoPictureError("The picture is being made anew.", job_status=record.status)
    return FileResponse(path, headers=headers, media_type="image/jpeg")


@router.post(
    "/preview",
    status_code=202,
    summary="Have two seconds made first",
    responses=responses(
        *_problems,
        UploadStalledError,
        JobEndedError,
        NotFinishedError,
        PreviewUnderWayError,
        TooManyPreviewsError,
    ),
    openapi_extra=json_body(PreviewWish, required=False),
)
async def ask_for_preview(
    record: JobRecordDep,
    services: ServicesDep,
    owner: OwnerDep,
    wish: Annotated[PreviewWish, Depends(preview_wish)],
    response: Response,
) -> PreviewPlace:
    """Two seconds from there on are rendered before everything else; nothing of the job changes by it.

    An earlier preview is gone then. If Redis is lost meanwhile, ask again: it is no part of the job.
    """
    # Behind others of this key: not in the threads that everybody's requests need.
    limiter = services.upload_threads.accepting
    await to_thread.run_sync(_enqueue_preview, services, record, owner, wish.at_seconds, limiter=limiter)
    place = PreviewPlace(url=f"/v1/jobs/{record.id}/preview", at_seconds=wish.at_seconds)
    response.headers["Location"] = place.url
    return place


def _enqueue_preview(services: Services, record: JobRecord, owner: str | None, at_seconds: float) -> None:
    _folder_with_media(services, record)
    if record.status.is_final:
        raise JobEndedError(f"The job is {record.status}.", job_status=record.status)
    if record.awaits_source:
        raise NotFinishedError("The source is being fetched.", job_status=record.status)
    queue, last = services.queue, _LAST_PREVIEW_KEY.format(owner=owner or "")
    with one_at_a_time(services.redis, owner):
        if queue.is_preview_under_way(record.id):
            raise PreviewUnderWayError("One of this job is being made already.")
        other = cast(bytes | None, services.redis.get(last))
        if other and queue.is_preview_under_way(other.decode()):
            raise TooManyPreviewsError(1)
        services.redis.set(last, record.id, ex=_LAST_PREVIEW_SECONDS)
        queue.enqueue_preview(record.id, at_seconds)


@router.head("/preview", include_in_schema=False)
@router.get(
    "/preview",
    summary="The preview that was asked for last",
    response_class=FileResponse,
    responses=_binary(200, "H.264 in mp4; `VSR-At-Seconds` says where it begins.", "video/mp4")
    | {206: {"description": "The ranges that were asked for."}, 304: {"description": "Not modified."}}
    | responses(*_problems, NoPreviewError, PreviewUnderWayError, PreviewFailedError, RangeNotSatisfiableError),
)
def get_preview(
    record: JobRecordDep,
    request: Request,
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The frames that the result will have, encoded for browsers."""
    folder = _folder_with_media(services, record)
    if not record.status.is_final and services.queue.is_preview_under_way(record.id):
        raise PreviewUnderWayError("It is there in a moment.")
    preview = _preview_facts(folder)
    if preview is None:
        raise NoPreviewError("Ask for one with POST.", job_status=record.status)
    if preview.error:
        raise PreviewFailedError(preview.error.message, error=preview.error.model_dump())
    name = f"{Path(record.source_name).stem}_preview.mp4"
    answer = file_answer(request, if_none_match, folder.preview, preview.sha256, name, "video/mp4")
    answer.headers["VSR-At-Seconds"] = f"{preview.at_seconds:.6f}"
    return answer


@router.head("/source", include_in_schema=False)
@router.get(
    "/source",
    summary="The file that was sent",
    response_class=FileResponse,
    responses=_binary(200, "The file.", "*/*")
    | {206: {"description": "The ranges that were asked for."}, 304: {"description": "Not modified."}}
    | responses(*_problems, NotFinishedError, RangeNotSatisfiableError),
)
def get_source(
    record: JobRecordDep,
    request: Request,
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """To be shown beside the result, by browsers that can play it."""
    folder = _folder_with_media(services, record)
    if record.awaits_source:
        raise NotFinishedError("The source is being fetched.", job_status=record.status)
    if not folder.source.exists():
        raise ResultExpiredError("The source of this job has been removed.")
    media_type = _SOURCE_MEDIA_TYPES.get(Path(record.source_name).suffix.lower(), _ANY_BYTES)
    return file_answer(request, if_none_match, folder.source, record.source_sha256, record.source_name, media_type)


# --- what there is of a job -------------------------------------------------------------------------------------------


def _folder_with_media(services: Services, record: JobRecord) -> JobFolder:
    if record.media_removed_at:
        raise ResultExpiredError("The media of this job have been removed; submit the video again.")
    return services.storage.folder(record.id)


def _live_facts(folder: JobFolder) -> LiveFacts | None:
    """None: it has not been planned yet, or by another version of this program."""
    try:
        return LiveFacts.model_validate_json(folder.live_facts.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _streamed(services: Services, record: JobRecord) -> tuple[JobFolder, LiveFacts]:
    folder = _folder_with_media(services, record)
    facts = _live_facts(folder)
    if facts is None:
        detail = "The job has not begun yet." if not record.status.is_final else "Nothing of the job was finished."
        raise NothingFinishedError(detail, job_status=record.status)
    if facts.why_not_streamed:
        raise NotStreamableError(facts.why_not_streamed)
    return folder, facts


def _finished_segments(folder: JobFolder, facts: LiveFacts, record: JobRecord) -> int:
    """How many can be watched, from the first on."""
    if record.status is JobStatus.SUCCEEDED:
        return facts.segments if folder.stream_in_result.exists() else 0
    described, there = _names_in(folder.live), _names_in(folder.segments)
    for index in range(facts.segments):
        if folder.stream_segment(index).name not in described:
            return index
        if folder.segment(index, facts.segment_suffix).name not in there:
            return index
    return facts.segments


def _streamed_segment(
    folder: JobFolder, facts: LiveFacts, record: JobRecord, index: int
) -> tuple[StreamSegment | None, Path]:
    """How to show a segment, and the file that holds its packets. None: there is none, or it is another by now.

    Raises `FileNotFoundError`.
    """
    if record.status is JobStatus.SUCCEEDED and record.result:
        file = folder.result(record.result.container)
        with folder.stream_in_result.open("rb") as lines:
            described = next(islice(lines, index, None), None)
    else:
        file = folder.segment(index, facts.segment_suffix)
        described = folder.stream_segment(index).read_bytes()
    segment = StreamSegment.model_validate_json(described) if described else None
    return (segment if segment and segment.file_bytes == file.stat().st_size else None), file


def _stills(folder: JobFolder, facts: LiveFacts) -> dict[str, float]:
    """Of every picture its name and its time."""
    suffix = folder.still("", "result").name
    names = {name.removesuffix(suffix) for name in _names_in(folder.live) if name.endswith(suffix)}
    return {name: facts.borders_seconds[int(name)] for name in names if name.isdigit() and int(name) < facts.segments}


def _preview_facts(folder: JobFolder) -> PreviewFacts | None:
    try:
        return PreviewFacts.model_validate_json(folder.preview_facts.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _names_in(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


def _pieces(segment: StreamSegment, file: Path) -> Iterator[bytes]:
    yield segment.head
    with file.open("rb") as packets:
        for offset, length in segment.ranges:
            packets.seek(offset)
            while length > 0:
                piece = packets.read(min(length, _READ_AT_ONCE_BYTES))
                if not piece:
                    return
                length -= len(piece)
                yield piece
