"""This process as a rank: it joins the job when that is first needed, and leaves it at its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from types import TracebackType
from typing import NoReturn

from perseid.comm.shared_world import SharedGroup, SharedWorld
from perseid.errors import ClosedError, PerseidError

_OWN_GROUP = (1 << 30) - 1
"""Id of the group that contains only this rank; other groups never reach it."""


class _Process:
    """The membership of this process in its job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._world: SharedWorld | None = None
        self._own: SharedGroup | None = None
        # Remembered to recognize forked children.
        self._pid = os.getpid()
        self._error: BaseException | None = None
        self.finalized = False

    @property
    def joined(self) -> bool:
        """Whether this process has joined the job and not left it."""
        return self._world is not None and not self.finalized

    def world(self) -> SharedWorld:
        """The world of all ranks; joins the job if necessary."""
        with self._lock:
            if self.finalized:
                raise ClosedError("MPI.Finalize was called: no further call can be made.")
            if self._world is None:
                self._world = SharedWorld.join()
                self._watch_end()
            return self._world

    def own(self) -> SharedGroup:
        """The group that contains only this rank."""
        world = self.world()
        with self._lock:
            if self._own is None:
                self._own = world.group(_OWN_GROUP, [world.rank])
            return self._own

    def _watch_end(self) -> None:
        # mpi4py finalizes at the end of the program, so programs do not do it themselves.
        atexit.register(self._at_exit)
        # An uncaught exception must also end the other ranks, and atexit functions do not see it.
        # Kept, so that the traceback is still printed by whoever printed it before.
        former = sys.excepthook

        def note(
            kind: type[BaseException], error: BaseException, trace: TracebackType | None
        ) -> None:
            self._error = error
            former(kind, error, trace)

        sys.excepthook = note

    def _at_exit(self) -> None:
        # A forked child runs the same hooks, but the membership is its parent's.
        if os.getpid() == self._pid:
            with contextlib.suppress(PerseidError):
                self.finalize(self._error)

    def finalize(self, error: BaseException | None = None) -> None:
        """Leave the job: once all ranks call this or, after an error, at once."""
        with self._lock:
            world, done = self._world, self.finalized
            self.finalized = True
        if world is None or done:
            return
        try:
            # After an error there may be ranks that never reach the barrier.
            if error is None and world.error is None:
                # A rank that left early would look lost to others that still communicate.
                with world.turn():
                    world.world.calls.barrier()
        finally:
            world.close(error)

    def abort(self, code: int) -> NoReturn:
        """End this process at once, and tell the other ranks."""
        # os._exit below skips the flush of buffered output.
        sys.stdout.flush()
        sys.stderr.flush()
        if self.joined and self._world is not None:
            with contextlib.suppress(PerseidError):
                self._world.close(SystemExit(f"MPI.Abort({code})"))
        # Not sys.exit: another thread, or an except clause, could keep the process alive.
        os._exit(code & 0xFF or 1)


PROCESS = _Process()
