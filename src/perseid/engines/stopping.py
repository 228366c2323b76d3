"""Count Ctrl-C and SIGTERM for a loop to check, instead of raising at an arbitrary line."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequests:
    """Counts SIGINT and SIGTERM inside the context; on leaving, the former handlers are restored.

    Outside the main thread, where Python allows no signal handlers, the count stays 0.
    """

    def __init__(self) -> None:
        self.count = 0
        """Number of signals: 1 means stop in an orderly way, 2 or more mean stop at once."""
        self.number = 0
        """Number of the last signal received; 0 if there was none."""
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # The engine may run in a thread of a notebook or a server, which keeps its own handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.number = number
