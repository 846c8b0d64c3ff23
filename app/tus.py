"""Resumable uploads over HTTP: tus 1.0 (https://tus.io/protocols/resumable-upload), for `app.resumable`."""

import base64
import os
from email.utils import format_datetime
from typing import Annotated, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi import Path as PathParameter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import OwnerDep, ServicesDep, count_rejections, require_api_key
from app.errors import (
    ChecksumMismatchError,
    EmptyFileError,
    InvalidRequestError,
    KeyStorageFullError,
    OutOfDiskError,
    QueueUnavailableError,
    TooManyKeyUploadsError,
    TooManyUploadsError,
    TusVersionError,
    UnauthorizedError,
    UnsupportedChecksumError,
    UnsupportedMediaTypeError,
    UploadBusyError,
    UploadNotFoundError,
    UploadOffsetError,
    UploadOverrunError,
    UploadStalledError,
    UploadTakenOverError,
    UploadTooLargeError,
    allowed_methods,
    responses,
)
from app.limits import upload_slot
from app.resumable import Checksum, Description, HeldUpload, Turns, UploadFiles, held_upload
from app.schemas import UPLOAD_ID_PATTERN
from app.uploads import content_length, refuse_upload

UPLOADS_PATH = "/v1/uploads"
TUS_VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,termination,expiration,checksum"
CHECKSUM_ALGORITHMS = ("sha1", "sha256")
CHUNK_MEDIA_TYPE = "application/offset+octet-stream"

# Comma separated keys, each with a base64 value or none.
_METADATA_PATTERN = r"^$|^[!-+\--~]+( [A-Za-z0-9+/=]*)?(, ?[!-+\--~]+( [A-Za-z0-9+/=]*)?)*$"


async def require_tus(
    tus_resumable: Annotated[
        str | None, Header(alias="Tus-Resumable", description=f"Of every request: {TUS_VERSION}.")
    ] = None,
) -> None:
    if tus_resumable != TUS_VERSION:
        raise TusVersionError(
            f"Send Tus-Resumable: {TUS_VERSION}, the version that is spoken here.", {"Tus-Version": TUS_VERSION}
        )


async def upload_turns(request: Request) -> Turns:
    return cast(Turns, request.state.upload_turns)


# The key comes first: a stranger learns nothing. What is spoken here is asked before a version is chosen.
options_router = APIRouter(tags=["uploads"], dependencies=[Depends(require_api_key)])
router = APIRouter(
    tags=["uploads"], dependencies=[Depends(count_rejections), Depends(require_api_key), Depends(require_tus)]
)

TurnsDep = Annotated[Turns, Depends(upload_turns)]
UploadIdParameter = Annotated[str, PathParameter(pattern=UPLOAD_ID_PATTERN, description="The end of `Location`.")]
ChecksumHeader = Annotated[
    str | None,
    Header(
        alias="Upload-Checksum",
        description=f"Of this request's body: {' or '.join(CHECKSUM_ALGORITHMS)}, a space, the digest in base64.",
        # Told, and not demanded: tus has a status of its own for what cannot be read.
        json_schema_extra={"pattern": r"^(sha1 [A-Za-z0-9+/]{27}=|sha256 [A-Za-z0-9+/]{43}=)$"},
    ),
]

