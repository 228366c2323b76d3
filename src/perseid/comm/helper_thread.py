"""A thread that takes care of operations while no other thread waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

from perseid.errors import PerseidError

HELP_SECONDS = 0.002
"""Seconds without a waiting thread after which the helper thread takes care of operations."""
HELP_SECONDS_MOST = 0.05
"""Longest such pause; it doubles each time that another thread has taken care of them."""


class Operation(Protocol):
    """An operation that may still be in progress."""

    @property
    def done(self) -> bool:
        """Whether the operation has ended."""
        ...


class HelperThread:
    """Lets operations make progress although no thread waits for them.

    Its methods are called with the lock held, except for ``join``.

    Parameters
    ----------
    lock
        The lock of all that the operations use.
    polling
        Whether a thread is polling the connections.
    lead
        Polls until a condition holds, or a check for failures is due.
    """

    def __init__(
        self,
        lock: threading.Lock,
        polling: Callable[[], bool],
        lead: Callable[[Callable[[], bool]], None],
    ) -> None:
        self._lock, self._polling, self._lead = lock, polling, lead
        self._called = threading.Condition(lock)
        """Notified when there is something to do."""
        self._idle = self._closed = False
        self._operations: list[Operation] = []
        self._thread: threading.Thread | None = None

    def care_for(self, operation: Operation) -> None:
        """Let an operation make progress although no thread waits for it."""
        if operation.done:
            return
        # Finished ones are dropped here, so that the list stays short.
        self._operations = [one for one in self._operations if not one.done]
        self._operations.append(operation)
        if self._thread is None:
            self._thread = threading.Thread(target=self._help, name="perseid-progress", daemon=True)
            self._thread.start()
        elif self._idle:
            self._called.notify()

    def close(self) -> None:
        """Have the thread end."""
        self._closed = True
        self._called.notify_all()

    def join(self) -> None:
        """Wait for the end of the thread, without the lock."""
        if self._thread is not None:
            self._thread.join()

    def _under_way(self) -> bool:
        self._operations = [one for one in self._operations if not one.done]
        return bool(self._operations)

    def _help(self) -> None:
        """Main function of the thread: poll while operations need it."""
        pause = HELP_SECONDS
        # A failure ends the helper; the next call of any thread raises it.
        with self._lock, contextlib.suppress(PerseidError):
            while not self._closed:
                if not self._under_way():
                    self._idle = True
                    self._called.wait()
                    self._idle = False
                    pause = HELP_SECONDS
                # A thread waits for most operations soon, and then needs no helper: give it time.
                self._called.wait(pause)
                if self._polling() or not self._under_way():
                    pause = min(2 * pause, HELP_SECONDS_MOST)
                else:
                    self._lead(lambda: self._closed or not self._under_way())
