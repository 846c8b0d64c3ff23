"""What the `vsr` command ends with. Codes from 10 up are a worker's (`worker.exit_codes`)."""

from enum import IntEnum

from worker.contract.failure import FailureCode


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    """A traceback: please report it."""
    USAGE = 2
    """Wrong arguments; also what the argument parser itself answers."""
    BAD_INPUT = 3
    """The video, data set or weight file is not what it should be."""
    NOT_POSSIBLE = 4
    """What was asked for cannot be done: no such preset, weights or device, or a result that would lose something."""
    SYSTEM = 5
    """The machine: no disk space, no memory, a port in use, no Redis."""
    SERVICE = 6
    """The service cannot be reached, or refused the request."""
    JOB_FAILED = 7
    """The job ended without a result: failed, or canceled by someone."""
    INTERRUPTED = 130
    """Ctrl-C. What was finished is kept."""


class CommandError(Exception):
    """What a room of the app cannot do, as one line for the user: the command ends with it.

    A base class, so that the command need not import a room to know its errors.
    """

    exit_code: int = ExitCode.SYSTEM


_NOT_POSSIBLE = {
    FailureCode.UNSUPPORTED_OUTPUT,
    FailureCode.WOULD_LOSE,
    FailureCode.OUTPUT_EXISTS,
    FailureCode.INVALID_OPTION,
    FailureCode.UNKNOWN_PRESET,
    FailureCode.WEIGHTS_MISSING,
    FailureCode.WEIGHTS_DAMAGED,
    FailureCode.DEVICE_UNAVAILABLE,
    FailureCode.CAGE_UNAVAILABLE,
}
_SYSTEM = {FailureCode.OUT_OF_DISK, FailureCode.OUT_OF_MEMORY, FailureCode.WORKER_LOST}
_OURS = {FailureCode.VERIFICATION_FAILED, FailureCode.INTERNAL}


def exit_code_of(failure: FailureCode) -> ExitCode:
    """The exit code of a command that met this failure itself (in a job of the service it is JOB_FAILED)."""
    if failure in _NOT_POSSIBLE:
        return ExitCode.NOT_POSSIBLE
    if failure in _SYSTEM:
        return ExitCode.SYSTEM
    return ExitCode.BUG if failure in _OURS else ExitCode.BAD_INPUT
