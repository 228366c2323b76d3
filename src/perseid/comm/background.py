"""A collective that runs in the background: its call, its end, and its result."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from perseid.comm.communicator import Communicator

T = TypeVar("T")


class Background(Generic[T]):
    """A collective that runs in the thread of its group."""

    def __init__(self, call: Callable[[Communicator], T]) -> None:
        self.call = call
        self.error: BaseException | None = None
        self._result: T | None = None
        self._done = False
        # A lock rather than an Event, which makes five objects for each call: it is held until the
        # call has ended.
        self._running = threading.Lock()
        self._running.acquire()
        self._then: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether the call has ended, with a result or an error."""
        return self._done

    def run(self, comm: Communicator) -> None:
        """Make the call; an exception is kept, and `result` raises it."""
        try:
            self._result = self.call(comm)
        # The thread must go on for the calls that follow, whatever this one raised.
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Mark the call as ended: wake the threads that wait, and run the callbacks."""
        self._done = True
        self._running.release()
        while self._then:
            self._then.pop(0)()

    def then(self, call: Callable[[], None]) -> None:
        """Run a callback once the call has ended, in the thread that ended it or in this one."""
        self._then.append(call)
        # It may have ended between the two lines. Removing the callback decides which thread runs
        # it, so that it runs exactly once.
        if self.done:
            with contextlib.suppress(ValueError):  # the ending thread runs it
                self._then.remove(call)
                call()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the call has ended; False if that took longer than ``seconds``."""
        if self._done:
            return True
        # threading's lock does not wait longer than this.
        longest = -1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        if not self._running.acquire(timeout=longest):
            return False
        # For the next thread that waits.
        self._running.release()
        return True

    def result(self) -> T:
        """What the call returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # None is a valid result
