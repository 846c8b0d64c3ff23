"""What `vsr doctor` found out about one part of a machine. The app and the worker each examine what they know of."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could, or not for everything."""
    MISSING = "missing"
    """Jobs cannot be done without it."""


@dataclass(frozen=True)
class Finding:
    part: str
    level: Level
    says: str
    """One line: what is there, or what is wrong."""
    fix: str | None = None
    """What to do about it; None: nothing."""


def ok(part: str, says: str) -> Finding:
    return Finding(part, Level.OK, says)


def warning(part: str, says: str, fix: str) -> Finding:
    return Finding(part, Level.WARNING, says, fix)


def missing(part: str, says: str, fix: str) -> Finding:
    return Finding(part, Level.MISSING, says, fix)
