"""Nothing grows old because a clock was set, and everything does because time went by."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from app.expiry_clock import ExpiryClock

DAY = 24 * 3600.0


@dataclass
class World:
    """A machine whose true time is known, and how much its clock shows too much."""

    true_seconds: float = 1_700_000_000.0
    error_seconds: float = 0.0
    boot: str = "first"
    booted_at: float = 0.0

    def wall(self) -> float:
        return self.true_seconds + self.error_seconds

    def clock(self, redis: Redis) -> ExpiryClock:
        return ExpiryClock(redis, self.wall, lambda: self.true_seconds - self.booted_at, lambda: self.boot)


def test_ages_are_what_went_by_also_across_a_restart_of_the_gateway_and_of_the_machine(redis: Redis) -> None:
    # Given a clock that was looked at
    world = World()
    moment = world.wall()
    trusted = [world.clock(redis).look() for _ in range(2)]
    ages = []

    # When a day goes by, then another with a restart of the gateway, then another with one of the machine
    for boot in ("first", "first", "second", "second"):
        world.true_seconds += DAY
        world.boot = boot
        clock = world.clock(redis)
        trusted.append(clock.look())
        ages.append(clock.age_seconds(moment))

    # Then the first look at a machine's clock is not to be trusted yet
    assert trusted == [False, True, True, True, False, True]
    assert [ages[index] for index in (0, 1, 3)] == [DAY, 2 * DAY, 4 * DAY]


def test_a_machine_that_starts_in_1970_makes_nothing_old(redis: Redis) -> None:
    # Given
    world = World()
    world.clock(redis).look()
    world.clock(redis).look()
    before = world.wall()

    # When it is started anew with its clock at zero, which is set right a minute later
    world.true_seconds += 100
    world.boot, world.booted_at, world.error_seconds = "second", world.true_seconds - 10, -world.true_seconds
    during = world.wall()
    first = world.clock(redis).look()
    world.true_seconds += 60
    world.error_seconds = 0
    world.true_seconds += 100
    clock = world.clock(redis)

    # Then
    assert (first, clock.look()) == (False, True)
    assert clock.age_seconds(before) == pytest.approx(260)
    assert clock.age_seconds(during) <= 160


@pytest.mark.parametrize("jump_seconds", [61.0, DAY, 53 * 365 * DAY])
def test_a_clock_set_forward_makes_nothing_older(redis: Redis, jump_seconds: float) -> None:
    # Given
    world = World()
    clock = world.clock(redis)
    clock.look()
    clock.look()
    before = world.wall()
    world.true_seconds += 100

    # When
    world.error_seconds = jump_seconds
    clock.look()
    after = world.wall()
    world.true_seconds += 100
    clock.look()

    # Then also not for the gateway that comes next
    for one in (clock, world.clock(redis)):
        one.look()
        assert one.age_seconds(before) == pytest.approx(200)
        assert one.age_seconds(after) == pytest.approx(100)


def test_a_clock_that_was_wrong_for_a_while_and_set_right_forgets_it(redis: Redis) -> None:
    # Given a clock that is set a year forward
    world = World()
    clock = world.clock(redis)
    clock.look()
    clock.look()
    before = world.wall()
    world.error_seconds = 365 * DAY
    clock.look()

    # When it is set back
    world.true_seconds += 100
    world.error_seconds = 0
    clock.look()

    # Then what was there before ages as if nothing had been, and so does what comes
    after = world.wall()
    world.true_seconds += 100
    clock.look()
    assert clock.age_seconds(before) == pytest.approx(200)
    assert clock.age_seconds(after) == pytest.approx(100)


STEPS = st.tuples(
    st.floats(0, 3 * DAY),  # time goes by
    st.one_of(st.just(0.0), st.floats(-400 * DAY, 400 * DAY)),  # the clock is set
    st.booleans(),  # the gateway is started anew
)


@given(steps=st.lists(STEPS, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_done_to_the_clock_nothing_is_taken_for_older_than_it_is(
    redis: Redis, steps: list[tuple[float, float, bool]]
) -> None:
    # Given a clock that is looked at often, as the janitor does, and things made at any time
    redis.flushall()
    world = World()
    clock = world.clock(redis)
    clock.look()
    clock.look()
    made = []
    for passed_seconds, set_by_seconds, restarted in steps:
        made.append((world.true_seconds, world.wall()))

        # When
        world.true_seconds += passed_seconds
        clock.look()
        world.true_seconds += 100
        world.error_seconds += set_by_seconds
        made.append((world.true_seconds, world.wall()))
        world.true_seconds += 200
        clock = world.clock(redis) if restarted else clock
        clock.look()

        # Then each seems at most as old as it is (but for jumps too small to be told from none)
        for true_moment, stamp in made:
            assert clock.age_seconds(stamp) <= world.true_seconds - true_moment + 120

        # and where the clock was never set, exactly as old
        if all(step[1] == 0 for step in steps):
            ages = [clock.age_seconds(stamp) for _, stamp in made]
            assert ages == pytest.approx([world.true_seconds - true_moment for true_moment, _ in made])
