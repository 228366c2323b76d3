"""What all calls of a communicator share: one thread makes them, and none is left half done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import Lock, get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from perseid.comm.connection_pool import ConnectionPool

P = ParamSpec("P")
R = TypeVar("R")


class HasEngine(Protocol):
    """The part of a communicator that the guard uses."""

    @property
    def _engine(self) -> ConnectionPool: ...


C = TypeVar("C", bound=HasEngine)


def guarded(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Decorate a method of a communicator: only its own thread may call it.

    An exception in the middle of a call (Ctrl-C, a signal handler, a user's function in a
    reduction) may have lost bytes of a message or left the other ranks in a collective. It
    therefore ends the communicator, and all ranks are told. An exception before anything was sent
    or received changes nothing.
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
                # No function is called before this assignment: a second Ctrl-C could interrupt it,
                # and the next call would continue with a broken state. Without an owner, the next
                # call goes through `enter`, which ends the communicator.
                engine.interruption, engine.owner = error, None
                engine.end_interrupted()
            raise

    return call


class Turn(AbstractContextManager[None]):
    """The time in which one of several threads holds the lock of a communicator.

    One object serves all threads: a generator for each turn would show in the time of a small call.
    """

    def __init__(self, engine: ConnectionPool, lock: Lock) -> None:
        self._engine, self._lock = engine, lock

    def __enter__(self) -> None:
        self._lock.acquire()
        engine = self._engine
        # The checks of `guarded` still apply: each turn makes its thread the owner.
        engine.owner = get_ident()
        if engine.interruption is not None:
            try:
                engine.end_interrupted()
            except BaseException:
                self._lock.release()
                raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
