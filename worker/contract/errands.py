"""What the courier has to do for jobs, and when: fetch a source, tell a receiver. An index over storage, like all here.

vsr:errands:{kind}           sorted set  job id -> when it is due, in microseconds: 0 at once, later after a failure,
                                         and while a courier is at it the end of its claim
vsr:errands:{kind}:claims    hash        job id -> claims that nobody has let go of: one, and those of dead couriers
vsr:errands:{kind}:failures  hash        job id -> how often it was postponed

A claim is only a time limit that its owner moves on while it lives: a courier that dies loses it by doing nothing, and
the errand is due again. So an errand may be done twice and is never lost; whoever does one must not mind. All times are
Redis's own. Where Redis has lost everything, indexing the jobs again brings the errands back: the records say which.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from redis import Redis
from redis.client import Pipeline

from worker.contract.job import JobRecord, JobStatus

_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = redis.call('ZRANGE', KEYS[1], '-inf', string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, 1)
if #due == 0 then return false end
local ends = string.format('%.0f', now + ARGV[1])
redis.call('ZADD', KEYS[1], ends, due[1])
return {due[1], ends, redis.call('HINCRBY', KEYS[2], due[1], 1), redis.call('HGET', KEYS[3], due[1]) or 0}
"""

# Only for the owner of the claim, which is known by its end. ARGV: job id, claim, microseconds from now (none: it is
# done), what to add to its claims, what to add to its failures. Nothing is computed of the last two here: to some
# servers -0, as Lua writes it, is no number.
_MOVE = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return false end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
  return ARGV[2]
end
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[3])
redis.call('ZADD', KEYS[1], due, ARGV[1])
redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[4])
redis.call('HINCRBY', KEYS[3], ARGV[1], ARGV[5])
return due
"""


class ErrandKind(StrEnum):
    FETCH = "fetch"
    """Get the source of a job from its `source_url`."""
    WEBHOOK = "webhook"
    """Tell a job's `webhook_url` how it ended."""


@dataclass
class Errand:
    """An errand that somebody has claimed."""

    kind: ErrandKind
    job_id: str
    claim: str
    losses: int
    """How many couriers died of it, or with it."""
    failures: int
    """How often it was postponed."""
    is_ours: bool = True
    """False: let go of, or done. Its last claim is then nobody's to renew."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """A claim is renewed by another thread than the one that ends it."""

    def take_over(self, newer: "Errand") -> bool:
        """Go on under a newer claim of ours for the same. False: this one is let go of already."""
        with self.lock:
            if self.is_ours:
                self.claim = newer.claim
            return self.is_ours


class Errands:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._claim = redis.register_script(_CLAIM)
        self._move = redis.register_script(_MOVE)

    def claim(self, kind: ErrandKind, claim_seconds: float) -> Errand | None:
        """The errand that is due longest, for so long to be done by nobody else; None if there is none."""
        reply = cast(
            list[bytes] | None,
            self._claim(keys=_keys(kind), args=[round(claim_seconds * 1_000_000)]),
        )
        if reply is None:
            return None
        return Errand(kind, reply[0].decode(), reply[1].decode(), losses=int(reply[2]) - 1, failures=int(reply[3]))

    def renew(self, errand: Errand, claim_seconds: float) -> bool:
        """False: the claim ran out and somebody else has the errand, or it is gone."""
        return self._moved(errand, str(round(claim_seconds * 1_000_000)), is_renewal=True)

    def postpone(self, errand: Errand, seconds: float) -> None:
        """Let go of it after a failure: due again then. Nothing happens if it is not ours any more."""
        self._moved(errand, str(round(seconds * 1_000_000)), claims=-1, failures=1)

    def give_back(self, errand: Errand, seconds: float = 0.0) -> None:
        """Let go of it as if it had never been claimed."""
        self._moved(errand, str(round(seconds * 1_000_000)), claims=-1)

    def finish(self, errand: Errand) -> None:
        """It is done. Nothing happens if it was put up again meanwhile."""
        self._moved(errand, "")

    def put(self, kind: ErrandKind, job_id: str) -> None:
        """Due at once, also where it waits for a later time."""
        self._redis.zadd(_key(kind), {job_id: 0})

    def count(self, kind: ErrandKind) -> int:
        return int(self._redis.zcard(_key(kind)))

    def _moved(
        self, errand: Errand, microseconds: str, claims: int = 0, failures: int = 0, *, is_renewal: bool = False
    ) -> bool:
        with errand.lock:
            if not errand.is_ours:
                return False
            args: list[str | int] = [errand.job_id, errand.claim, microseconds, claims, failures]
            reply = cast(bytes | None, self._move(keys=_keys(errand.kind), args=args))
            if reply is None:
                return False
            errand.claim = reply.decode()
            errand.is_ours = is_renewal
            return True


def expect_errands(pipe: Pipeline, record: JobRecord, *, has_just_ended: bool = False) -> None:
    """Put up what this job needs; what is there stays as it is.

    `has_just_ended`: its end is news, also where an older one (of a job that was retried) is still to be told.
    """
    for kind in _needed_by(record):
        pipe.zadd(_key(kind), {record.id: 0}, nx=not (has_just_ended and kind is ErrandKind.WEBHOOK))


def forget_errands(pipe: Pipeline, job_id: str) -> None:
    for kind in ErrandKind:
        errands, *counts = _keys(kind)
        pipe.zrem(errands, job_id)
        for key in counts:
            pipe.hdel(key, job_id)


def _needed_by(record: JobRecord) -> Iterator[ErrandKind]:
    if record.status is JobStatus.QUEUED and record.awaits_source:
        yield ErrandKind.FETCH
    if record.status.is_final and record.webhook_url is not None:
        yield ErrandKind.WEBHOOK


def _key(kind: ErrandKind) -> str:
    return f"vsr:errands:{kind}"


def _keys(kind: ErrandKind) -> list[str]:
    return [_key(kind), f"{_key(kind)}:claims", f"{_key(kind)}:failures"]
