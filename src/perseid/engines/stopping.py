"""Count Ctrl-C and SIGTERM for a loop to check, instead of raising at an arbitrary line."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequests:
    """Counts SIGINT and SIGTERM while it is entered; the former handlers come back after.

    Outside the main thread, where Python takes no handlers, the count stays 0.
    """

    def __init__(self) -> None:
        self.count = 0
        """1: stop, leaving things in order; 2 or more: at once."""
        self.number = 0
        """The last signal that came; 0: none."""
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.number = number
