"""Jobs over HTTP: list, look at, cancel, delete."""

from collections.abc import Sequence
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from app.bodies import json_body, read_json
from app.dependencies import OwnerDep, Services, ServicesDep, require_api_key
from app.errors import (
    InvalidRequestError,
    JobNotFoundError,
    JobSucceededError,
    QueueUnavailableError,
    ResultExpiredError,
    TooManyJobsError,
    TooManyKeyJobsError,
    UnauthorizedError,
    UploadStalledError,
    responses,
)
from app.janitor import result_expires_at
from app.limits import one_at_a_time, refuse_beyond_key_jobs, refuse_full_queue
from app.schemas import KEEP_PARTIAL_DESCRIPTION, CancelJob, Job, JobPage, public_job
from app.webhook_events import change_log
from worker.contract.failure import FailureCode
from worker.contract.job import JOB_ID_PATTERN, JobId, JobRecord, JobStatus, now
from worker.contract.storage import remove_tree

MAX_PAGE_JOBS = 100

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_api_key)])

JobIdParameter = Annotated[str, Path(pattern=JOB_ID_PATTERN)]


def existing_job(job_id: JobIdParameter, services: ServicesDep, owner: OwnerDep) -> JobRecord:
    """A job of another key is none: nothing about the answer tells that there is one."""
    record = services.registry.get(job_id)
    if record is None or owner not in (None, record.owner):
        raise JobNotFoundError(job_id)
    return record


JobRecordDep = Annotated[JobRecord, Depends(existing_job)]


@router.get(
    "",
    summary="List jobs, newest first, or look at several",
    responses=responses(UnauthorizedError, InvalidRequestError, QueueUnavailableError),
)
def list_jobs(
    services: ServicesDep,
    owner: OwnerDep,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_JOBS)] = 20,
    cursor: Annotated[
        str | None, Query(pattern=JOB_ID_PATTERN, description="`next_cursor` of the page before.")
    ] = None,
    ids: Annotated[
        list[JobId] | None,
        Query(
            alias="id",
            max_length=MAX_PAGE_JOBS,
            description="These jobs and no others, in this order; those that are gone are left out. `limit` and "
            "`cursor` do not count then.",
        ),
    ] = None,
) -> JobPage:
    if ids:
        there = services.registry.get_all(list(dict.fromkeys(ids)))
        found = [one for one in there if owner in (None, one.owner) and status in (None, one.status)]
        return JobPage(jobs=_present_jobs(services, found), next_cursor=None)
    records = services.registry.newest(limit + 1, status, before=cursor, owner=owner)
    page = records[:limit]
    return JobPage(
        jobs=_present_jobs(services, page),
        next_cursor=page[-1].id if len(records) > limit else None,
    )


_job_problems = responses(UnauthorizedError, JobNotFoundError, InvalidRequestError, QueueUnavailableError)


@router.get("/{job_id}", summary="Look at a job", responses=_job_problems)
async def get_job(job_id: JobIdParameter, services: ServicesDep, owner: OwnerDep) -> Job:
    # Asked more than all else: one turn among the threads and not three, for the record, the figures and the answer.
    return await run_in_threadpool(lambda: present_job(services, existing_job(job_id, services, owner)))


async def cancel_wish(request: Request, services: ServicesDep) -> CancelJob:
    """The body of a cancel, which may be left out."""
    return await read_json(request, services.settings, CancelJob, if_left_out=CancelJob())


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a job",
    responses=_job_problems | responses(UploadStalledError),
    openapi_extra=json_body(CancelJob, required=False),
)
def cancel_job(
    record: JobRecordDep,
    services: ServicesDep,
    owner: OwnerDep,
    wish: Annotated[CancelJob, Depends(cancel_wish)],
    keep_partial: Annotated[bool, Query(description=KEEP_PARTIAL_DESCRIPTION)] = False,
) -> Job:
    """Idempotent: a job that has finished stays as it is. Segments that are done are kept until the job is deleted.

    `keep_partial` may stand in the body or in the query.
    """
    canceled = services.registry.cancel(record.id, keep_partial=keep_partial or wish.keep_partial)
    if canceled:
        services.metrics.jobs_canceled.inc()
    if canceled and canceled.wants_partial_result:
        services.queue.enqueue_assemble(record.id)
    return present_job(services, canceled or existing_job(record.id, services, owner))


