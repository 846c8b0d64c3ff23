"""Accepting a job: the one path from a received file to a 202, in an order in which a crash at any point is harmless.

1. the file is linked into the job's folder       a crash leaves a folder without a record, which is no job (swept)
2. `job.json` is written and fsynced              from here the job may run, though nobody was promised that it does
3. the `plan` task is enqueued                    a worker that takes it at once finds the record on disk
4. the record is indexed in Redis, as it is now   the worker may have started it: its word stands
                                                  (a source that is still to be fetched: 3 is the courier's, and it
                                                  learns of it by 4)
5. the upload is removed                          until here it was there too, for whoever tries again
6. the 202                                        promised: the record is on disk and the task in the queue

If Redis fails in 3 or 4, the job is removed again: a task without a record does nothing. What fails later changes
nothing any more. Redis may still have done what it did not answer to; so whether there is a job, only storage says.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import structlog
from pydantic import ValidationError
from redis import Redis

from app.dependencies import Services
from app.errors import (
    IdempotencyConflictError,
    IdempotencyKeyReusedError,
    SourceUrlsOffError,
    UnknownPresetError,
    UploadBusyError,
    UploadNotFoundError,
    UrlRefusedError,
    WebhooksOffError,
)
from app.filenames import clean_file_name
from app.guarded_http import TargetError, check_url
from app.limits import LockBusyError, one_at_a_time, refuse_beyond_key_limits, refuse_full_queue, renewed_lock
from app.settings import GatewaySettings
from app.uploads import ReceivedFile
from worker.contract.idempotency import TTL, Reservation, digest_of, reservation_key
from worker.contract.job import Idempotency, JobOptions, JobRecord, JobStatus, new_job_id, now
from worker.contract.presets import PRESETS, TEST_PRESETS, loaded_models
from worker.contract.report import Report
from worker.contract.storage import JobFolder, fsync_folder
from worker.contract.tracing import current_trace_parent

log = structlog.get_logger(__name__)


HeldSource = Callable[[], AbstractContextManager[ReceivedFile | None]]
"""The received file, which is there and nobody else's for as long as the context lasts. None: still to be fetched."""


@dataclass(frozen=True)
class Submission:
    options: JobOptions
    source_name: str
    source: HeldSource
    source_identity: str
    """What makes a repeated request the same one: the upload's id, or the checksum of the file sent along."""
    idempotency_key: str | None
    owner: str | None
    request_id: str | None
    source_url: str | None = None
    """From where the courier is to fetch the source; then there is none to be moved."""
    webhook_url: str | None = None
    reuse_result: bool = False
    """A job of the same owner that has the result already will do."""

    @property
    def fingerprint(self) -> str:
        content = [self.source_identity, self.source_name, self.options.model_dump(mode="json")]
        content += [self.webhook_url] if self.webhook_url else []
        content += ["reuse_result"] if self.reuse_result else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def idempotency(self) -> Idempotency | None:
        if self.idempotency_key is None:
            return None
        return Idempotency(key_sha256=digest_of(self.idempotency_key), fingerprint=self.fingerprint)


@dataclass(frozen=True)
class Accepted:
    record: JobRecord
    result_is_reused: bool = False
    """It is an earlier job, which has the result already."""


def accept(services: Services, submission: Submission) -> Accepted:
    """The accepted job, durable; or the job of an earlier request with the same Idempotency-Key."""
    if submission.idempotency_key is None:
        return _accept_as(services, submission, new_job_id())
    with _reserved(services.redis, submission) as (reservation, is_new):
        if record := services.storage.read_record(reservation.job_id):
            return _accepted_before(services, submission, reservation, record)
        if not is_new:
            # An earlier attempt failed or was killed. Redis may still believe in its job, and whoever puts that right
            # removes it by its id: that is nobody's any more.
            _forget(services, reservation.job_id)
            reservation = Reservation(job_id=new_job_id(), fingerprint=submission.fingerprint)
            _keep(services.redis, submission, reservation)
        accepted = _accept_as(services, submission, reservation.job_id)
        if accepted.result_is_reused:
            twin = Reservation(job_id=accepted.record.id, fingerprint=submission.fingerprint, result_is_reused=True)
            _keep(services.redis, submission, twin)
        return accepted


def _accepted_before(
    services: Services, submission: Submission, reservation: Reservation, record: JobRecord
) -> Accepted:
    """The job of the earlier attempt, which may have been killed behind any step after the record: then the rest."""
    if reservation.result_is_reused:
        return Accepted(record, result_is_reused=True)
    if record.status is JobStatus.QUEUED:
        record = _announced(services, record)
    with suppress(UploadNotFoundError, UploadBusyError), submission.source() as source:
        if source and _is_taken(source, services.storage.folder(record.id)):
            source.path.unlink(missing_ok=True)
    return Accepted(record)


def _forget(services: Services, job_id: str) -> None:
    services.queue.forget_tasks(job_id, services.registry.progress(job_id).segments_total)
    services.registry.remove(job_id)


def refuse_when_full(services: Services, owner: str | None, idempotency_key: str | None, declared_bytes: int) -> None:
    """Asked before a body is read; also tells early that Redis is away. A repeated request gets its job anyway."""
    if idempotency_key is not None and _has_a_job(services, reservation_key(owner, digest_of(idempotency_key))):
        return
    refuse_full_queue(services)
    refuse_beyond_key_limits(services, owner, declared_bytes)


def refuse_unknown_preset(options: JobOptions, settings: GatewaySettings) -> None:
    known = [*PRESETS, *(TEST_PRESETS if settings.enable_test_presets else ())]
    if options.preset not in known:
        raise UnknownPresetError(f"{options.preset!r} is not one of: {', '.join(known)}.", known_presets=known)