_CHUNK_BODY = {"content": {CHUNK_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_PROBLEMS = (UnauthorizedError, TusVersionError, InvalidRequestError)
_CHUNK_PROBLEMS = (
    UploadStalledError,
    UploadTakenOverError,
    UploadTooLargeError,
    UploadOverrunError,
    UnsupportedMediaTypeError,
    UnsupportedChecksumError,
    ChecksumMismatchError,
    TooManyUploadsError,
    TooManyKeyUploadsError,
    OutOfDiskError,
)
_OFFSET_HEADERS = ("Upload-Offset", "Upload-Expires")


def _bodiless(*headers: str) -> dict[str, object]:
    """An answer that says all in its headers, for the OpenAPI document."""
    return {"description": "No body", "headers": {name: {"schema": {"type": "string"}} for name in headers}}


@options_router.options(
    UPLOADS_PATH,
    status_code=204,
    summary="Ask what of tus is spoken here",
    responses=responses(UnauthorizedError)
    | {204: _bodiless("Allow", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm")},
)
async def tell_capabilities(request: Request, services: ServicesDep) -> Response:
    headers = {
        "Allow": ", ".join(allowed_methods(request)),
        "Tus-Resumable": TUS_VERSION,
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(services.settings.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUM_ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    UPLOADS_PATH,
    status_code=201,
    summary="Begin a resumable upload (tus 1.0)",
    dependencies=[Depends(upload_slot)],
    responses=responses(*_PROBLEMS, EmptyFileError, *_CHUNK_PROBLEMS, KeyStorageFullError, QueueUnavailableError)
    | {201: _bodiless("Location", *_OFFSET_HEADERS)},
    openapi_extra={"requestBody": _CHUNK_BODY},
)
async def begin_upload(
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    turns: TurnsDep,
    upload_length: Annotated[int, Header(alias="Upload-Length", ge=0, description="Bytes of the whole file.")],
    upload_metadata: Annotated[
        str, Header(alias="Upload-Metadata", pattern=_METADATA_PATTERN, description="Kept, and told to who resumes.")
    ] = "",
    upload_checksum: ChecksumHeader = None,
) -> Response:
    """The id at the end of `Location` is the `upload_id` for `POST /v1/jobs` when all has arrived.

    A body is taken as the first bytes of the file.
    """
    checksum = _checksum(upload_checksum)
    has_body = content_length(request) or "transfer-encoding" in request.headers
    if has_body:
        _require_chunk(request)
    if upload_length == 0:
        raise EmptyFileError("The file has no bytes.")
    refuse_upload(services, upload_length)
    _refuse_overrun(request, 0, upload_length)
    upload_id = os.urandom(16).hex()
    files = UploadFiles(services.storage, owner, upload_id)
    description = Description(length_bytes=upload_length, metadata=upload_metadata)
    await to_thread.run_sync(files.begin, services, description, limiter=services.upload_threads.accepting)
    async with held_upload(services, turns, files) as upload:
        if has_body:
            await upload.append(request, checksum)
        # Relative to this request's address, so that it holds behind a proxy with another host or a prefix.
        headers = {"Location": f"uploads/{upload_id}", **_offset_headers(upload)}
    return Response(status_code=201, headers=headers)


@router.head(
    f"{UPLOADS_PATH}/{{upload_id}}",
    summary="Ask how much of an upload has arrived (tus 1.0)",
    responses=responses(*_PROBLEMS, UploadNotFoundError, UploadTakenOverError, UploadBusyError)
    | {200: _bodiless("Upload-Length", "Upload-Metadata", *_OFFSET_HEADERS)},
)
async def tell_offset(
    upload_id: UploadIdParameter, services: ServicesDep, owner: OwnerDep, turns: TurnsDep
) -> Response:
    """A request that still sends to this upload is ended: who asks wants to resume."""
    async with held_upload(services, turns, UploadFiles(services.storage, owner, upload_id)) as upload:
        told = upload.description
        headers = {"Upload-Length": str(told.length_bytes), "Cache-Control": "no-store", **_offset_headers(upload)}
        if told.metadata:
            headers["Upload-Metadata"] = told.metadata
    return Response(status_code=200, headers=headers)


@router.patch(
    f"{UPLOADS_PATH}/{{upload_id}}",
    status_code=204,
    summary="Send more bytes of an upload (tus 1.0)",
    dependencies=[Depends(upload_slot)],
    responses=responses(*_PROBLEMS, UploadNotFoundError, UploadOffsetError, UploadBusyError, *_CHUNK_PROBLEMS)
    | {204: _bodiless(*_OFFSET_HEADERS)},
    openapi_extra={"requestBody": {"required": True, **_CHUNK_BODY}},
)
async def append_to_upload(
    upload_id: UploadIdParameter,
    request: Request,
    services: ServicesDep,
    owner: OwnerDep,
    turns: TurnsDep,
    upload_offset: Annotated[int, Header(alias="Upload-Offset", ge=0, description="As HEAD tells it.")],
    upload_checksum: ChecksumHeader = None,
) -> Response:
    """What arrives is kept, however the request ends; with `Upload-Checksum` it is all of the body or nothing.

    A request that still sends to the same upload is ended.
    """
    checksum = _checksum(upload_checksum)
    _require_chunk(request)
    async with held_upload(services, turns, UploadFiles(services.storage, owner, upload_id)) as upload:
        if upload_offset != upload.offset_bytes:
            raise UploadOffsetError(upload.offset_bytes)
        _refuse_overrun(request, upload_offset, upload.description.length_bytes)
        await upload.append(request, checksum)
    return Response(status_code=204, headers=_offset_headers(upload))


@router.delete(
    f"{UPLOADS_PATH}/{{upload_id}}",
    status_code=204,
    summary="Give up an upload (tus 1.0)",
    responses=responses(*_PROBLEMS, UploadNotFoundError, UploadTakenOverError, UploadBusyError),
)
async def delete_upload(upload_id: UploadIdParameter, services: ServicesDep, owner: OwnerDep, turns: TurnsDep) -> None:
    """Finished or not; an upload that is a job already is the job's."""
    files = UploadFiles(services.storage, owner, upload_id)
    async with held_upload(services, turns, files):
        await to_thread.run_sync(files.remove, limiter=services.upload_threads.syncing)


def _offset_headers(upload: HeldUpload) -> dict[str, str]:
    return {
        "Upload-Offset": str(upload.offset_bytes),
        "Upload-Expires": format_datetime(upload.expires_at, usegmt=True),
    }


def _require_chunk(request: Request) -> None:
    if request.headers.get("content-type") != CHUNK_MEDIA_TYPE:
        raise UnsupportedMediaTypeError(f"Send the bytes as {CHUNK_MEDIA_TYPE}.")


def _refuse_overrun(request: Request, offset_bytes: int, length_bytes: int) -> None:
    if offset_bytes + (content_length(request) or 0) > length_bytes:
        raise UploadOverrunError(length_bytes)


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, encoded = header.partition(" ")
    if algorithm not in CHECKSUM_ALGORITHMS:
        raise UnsupportedChecksumError(f"{algorithm!r} is not one of: {', '.join(CHECKSUM_ALGORITHMS)}.")
    try:
        return Checksum(algorithm, base64.b64decode(encoded, validate=True))
    except ValueError:
        raise UnsupportedChecksumError("The checksum is not base64.") from None


class TusMiddleware:
    """What tus asks of every request: its version on each answer, and a way for clients that know no PATCH."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http" and scope["path"].startswith(UPLOADS_PATH)
        headers = Headers(scope=scope) if is_http else Headers()
        if "tus-resumable" not in headers:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST" and (method := headers.get("x-http-method-override")):
            scope = {**scope, "method": method.upper()}

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("Tus-Resumable", TUS_VERSION)
            await send(message)

        await self._app(scope, receive, send_with_version)
