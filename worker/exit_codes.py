"""Why a worker process or its supervisor ended: one word each, for the supervisor, the command and the logs."""

from enum import IntEnum

from worker.contract.failure import FailureCode


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    """What Python itself answers to an exception that nobody expected."""

    # The worker cannot start: starting it again would not help.
    WEIGHTS = 10
    DEVICE = 11
    OPTION = 12
    PORT_IN_USE = 13
    REDIS_UNREACHABLE = 14
    STORAGE = 15
    """The storage folder cannot be made or written."""

    # A worker process ended itself; its supervisor starts another.
    CANCELED = 20
    """A canceled task did not end by itself in time."""
    LEASE_LOST = 21
    """Its task was given to another worker: whatever it says from now on is out of date."""
    STALLED = 22
    """Its task made no progress for too long."""
    REDIS_LOST = 23
    """Redis stayed away for longer than a worker is patient."""


CANNOT_START = frozenset({ExitCode.WEIGHTS, ExitCode.DEVICE, ExitCode.OPTION})
"""Exit codes of a worker process after which its supervisor stops too."""

EXIT_CODE_OF_FAILURE = {
    FailureCode.WEIGHTS_MISSING: ExitCode.WEIGHTS,
    FailureCode.WEIGHTS_DAMAGED: ExitCode.WEIGHTS,
    FailureCode.DEVICE_UNAVAILABLE: ExitCode.DEVICE,
    FailureCode.UNKNOWN_PRESET: ExitCode.OPTION,
    FailureCode.INVALID_OPTION: ExitCode.OPTION,
    FailureCode.CAGE_UNAVAILABLE: ExitCode.OPTION,
}
"""What a failure to load the model at start means for the process."""