def refuse_source_url(url: str, settings: GatewaySettings) -> None:
    if not settings.allow_source_url:
        raise SourceUrlsOffError
    _refuse_url("source_url", url, settings)


def refuse_webhook_url(url: str | None, settings: GatewaySettings) -> None:
    if url is None:
        return
    if settings.webhook_secret is None:
        raise WebhooksOffError
    _refuse_url("webhook_url", url, settings)


def _refuse_url(field: str, url: str, settings: GatewaySettings) -> None:
    """What can be seen without asking for the name's addresses, which is the courier's."""
    try:
        check_url(url, settings.target_policy)
    except TargetError as error:
        raise UrlRefusedError(f"{field}: {error}.", field=field) from error


@contextmanager
def source_to_be_fetched() -> Iterator[None]:
    """In the place of a source that is there: nothing is known of it."""
    yield None


def _accept_as(services: Services, submission: Submission, job_id: str) -> Accepted:
    with one_at_a_time(services.redis, submission.owner), submission.source() as source:
        if submission.reuse_result and source and (twin := finished_twin(services, submission, source)):
            source.path.unlink(missing_ok=True)
            log.info("result reused", job_id=twin.id)
            return Accepted(twin, result_is_reused=True)
        uncounted_bytes = source.size_bytes if source and not source.is_upload else 0
        refuse_beyond_key_limits(services, submission.owner, uncounted_bytes)
        record = JobRecord(
            id=job_id,
            created_at=now(),
            options=submission.options,
            source_name=clean_file_name(submission.source_name),
            source_size_bytes=source.size_bytes if source else 0,
            source_sha256=source.sha256 if source else "",
            owner=submission.owner,
            source_url=submission.source_url,
            webhook_url=submission.webhook_url,
            request_id=submission.request_id,
            trace_parent=current_trace_parent(),
            idempotency=submission.idempotency,
        )
        try:
            _record(services, record, source)
            _announced(services, record)
        except BaseException:
            services.storage.delete_job(job_id)
            raise
        if source:
            source.path.unlink(missing_ok=True)
    services.metrics.jobs_submitted.inc()
    log.info("job accepted", job_id=job_id, size_bytes=record.source_size_bytes, preset=record.options.preset)
    return Accepted(record)


def _record(services: Services, record: JobRecord, source: ReceivedFile | None) -> None:
    """Steps 1 and 2: on disk, durable."""
    folder = services.storage.make_folder(record.id)
    with services.storage.locked(record.id):
        if not folder.path.exists():
            # Whoever tried again meanwhile took this attempt for dead, and has another id.
            raise IdempotencyConflictError("Another request with this Idempotency-Key has taken over.")
        if source:
            os.link(source.path, folder.source)
            fsync_folder(folder.path)
        services.storage.write_record(record)


def _announced(services: Services, record: JobRecord) -> JobRecord:
    """Steps 3 and 4: in Redis. Gives the record as it is by now; harmless for a job that is there already."""
    if not record.awaits_source:
        services.queue.enqueue_plan(record.id)
    return services.registry.change(record.id, lambda current: current) or record


def _is_taken(source: ReceivedFile, folder: JobFolder) -> bool:
    """Whether this very file is the source of that job."""
    try:
        return source.path.samefile(folder.source)
    except FileNotFoundError:
        return False


def finished_twin(services: Services, submission: Submission, source: ReceivedFile) -> JobRecord | None:
    """A job of the same owner with the result that this one would have: of the same bytes, options and networks.

    Without a live worker that has the networks loaded nobody knows whether they are still the same: then there is none.
    """
    loaded = loaded_models(services.redis).get(submission.options.preset)
    if loaded is None or loaded.network is None:
        return None
    for record in services.registry.with_result_of(source.sha256, submission.owner):
        folder = services.storage.folder(record.id)
        if record.options != submission.options or record.result is None or record.owner != submission.owner:
            continue
        if not folder.result(record.result.container).exists():
            continue
        with suppress(FileNotFoundError, ValidationError):  # a report that is gone, or of another version
            if Report.model_validate_json(folder.report.read_bytes()).network == loaded.network:
                return record
    return None


def _keep(redis: Redis, submission: Submission, reservation: Reservation) -> None:
    assert submission.idempotency_key is not None
    key = reservation_key(submission.owner, digest_of(submission.idempotency_key))
    redis.set(key, reservation.model_dump_json(), ex=TTL)


@contextmanager
def _reserved(redis: Redis, submission: Submission) -> Iterator[tuple[Reservation, bool]]:
    """The job that this key stands for, for one request at a time, and whether nobody has tried it before."""
    assert submission.idempotency_key is not None
    key = reservation_key(submission.owner, digest_of(submission.idempotency_key))
    try:
        with renewed_lock(redis, f"{key}:lock"):
            fresh = Reservation(job_id=new_job_id(), fingerprint=submission.fingerprint).model_dump_json()
            is_new = bool(redis.set(key, fresh, nx=True, ex=TTL))
            reserved = Reservation.model_validate_json(cast(bytes, redis.get(key)))
            if reserved.fingerprint != submission.fingerprint:
                raise IdempotencyKeyReusedError("The first request with this Idempotency-Key asked for something else.")
            yield reserved, is_new
    except LockBusyError:
        raise IdempotencyConflictError(
            "Another request with this Idempotency-Key is being worked on.", {"Retry-After": "1"}
        ) from None


def _has_a_job(services: Services, key: str) -> bool:
    reservation = cast(bytes | None, services.redis.get(key))
    if reservation is None:
        return False
    return services.storage.read_record(Reservation.model_validate_json(reservation).job_id) is not None
