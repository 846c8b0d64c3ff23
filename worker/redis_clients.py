"""Two ways to talk to Redis: a worker waits until it is back, its supervisor must never be held up for long."""

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

# About two minutes of waits between 0.1 and 2 s: enough for a restart of Redis, or of the machine it is on.
_PATIENT_RETRIES = 90
_PATIENT_SOCKET_TIMEOUT_SECONDS = 30.0
_BRIEF_RETRIES = 1
_BRIEF_SOCKET_TIMEOUT_SECONDS = 2.0


def patient_redis(url: str) -> Redis:
    """For worker processes. With redis-py's defaults a task that ends while Redis is away ends its worker too."""
    return _client(url, _PATIENT_RETRIES, _PATIENT_SOCKET_TIMEOUT_SECONDS)


def brief_redis(url: str) -> Redis:
    """For the supervisor, which has children to look after meanwhile."""
    return _client(url, _BRIEF_RETRIES, _BRIEF_SOCKET_TIMEOUT_SECONDS)


def _client(url: str, retries: int, socket_timeout_seconds: float) -> Redis:
    client: Redis = Redis.from_url(
        url,
        socket_timeout=socket_timeout_seconds,
        socket_connect_timeout=_BRIEF_SOCKET_TIMEOUT_SECONDS,
        retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), retries),
        health_check_interval=15,
    )
    return client
