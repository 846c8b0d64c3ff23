"""Which errors of Redis pass by themselves, or once somebody has made room: everything then waits, nothing is lost."""

import re

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

# MISCONF: its disk is full or broken; NOREPLICAS: too few copies are left. redis-py has no classes for them, and puts
# its own words before the server's when the command was one of a pipeline.
_TAKES_NO_WRITES = re.compile(r"(?:^|caused error: )(?:MISCONF|NOREPLICAS|OOM) ")


def is_unavailable(error: RedisError) -> bool:
    """Whether Redis does not answer, or takes no more data for now."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OutOfMemoryError | ReadOnlyError):
        return True
    return isinstance(error, ResponseError) and bool(_TAKES_NO_WRITES.search(str(error)))
