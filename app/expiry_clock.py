"""How long ago something was, though the machine's clock can be set, wrongly and right again, under our feet.

Stamps of files and records are wall-clock times. By a clock that was set forward they look old, and what is removed for
that is gone. So the wall clock is held against one that nobody can set, the time since the machine started. Of the two
a history is kept: what the wall clock showed when, on an axis of time that truly went by.

    steady time   0 ─────────────── 500 ────────────────── 900 ──▶        a stamp of 12:03 was made at 180, and
    wall clock    12:00 ─────▶ 12:08:20 │ 14:00 ───────────────▶          is 720 seconds old at 900

What is trusted: the steady clock while the machine runs; the wall clock for the time while it did not, and for the time
before the first look. What stays in doubt is taken for younger than it is: kept too long, never removed too soon.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast
from uuid import uuid4

import structlog
from pydantic import BaseModel
from redis import Redis

log = structlog.get_logger(__name__)

STATE_KEY = "vsr:expiry-clock"
# Less is a clock being slewed, or two readings taken one after the other on a busy machine.
_JUMP_SECONDS = 60.0
_MAX_BOOTS = 16
_MAX_STRETCHES = 1000
_ONE_OF_THIS_PROCESS = uuid4().hex


class _Stretch(BaseModel):
    """A time in which the wall clock went without a jump. Two may overlap: between two looks a jump may be anywhere."""

    begin: float
    """On the axis of steady time."""
    end: float
    wall: float
    """What the wall clock showed at the beginning."""

    def moment_of(self, stamp: float) -> float | None:
        """The steady time at which the wall clock showed `stamp`. None: not in this stretch."""
        moment = self.begin + stamp - self.wall
        return moment if self.begin <= moment <= self.end else None


class _Boot(BaseModel):
    """One run of a machine."""

    wall_at_start: float
    """What the wall clock would have shown then, as it went at the first look."""
    last_look: tuple[float, float] | None = None
    """Steady time, and seconds since the start. None: there was only the first, which counts for nothing."""


class _State(BaseModel):
    steady: float = 0.0
    """Time that went by, as of the last look."""
    wall: float | None = None
    """What the wall clock showed at the last look. None: there was none."""
    stretches: list[_Stretch] = []
    boots: dict[str, _Boot] = {}


class ExpiryClock:
    """Shared by all gateways through Redis. To be used by one at a time."""

    def __init__(
        self,
        redis: Redis,
        wall: Callable[[], float] = time.time,
        since_boot: Callable[[], float] | None = None,
        boot_id: Callable[[], str] | None = None,
    ) -> None:
        self._redis = redis
        self._wall = wall
        self._since_boot = since_boot or _seconds_since_boot
        self._boot_id = boot_id or _boot_id
        self._state = _State()

    def look(self) -> bool:
        """Note how late it is by both clocks. To be called before each round of `age_seconds`.

        False for the first look since the machine started (or since Redis forgot the last): then no age can be trusted,
        as a clock may start wrong and be set right within minutes.
        """
        content = cast(bytes | None, self._redis.get(STATE_KEY))
        state = self._state = _State.model_validate_json(content) if content else _State()
        boot, wall, since_boot = self._boot_id(), self._wall(), self._since_boot()
        known = state.boots.pop(boot, None)
        if known is None:
            known = _Boot(wall_at_start=wall - since_boot)
        else:
            before = state.steady
            if known.last_look:
                state.steady = max(before, known.last_look[0] + since_boot - known.last_look[1])
            elif state.wall is not None:
                state.steady += max(0.0, wall - state.wall)
                if abs(wall - since_boot - known.wall_at_start) >= _JUMP_SECONDS:
                    # It started with a wrong clock: what that stamped is no older than the start.
                    start = state.steady - since_boot
                    state.stretches.append(_Stretch(begin=start, end=state.steady, wall=known.wall_at_start))
            self._continue_stretch(before, wall)
            state.wall = wall
            known.last_look = (state.steady, since_boot)
        state.boots = dict([*state.boots.items(), (boot, known)][-_MAX_BOOTS:])
        state.stretches = state.stretches[-_MAX_STRETCHES:]
        self._redis.set(STATE_KEY, state.model_dump_json())
        return known.last_look is not None

    def age_seconds(self, moment: float) -> float:
        """How long before the last look the wall clock showed `moment`, for the last time if it did so twice."""
        stretches = self._state.stretches
        shown = [steady for one in stretches if (steady := one.moment_of(moment)) is not None]
        # Jumped over, or not reached yet: as young as the last time at which it showed anything earlier.
        passed = [one.end for one in stretches if one.wall <= moment]
        before_all = stretches[0].begin + moment - stretches[0].wall
        return self._state.steady - max(shown or passed or [before_all])

    def _continue_stretch(self, before: float, wall: float) -> None:
        """`before`: the steady time of the look before this one. The jump, if there was one, came at any time since."""
        steady, stretches = self._state.steady, self._state.stretches
        begin, began_at = (before, wall - (steady - before)) if stretches else (steady, wall)
        if stretches:
            last = stretches[-1]
            last.end = steady
            jumped = wall - (last.wall + steady - last.begin)
            if abs(jumped) < _JUMP_SECONDS:
                return
            log.warning("the clock was set; nothing is taken for older by that", seconds=round(jumped))
        stretches.append(_Stretch(begin=begin, end=steady, wall=began_at))


def _seconds_since_boot() -> float:
    """Goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot_id() -> str:
    """Of this run of the machine: across it the steady clock cannot be compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux: then this process is all that is known to share the clock
        return _ONE_OF_THIS_PROCESS
