"""A collective in the background: its call, its end, and its result."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from perseid.comm.communicator import Communicator

T = TypeVar("T")


class Background(Generic[T]):
    """A collective that goes on in the thread of its group."""

    def __init__(self, call: Callable[[Communicator], T]) -> None:
        self.call = call
        self.error: BaseException | None = None
        self._result: T | None = None
        self._ended = threading.Event()
        self._then: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether it has come to an end."""
        return self._ended.is_set()

    def run(self, comm: Communicator) -> None:
        """Make the call; what it raises is kept for whoever asks for the result."""
        try:
            self._result = self.call(comm)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Tell those who wait that it has come to an end."""
        self._ended.set()
        while self._then:
            self._then.pop(0)()

    def then(self, call: Callable[[], None]) -> None:
        """Have something called once it has come to an end, in whatever thread that is."""
        self._then.append(call)
        if self.done:
            with contextlib.suppress(ValueError):  # its thread is calling it
                self._then.remove(call)
                call()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for its end without helping; False if it has not come in time."""
        return self._ended.wait(seconds)

    def result(self) -> T:
        """What the call returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # it may well be None
