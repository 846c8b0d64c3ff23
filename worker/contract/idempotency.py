"""What is kept under an Idempotency-Key: for 24 hours the same request gives the same job. The gateway's business.

It is here because the record remembers it too, so that whoever rebuilds Redis brings it back with the job.
"""

import hashlib
from datetime import timedelta

from pydantic import BaseModel, ConfigDict
from redis.client import Pipeline

from worker.contract.job import JobRecord, now

TTL = timedelta(hours=24)


class Reservation(BaseModel):
    """Which job a key stands for."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    fingerprint: str
    """Of what was asked for: the same key for something else is refused."""
    result_is_reused: bool = False


def digest_of(idempotency_key: str) -> str:
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def reservation_key(owner: str | None, digest: str) -> str:
    """Every API key has its own space of Idempotency-Keys: another's must not even be noticed."""
    of_owner = f"{owner}:" if owner else ""
    return f"vsr:idempotency:{of_owner}{digest}"


def remember_reservation(pipe: Pipeline, record: JobRecord) -> None:
    """Put back what Redis has lost, for the rest of its time; what is there stays as it is."""
    if record.idempotency is None:
        return
    rest = record.created_at + TTL - now()
    if rest > timedelta(seconds=1):
        reservation = Reservation(job_id=record.id, fingerprint=record.idempotency.fingerprint)
        key = reservation_key(record.owner, record.idempotency.key_sha256)
        pipe.set(key, reservation.model_dump_json(), nx=True, ex=rest)
