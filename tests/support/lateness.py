"""How late this machine lets a thread run: what a test with a limit in seconds may add to it."""

from __future__ import annotations

import threading
import time

TICK = 0.02
HOPS = 3
"""Threads in a row between a fault and who names it: the server, the client's, the caller's."""


class Lateness:
    """Measures while its ``with`` block lasts."""

    def __init__(self) -> None:
        self.worst = 0.0
        """Seconds by which a sleep was longest too long."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            began = time.monotonic()
            over = self._over.wait(TICK)
            if over:
                return
            self.worst = max(self.worst, time.monotonic() - began - TICK)

    @property
    def allowance(self) -> float:
        """Seconds that are the machine's fault; a few thousandths where it has nothing to do."""
        return HOPS * self.worst

    def __enter__(self) -> Lateness:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
