"""What all calls of a communicator have in common: one thread, and nothing goes on half-done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from perseid.comm.connection_pool import ConnectionPool

P = ParamSpec("P")
R = TypeVar("R")


class HasEngine(Protocol):
    """A communicator, as far as the guard knows it."""

    @property
    def _engine(self) -> ConnectionPool: ...


C = TypeVar("C", bound=HasEngine)


def guarded(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """A method that only the communicator's own thread may call, and that ends it if interrupted.

    An exception that comes in the middle of a call (Ctrl-C, a signal handler's, one of the user's
    own function in a reduction) may have lost bytes of a message, or left the other ranks in a
    collective: the communicator is over then, and all ranks are told. One that comes before
    anything was sent or received changes nothing.
    """

    @functools.wraps(method)
    def call(self: C, /, *args: P.args, **keywords: P.kwargs) -> R:
        engine = self._engine
        if engine.owner != get_ident() or engine.failure.error is not None:
            engine.enter()
        begun = engine.begun
        try:
            return method(self, *args, **keywords)
        except BaseException as error:
            if engine.begun != begun:
                # Nothing is called before this: a second Ctrl-C would strike there, and the call
                # after it would go on with what this one left. `enter` sees that there is no owner.
                engine.interruption, engine.owner = error, None
                engine.end_interrupted()
            raise

    return call