@router.post(
    "/{job_id}/retry",
    summary="Try a failed or canceled job again",
    responses=responses(
        UnauthorizedError,
        JobNotFoundError,
        JobSucceededError,
        ResultExpiredError,
        InvalidRequestError,
        TooManyJobsError,
        TooManyKeyJobsError,
        QueueUnavailableError,
    ),
)
async def retry_job(record: JobRecordDep, services: ServicesDep, owner: OwnerDep) -> Job:
    """Puts it at the end of the queue; segments that are done are kept, unless the result was not right.

    Idempotent: one that waits or runs does so.
    """
    # Behind others of this key: not in the threads that everybody's requests need.
    return await to_thread.run_sync(_retry, services, record, owner, limiter=services.upload_threads.accepting)


def _retry(services: Services, record: JobRecord, owner: str | None) -> Job:
    # The file that a canceled job had kept stays until the whole one replaces it: without a result in the record nobody
    # can have it, and whoever removed it here could come so late that it is the whole one.
    if record.status == JobStatus.SUCCEEDED:
        raise JobSucceededError("There is nothing to try again.", job_status=record.status)
    if record.media_removed_at:
        raise ResultExpiredError("The source of this job has been removed; submit the video again.")
    if not record.status.is_final:
        return present_job(services, record)
    with one_at_a_time(services.redis, owner):
        refuse_full_queue(services)
        refuse_beyond_key_jobs(services, owner)
        if record.webhook_url:
            # The record will not tell of this end any more; the courier may not have come to it yet.
            moment, progress = now(), services.registry.progress(record.id)
            change_log(services.storage, record.id, lambda before: before.with_end_of(record, moment, progress))
        if record.error and record.error.code is FailureCode.VERIFICATION_FAILED:
            # Whatever was wrong with them: joined again they would fail again.
            folder = services.storage.folder(record.id)
            remove_tree(folder.segments)
            folder.rendering.unlink(missing_ok=True)
        # What RQ remembers of the tasks would keep them from being enqueued.
        services.queue.forget_ended_tasks(record.id, services.registry.progress(record.id).segments_total)
        retried = services.registry.retry(record.id)
    if retried and not retried.awaits_source:
        services.queue.enqueue_plan(record.id)
    return present_job(services, retried or existing_job(record.id, services, owner))


@router.delete("/{job_id}", status_code=204, summary="Delete a job and all its media", responses=_job_problems)
def delete_job(record: JobRecordDep, services: ServicesDep) -> None:
    """Cancels it if needed."""
    # Canceled first, so that no worker changes the record or publishes a segment while its folder goes.
    if services.registry.cancel(record.id):
        services.metrics.jobs_canceled.inc()
    services.queue.forget_tasks(record.id, services.registry.progress(record.id).segments_total)
    services.registry.remove(record.id)


def present_job(services: Services, record: JobRecord) -> Job:
    [job] = _present_jobs(services, [record])
    return job


def _present_jobs(services: Services, records: Sequence[JobRecord]) -> list[Job]:
    progress = services.registry.progress_of([record.id for record in records])
    queued = [record.id for record in records if record.status == JobStatus.QUEUED]
    places = dict(zip(queued, services.registry.queue_positions(queued), strict=True)) if queued else {}
    return [
        public_job(record, live, places.get(record.id), result_expires_at(record, services.settings))
        for record, live in zip(records, progress, strict=True)
    ]
