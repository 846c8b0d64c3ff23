"""Threads that make and take for another: in order, never far ahead, and all ended with whoever ends first."""

import gc
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import ContextVar

import pytest

from worker.stages import Channel, StoppedError, Taker, made_ahead

TOO_LONG_SECONDS = 20.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def counting(
    count: int, seen: Callable[[int], None] = lambda number: None
) -> Callable[..., Generator[int, None, None]]:
    def make(channel: Channel[int]) -> Generator[int, None, None]:
        for number in range(count):
            seen(number)
            yield number

    return make


def test_items_come_in_order_and_to_an_end(threads: ThreadPoolExecutor) -> None:
    taken: list[int] = []
    with Taker(threads, taken.extend, 1) as taker:
        for item in made_ahead(threads, counting(50), 2):
            taker.put(item)
    taker.wait()
    assert taken == list(range(50))


def test_a_maker_goes_no_further_ahead_than_it_may(threads: ThreadPoolExecutor) -> None:
    # given a maker with two places before it
    made, has_made_three = [], threading.Event()

    def note(number: int) -> None:
        made.append(number)
        if number == 3:
            has_made_three.set()

    with closing(made_ahead(threads, counting(10, note), 2)) as items:
        # when one item is taken
        assert next(items) == 0
        # then two more fill the places, and one is in its hands
        assert has_made_three.wait(TOO_LONG_SECONDS)
        assert made == [0, 1, 2, 3]


def test_an_error_of_the_maker_comes_behind_what_it_made(threads: ThreadPoolExecutor) -> None:
    def make(channel: Channel[int]) -> Generator[int, None, None]:
        yield 1
        yield 2
        raise KeyError("three")

    got: list[int] = []
    with pytest.raises(KeyError, match="three"):
        got.extend(made_ahead(threads, make, 3))
    assert got == [1, 2]


def test_a_maker_that_is_not_wanted_any_more_is_closed_in_its_own_thread(threads: ThreadPoolExecutor) -> None:
    # given one that waits for a place, and one that asks whether it is wanted
    closed_in: list[str] = []

    def waiting(channel: Channel[int]) -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed_in.append(threading.current_thread().name)

    def asking(channel: Channel[int]) -> Generator[int, None, None]:
        yield 1
        try:
            while True:
                channel.demand_open()
        finally:
            closed_in.append(threading.current_thread().name)

    # when the taker leaves
    with ThreadPoolExecutor(2, thread_name_prefix="maker") as makers:
        for make in (waiting, asking):
            with closing(made_ahead(makers, make, 1)) as items:
                next(items)
    # then both have been closed, where they ran
    assert [name.split("_")[0] for name in closed_in] == ["maker", "maker"]


def test_an_error_of_the_taker_comes_with_the_next_item_or_at_the_end(threads: ThreadPoolExecutor) -> None:
    def take_one(channel: Channel[int]) -> None:
        for _ in channel:
            raise KeyError("not this one")

    def give_many() -> None:
        with Taker(threads, take_one, 1) as taker:
            for number in range(10):
                taker.put(number)

    with pytest.raises(KeyError):
        give_many()
    with Taker(threads, take_one, 1) as taker:
        taker.put(1)
    with pytest.raises(KeyError):
        taker.wait()


def test_a_taker_whose_giver_fails_is_stopped(threads: ThreadPoolExecutor) -> None:
    ended: list[type[BaseException] | None] = []

    def take(channel: Channel[int]) -> None:
        try:
            list(channel)
        except StoppedError as error:
            ended.append(type(error))
            raise

    def give_one_and_fail() -> None:
        with Taker(threads, take, 1) as taker:
            taker.put(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_one_and_fail()
    threads.shutdown()
    assert ended == [StoppedError]


def test_threads_know_what_the_caller_has_said(threads: ThreadPoolExecutor) -> None:
    job: ContextVar[str] = ContextVar("job")
    job.set("of the caller")
    heard: list[str] = []

    def make(channel: Channel[str]) -> Generator[str, None, None]:
        yield job.get()

    def take(channel: Channel[str]) -> None:
        heard.extend([*channel, job.get()])

    with Taker(threads, take, 1) as taker:
        for item in made_ahead(threads, make, 1):
            taker.put(item)
    taker.wait()
    assert heard == ["of the caller", "of the caller"]


class Large:
    pass


@pytest.mark.parametrize("stage", ["maker", "taker"])
def test_an_error_holds_nothing_longer_than_it_is_held(stage: str) -> None:
    # given a thread that fails while it has something large in its hands
    held: list[weakref.ref[Large]] = []

    def fail(channel: Channel[int]) -> Generator[int, None, None]:
        large = Large()
        held.append(weakref.ref(large))
        yield from ()
        raise MemoryError

    def take_and_fail(channel: Channel[int]) -> None:
        list(fail(channel))

    def run() -> None:
        with ThreadPoolExecutor(1) as threads:
            if stage == "maker":
                next(made_ahead(threads, fail, 1))
            with Taker(threads, take_and_fail, 1) as taker:
                taker.put(1)
            taker.wait()

    # when the error has been dealt with, and nobody collects garbage
    gc.disable()
    try:
        with suppress(MemoryError):
            run()
        # then it has gone
        assert held[0]() is None
    finally:
        gc.enable()
