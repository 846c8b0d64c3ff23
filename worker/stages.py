"""Stages of a pipeline in threads of their own, joined by channels that hold few items.

    [a thread: made_ahead] ──channel──▶ [the caller] ──channel──▶ [a thread: Taker]

Every error reaches the caller with its own type, behind all that was made before it. Whoever stops, stops its
neighbours: who waits at a channel hears of it at once, who works when it comes there. A thread has the caller's context
variables, so that what it logs names the job. The caller gives the executor, and with its end all threads have ended.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from contextvars import copy_context
from types import TracebackType
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")


class StoppedError(Exception):
    """The other end of the channel has gone: nobody wants what this one makes, or it will not get the rest."""


class Channel(Generic[_Item]):
    """Items on their way from one thread to one other, in order, and not more than a few."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._items: deque[_Item] = deque()
        self._is_complete = self._is_stopped = False
        self._changed = threading.Condition()

    def put(self, item: _Item) -> None:
        """Wait for a place. Raises `StoppedError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or len(self._items) < self._places)
            self.demand_open()
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_Item]:
        """Yield what is put, until it is complete. Raises `StoppedError`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped or self._items or self._is_complete)
                self.demand_open()
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # not to be held while the next is waited for

    def demand_open(self) -> None:
        """Raise `StoppedError` if there is nobody at the other end."""
        if self._is_stopped:
            raise StoppedError

    def complete(self) -> None:
        """Say that nothing more will be put."""
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Have both ends raise from now on; what is on its way is dropped."""
        with self._changed:
            self._is_stopped = True
            self._items.clear()
            self._changed.notify_all()


def made_ahead(
    threads: Executor, make: Callable[[Channel[_Item]], Generator[_Item, None, None]], places: int
) -> Generator[_Item, None, None]:
    """Yield what the generator `make` gives, which runs in a thread, `places` items and the one in its hands ahead.

    `make` gets the channel to ask whether its items are still wanted. Close this one to stop it.
    """
    channel: Channel[_Item] = Channel(places)

    def fill() -> None:
        # Closed here, where it ran: what it holds is used by one thread.
        with closing(make(channel)) as items:
            try:
                for item in items:
                    channel.put(item)
            except StoppedError:
                pass
            finally:
                channel.complete()

    filled = None
    try:
        filled = threads.submit(copy_context().run, fill)  # a signal may raise here, with the thread begun
        yield from channel
        filled.result()
    finally:
        channel.stop()
        del filled  # an error's traceback leads here: it would hold itself, and all that its frames hold


class Taker(Generic[_Item]):
    """A function in a thread, to which items are put one by one.

    As a context manager: on leaving it has got all, and goes on until it is done with them; on leaving with an error it
    is stopped.
    """

    def __init__(self, threads: Executor, take: Callable[[Channel[_Item]], None], places: int) -> None:
        """`take` iterates over the channel that it gets."""
        self._channel: Channel[_Item] = Channel(places)

        def run() -> None:
            try:
                take(self._channel)
            finally:
                self._channel.stop()

        try:
            self._ended: Future[None] = threads.submit(copy_context().run, run)
        except BaseException:  # a signal's, with the thread begun
            self._channel.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._channel.complete()
        else:
            self._channel.stop()

    def put(self, item: _Item) -> None:
        """Wait for a place. Raises what the function raised."""
        try:
            self._channel.put(item)
        except StoppedError:
            self.wait()
            raise

    def wait(self) -> None:
        """Wait until the function has ended. Raises what it raised; then there is nothing more to ask."""
        ended = self._ended
        try:
            ended.result()
        except BaseException:
            del self._ended  # as above
            raise
        finally:
            del ended

    def demand_health(self) -> None:
        """Raise what the function raised, if it has ended so."""
        if self._ended.done():
            self.wait()
