"""`vsr courier`: everything that this service says to other hosts and gets from them, in a process of its own.

    claim ──▶ do ──▶ finished, or postponed

A few threads per kind of errand do this, so that a long download keeps no webhook waiting, and half of them at most for
one user, so that nobody's hanging receiver keeps everybody's waiting. One more thread renews all claims; and the first
looks every ten seconds whether the index is whole.

It has no supervisor, and needs none: what it holds in memory is worth nothing. Killed at any point, its claims run out
(`worker.contract.errands`), and it, or another, begins again from storage. Whoever started it starts it anew. It never
loads torch or av, and it alone needs a way out of the network.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
from pydantic import ValidationError
from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from structlog.contextvars import bound_contextvars

from app.courier.deliver import WebhookDeliverer
from app.courier.fetch import FetchLimits, JobEndedError, SourceFetcher
from app.courier.metrics import CourierMetrics, MetricsServer
from app.exit_codes import CommandError
from app.guarded_http import GuardedHttp, host_in_url
from app.settings import CourierSettings
from worker.contract.errands import Errand, ErrandKind, Errands
from worker.contract.job import JobRecord
from worker.contract.queue import TaskQueue
from worker.contract.redis_faults import is_unavailable
from worker.contract.registry import JobRegistry
from worker.contract.settings import RedisSettings, StorageSettings
from worker.contract.storage import JobStorage, StorageBusyError
from worker.contract.tracing import span, start_tracing, stop_tracing, trace_id_of

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.25
_REDIS_AWAY_SECONDS = 1.0
# For an errand of somebody who has enough of them under way.
_WAIT_FOR_TURN_SECONDS = 1.0
_LOOK_FOR_END_SECONDS = 0.5
# After a bug: nobody knows what would help, and it must not be met in a circle.
_AFTER_CRASH_SECONDS = 60.0
# A delivery takes 15 s at most; a download stops at once.
_STOP_SECONDS = 16.0
_REDIS_TIMEOUT_SECONDS = 5.0
_REDIS_RETRIES = 3
# Says that every job's errands are in Redis; gone with everything else where Redis lost its memory.
_INDEXED_KEY = "vsr:errands:indexed"


class CourierStartError(CommandError):
    """One line that says why the courier does not start and what to do."""


def run_courier(settings: CourierSettings, redis_settings: RedisSettings, storage_settings: StorageSettings) -> None:
    """Run until SIGTERM or SIGINT. Raises `CourierStartError`. From the main thread, with logging configured."""
    redis = _open_redis(redis_settings)
    storage = JobStorage(storage_settings.storage_dir)
    try:
        storage.prepare()
    except OSError as error:
        raise CourierStartError(
            f"the storage folder {storage.root} cannot be used ({error.strerror}): set VSR_STORAGE_DIR"
        ) from error
    metrics = CourierMetrics(Errands(redis))
    try:
        server = MetricsServer(metrics, settings.courier_metrics_host, settings.courier_metrics_port)
    except OSError as error:
        raise CourierStartError(
            f"port {settings.courier_metrics_port} cannot be used ({error.strerror}): set VSR_COURIER_METRICS_PORT"
        ) from error
    try:
        start_tracing("vsr-courier")
        Courier(redis, storage, settings, storage_settings.min_free_bytes, metrics).run(server.port)
    finally:
        stop_tracing()
        server.close()
        redis.close()


class Courier:
    def __init__(
        self, redis: Redis, storage: JobStorage, settings: CourierSettings, min_free_bytes: int, metrics: CourierMetrics
    ) -> None:
        self._redis = redis
        self._storage = storage
        self._settings = settings
        self._registry = JobRegistry(redis, storage)
        self._errands = Errands(redis)
        # A plain value, as a signal handler that sets an event may wait for the very thread that it interrupts.
        self._stop_asked = False
        self._crash: Exception | None = None
        self._stopping = threading.Event()
        self._in_hand: dict[tuple[ErrandKind, str], _InHand] = {}
        self._in_hand_lock = threading.Lock()
        http = GuardedHttp(settings.target_policy)
        limits = FetchLimits(
            settings.max_upload_bytes,
            min_free_bytes,
            settings.source_idle_timeout_seconds,
            settings.source_timeout_seconds,
            settings.max_source_bytes_per_key,
        )
        self._fetcher = SourceFetcher(
            http,
            self._registry,
            storage,
            TaskQueue(redis),
            self._errands,
            metrics,
            limits,
            is_allowed=settings.allow_source_url,
        )
        # Without a secret what is to be told waits until there is one again.
        self._deliverer = settings.webhook_secret and WebhookDeliverer(
            http, self._registry, storage, self._errands, metrics, settings.webhook_secret.get_secret_value()
        )

    def run(self, metrics_port: int) -> None:
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGINT, self._ask_to_stop)
        workers = [
            self._started(f"fetch-{number}", lambda: self._work(ErrandKind.FETCH, self._fetch))
            for number in range(self._settings.courier_fetches)
        ]
        if self._deliverer:
            workers += [
                self._started(f"deliver-{number}", lambda: self._work(ErrandKind.WEBHOOK, self._deliver))
                for number in range(self._settings.courier_deliveries)
            ]
        renewing = self._started("claims", self._renew_claims)
        log.info("courier_started", metrics_port=metrics_port, webhooks=self._deliverer is not None)
        self._look_after_index()
        self._stopping.set()
        until = time.monotonic() + _STOP_SECONDS
        for worker in [*workers, renewing]:
            worker.join(max(0.0, until - time.monotonic()))
        log.info("courier_stopped")
        if self._crash:
            raise self._crash

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_asked = True

    def _started(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def work_or_end() -> None:
            try:
                work()
            except Exception as error:
                log.exception("thread_crashed", thread=name)
                self._crash = error

        thread = threading.Thread(target=work_or_end, name=name, daemon=True)
        thread.start()
        return thread

    # --- errands ------------------------------------------------------------------------------------------------

    def _work(self, kind: ErrandKind, do: Callable[["_InHand"], None]) -> None:
        while not self._stopping.is_set():
            try:
                errand = self._errands.claim(kind, self._settings.courier_claim_seconds)
                if errand is None:
                    self._stopping.wait(_POLL_SECONDS)
                    continue
                with self._taken(errand) as in_hand:
                    if in_hand:
                        self._try(in_hand, do)
            except RedisError as error:
                if not is_unavailable(error):
                    raise
                # The claim runs out, and whatever was not done is due again.
                log.warning("redis_unreachable", reason=str(error))
                self._stopping.wait(_REDIS_AWAY_SECONDS)

    def _try(self, in_hand: "_InHand", do: Callable[["_InHand"], None]) -> None:
        job = self._registry.get(in_hand.errand.job_id)
        if job and not self._is_ones_turn(in_hand, job):
            self._errands.give_back(in_hand.errand, _WAIT_FOR_TURN_SECONDS)
            return
        kind, job_id = in_hand.errand.kind, in_hand.errand.job_id
        request_id, trace_parent = (job.request_id, job.trace_parent) if job else (None, None)
        with (
            bound_contextvars(job_id=job_id, request_id=request_id, **trace_id_of(trace_parent)),
            span(f"vsr {kind}", trace_parent, job_id=job_id, request_id=request_id),
        ):
            try:
                do(in_hand)
            except _StoppingError:
                log.info("errand_given_back", errand=in_hand.errand.kind)
                self._errands.give_back(in_hand.errand)
            except _ClaimLostError:
                log.warning("errand_left", errand=in_hand.errand.kind, reason="another courier has it")
            except StorageBusyError as error:  # what was changed of the job is changed
                log.warning("errand_given_back", errand=in_hand.errand.kind, reason=str(error))
                self._errands.give_back(in_hand.errand, _WAIT_FOR_TURN_SECONDS)
            except RedisError:
                raise
            except Exception:
                log.exception("errand_crashed", errand=in_hand.errand.kind)
                self._errands.postpone(in_hand.errand, _AFTER_CRASH_SECONDS)

    def _is_ones_turn(self, in_hand: "_InHand", job: JobRecord) -> bool:
        kind = in_hand.errand.kind
        url = job.source_url if kind is ErrandKind.FETCH else job.webhook_url
        user = job.owner or host_in_url(url or "")  # without keys the host must stand for its user
        places = self._settings.courier_fetches if kind is ErrandKind.FETCH else self._settings.courier_deliveries
        with self._in_hand_lock:
            under_way = sum(other.user == user and other.errand.kind is kind for other in self._in_hand.values())
            if under_way >= max(1, places // 2):
                return False
            in_hand.user = user
            return True

    def _fetch(self, in_hand: "_InHand") -> None:
        self._fetcher.do(in_hand.errand, lambda: self._check(in_hand))

    def _deliver(self, in_hand: "_InHand") -> None:
        assert self._deliverer
        self._deliverer.do(in_hand.errand)

    def _check(self, in_hand: "_InHand") -> None:
        if self._stopping.is_set():
            raise _StoppingError
        if in_hand.is_lost:
            raise _ClaimLostError
        if time.monotonic() - in_hand.looked_at < _LOOK_FOR_END_SECONDS:
            return
        in_hand.looked_at = time.monotonic()
        try:
            has_ended = self._registry.is_final(in_hand.errand.job_id)
        except RedisError as error:
            if not is_unavailable(error):
                raise
            return  # then nobody could have ended it
        if has_ended:
            raise JobEndedError

    # --- claims -------------------------------------------------------------------------------------------------

    @contextmanager
    def _taken(self, errand: Errand) -> Iterator["_InHand | None"]:
        """None for an errand that another thread of ours is at: it was put up again, or Redis was away too long."""
        key = (errand.kind, errand.job_id)
        with self._in_hand_lock:
            other = self._in_hand.get(key)
            if other is None:
                in_hand = self._in_hand[key] = _InHand(errand)
        if other:
            # A download goes on where it is; an event may be another one.
            if errand.kind is ErrandKind.WEBHOOK or not other.errand.take_over(errand):
                self._errands.give_back(errand, _POLL_SECONDS)
            yield None
            return
        try:
            yield in_hand
        finally:
            with self._in_hand_lock:
                del self._in_hand[key]

    def _renew_claims(self) -> None:
        while True:
            with self._in_hand_lock:
                all_in_hand = list(self._in_hand.values())
            if self._stopping.is_set() and not all_in_hand:
                return
            for in_hand in all_in_hand:
                try:
                    in_hand.is_lost = not self._errands.renew(in_hand.errand, self._settings.courier_claim_seconds)
                except RedisError as error:
                    if not is_unavailable(error):
                        raise
            pause_seconds = self._settings.courier_claim_seconds / 3
            if self._stopping.wait(pause_seconds):
                time.sleep(_POLL_SECONDS)

    # --- the index ----------------------------------------------------------------------------------------------

    def _look_after_index(self) -> None:
        """At start, and whenever Redis has lost its memory, put up what storage shows to be needed; until the stop."""
        is_indexed = False
        look_at = 0.0
        while not (self._stop_asked or self._crash):
            time.sleep(_POLL_SECONDS)
            if time.monotonic() < look_at:
                continue
            look_at = time.monotonic() + self._settings.courier_reconcile_seconds
            try:
                if not (is_indexed and self._redis.exists(_INDEXED_KEY)):
                    self._index()
                    is_indexed = True
            except RedisError as error:
                if not is_unavailable(error):
                    raise
                log.warning("redis_unreachable", reason=str(error))

    def _index(self) -> None:
        self._redis.set(_INDEXED_KEY, 1)  # first, so that a Redis which is emptied meanwhile is seen to be
        for job_id in self._storage.job_ids():
            try:
                job = self._storage.read_record(job_id)
            except ValidationError as error:
                log.error("job_files_unreadable", job_id=job_id, reason=str(error))
                continue
            if job:
                self._registry.expect_errands(job)


class _InHand:
    """An errand that a thread of ours is at."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.is_lost = False
        self.looked_at = 0.0
        self.user: str | None = None
        """Set when it is being done."""


class _StoppingError(Exception):
    """The courier is asked to stop."""


class _ClaimLostError(Exception):
    """The claim ran out, and the errand was given to somebody else."""


def _open_redis(settings: RedisSettings) -> Redis:
    if settings.redis_url is None:
        raise CourierStartError("no Redis: set VSR_REDIS_URL")
    try:
        return Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), _REDIS_RETRIES),
            health_check_interval=15,
        )
    except ValueError:
        # Without the error's own words, which may repeat a password.
        raise CourierStartError(
            "VSR_REDIS_URL is no address of a Redis: it reads like redis://host:6379/0 or unix:///folder/redis.sock"
        ) from None
