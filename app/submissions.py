"""Submitting a job: a form with the file, or JSON that names an upload or a URL."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, TypeVar

from anyio import to_thread
from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from app.acceptance import (
    Accepted,
    Submission,
    accept,
    refuse_source_url,
    refuse_unknown_preset,
    refuse_webhook_url,
    refuse_when_full,
    source_to_be_fetched,
)
from app.bodies import body_schema
from app.dependencies import OwnerDep, Services, ServicesDep, count_rejections, require_api_key
from app.errors import (
    EmptyFileError,
    IdempotencyConflictError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    KeyStorageFullError,
    MalformedBodyError,
    OutOfDiskError,
    QueueUnavailableError,
    SourceUrlsOffError,
    TooManyJobsError,
    TooManyKeyJobsError,
    TooManyKeyUploadsError,
    TooManyUploadsError,
    UnauthorizedError,
    UnknownPresetError,
    UnsupportedMediaTypeError,
    UploadBusyError,
    UploadNotFoundError,
    UploadStalledError,
    UploadTooLargeError,
    UrlRefusedError,
    WebhooksOffError,
    responses,
)
from app.forms import FILE_FIELD, FORM_OVERHEAD_BYTES, read_form
from app.guarded_http import name_in_url
from app.jobs import present_job
from app.limits import upload_slot
from app.schemas import REUSE_RESULT_DESCRIPTION, WEBHOOK_URL_DESCRIPTION, Job, SubmitUpload, SubmitUrl, public_job
from app.uploads import Incoming, body_chunks, content_length, upload_for_job
from worker.contract.job import JobOptions, JobRecord, Progress
from worker.contract.redis_faults import is_unavailable

_MAX_JSON_BYTES = 64 * 1024
_Model = TypeVar("_Model", bound=BaseModel)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(count_rejections), Depends(require_api_key)])


def _form_schema() -> dict[str, object]:
    """The options as text fields: one that is not wanted is left out, as a form knows no null."""
    properties: dict[str, object] = {FILE_FIELD: {"type": "string", "format": "binary", "minLength": 1}}
    for name, option in body_schema(JobOptions)["properties"].items():
        kinds = [kind for kind in option.pop("anyOf", []) if kind != {"type": "null"}]
        if kinds:
            option.pop("default")
        properties[name] = option | (kinds[0] if kinds else {})
    properties["reuse_result"] = {"type": "boolean", "default": False, "description": REUSE_RESULT_DESCRIPTION}
    properties["webhook_url"] = {"type": "string", "format": "uri", "description": WEBHOOK_URL_DESCRIPTION}
    return {"type": "object", "properties": properties, "required": [FILE_FIELD]}


@router.post(
    "",
    status_code=202,
    summary="Submit a job: a form with the file, or JSON that names an upload or a URL",
    responses=responses(
        MalformedBodyError,
        UnauthorizedError,
        UploadNotFoundError,
        UploadStalledError,
        IdempotencyConflictError,
        UploadBusyError,
        UploadTooLargeError,
        UnsupportedMediaTypeError,
        InvalidRequestError,
        UnknownPresetError,
        EmptyFileError,
        SourceUrlsOffError,
        UrlRefusedError,
        WebhooksOffError,
        IdempotencyKeyReusedError,
        TooManyJobsError,
        TooManyKeyJobsError,
        TooManyUploadsError,
        TooManyKeyUploadsError,
        KeyStorageFullError,
        QueueUnavailableError,
        OutOfDiskError,
    )
    | {200: {"model": Job, "description": "With `reuse_result`: an earlier job that has the result already."}},
    dependencies=[Depends(upload_slot)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _form_schema()},
                "application/json": {"schema": {"oneOf": [body_schema(SubmitUpload), body_schema(SubmitUrl)]}},
            },
        }
    },
)
async def create_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            max_length=255,
            description="Repeating a request with the same key within 24 hours gives the same job.",
        ),
    ] = None,
) -> Job:
    """The job is durable when this answers. Poll it at `Location`."""
    await run_in_threadpool(refuse_when_full, services, owner, idempotency_key, content_length(request) or 0)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    submit = {"multipart/form-data": _submit_form, "application/json": _submit_json}.get(media_type)
    if submit is None:
        raise UnsupportedMediaTypeError(
            "Send multipart/form-data with a file, or application/json with an upload_id or a source_url."
        )
    accepted = await submit(request, services, owner, idempotency_key)
    job = await run_in_threadpool(_present, services, accepted.record)
    if accepted.result_is_reused:
        response.status_code = 200
        job = job.model_copy(update={"result_is_reused": True})
    response.headers["Location"] = job.links.self
    return job


def _present(services: Services, record: JobRecord) -> Job:
    try:
        return present_job(services, record)
    except RedisError as error:
        if not is_unavailable(error):
            raise
        # It is accepted, so that is the answer; how far it has come can be asked later.
        return public_job(record, Progress(), None)


async def _submit_form(
    request: Request, services: Services, owner: str | None, idempotency_key: str | None
) -> Accepted:
    length = content_length(request)
    async with Incoming(services, None if length is None else max(0, length - FORM_OVERHEAD_BYTES)) as incoming:
        form = await read_form(
            request.headers["content-type"],
            body_chunks(request, services.settings),
            services.settings.max_upload_bytes,
            partial(_asked_in_form, services),
            incoming.write,
        )
        asked = _asked_in_form(services, form.fields)
        received = await incoming.finish()
        submission = Submission(
            options=asked.options,
            source_name=form.filename,
            source=partial(nullcontext, received),
            source_identity=received.sha256,
            idempotency_key=idempotency_key,
            owner=owner,
            request_id=correlation_id.get(),
            webhook_url=asked.webhook_url,
            reuse_result=asked.reuse_result,
        )
        return await to_thread.run_sync(accept, services, submission, limiter=services.upload_threads.accepting)


async def _submit_json(
    request: Request, services: Services, owner: str | None, idempotency_key: str | None
) -> Accepted:
    body = bytearray()
    async for chunk in body_chunks(request, services.settings):
        body += chunk
        if len(body) > _MAX_JSON_BYTES:
            raise UploadTooLargeError(_MAX_JSON_BYTES)
    submission_of = partial(Submission, idempotency_key=idempotency_key, owner=owner, request_id=correlation_id.get())
    if _names_url(bytes(body)):
        by_url = _validated(partial(SubmitUrl.model_validate_json, bytes(body)))
        _refuse(services, by_url.options, by_url.webhook_url)
        refuse_source_url(by_url.source_url, services.settings)
        submission = submission_of(
            options=by_url.options,
            source_name=by_url.filename or name_in_url(by_url.source_url),
            source=source_to_be_fetched,
            source_identity=by_url.source_url,
            source_url=by_url.source_url,
            webhook_url=by_url.webhook_url,
        )
    else:
        asked = _validated(partial(SubmitUpload.model_validate_json, bytes(body)))
        _refuse(services, asked.options, asked.webhook_url)
        submission = submission_of(
            options=asked.options,
            source_name=asked.filename,
            source=partial(upload_for_job, services.storage, owner, asked.upload_id),
            source_identity=asked.upload_id,
            webhook_url=asked.webhook_url,
            reuse_result=asked.reuse_result,
        )
    return await to_thread.run_sync(accept, services, submission, limiter=services.upload_threads.accepting)


class _AskedInForm(JobOptions):
    """The form's fields beside the file."""

    webhook_url: str | None = None
    reuse_result: bool = False

    @property
    def options(self) -> JobOptions:
        return JobOptions.model_validate(self.model_dump(exclude={"webhook_url", "reuse_result"}))


def _asked_in_form(services: Services, fields: dict[str, str]) -> _AskedInForm:
    # A browser sends a field that was left empty as an empty string.
    given = {name: text for name, text in fields.items() if text}
    asked = _validated(partial(_AskedInForm.model_validate, given))
    _refuse(services, asked.options, asked.webhook_url)
    return asked


def _refuse(services: Services, options: JobOptions, webhook_url: str | None) -> None:
    refuse_unknown_preset(options, services.settings)
    refuse_webhook_url(webhook_url, services.settings)


def _names_url(body: bytes) -> bool:
    try:
        asked = json.loads(body)
    except ValueError:
        return False  # which the model says in its own words
    return isinstance(asked, dict) and "source_url" in asked


def _validated(validate: Callable[[], _Model]) -> _Model:
    try:
        return validate()
    except ValidationError as error:
        raise InvalidRequestError.from_validation(error.errors()) from error
