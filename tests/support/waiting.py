"""Wait for what other threads and processes do, and do several things at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def eventually(condition: Callable[[], Any], seconds: float = 60.0, pause: float = 0.02) -> None:
    """Return once a condition holds; fail if it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come to pass within {seconds:g} s"
        time.sleep(pause)


def in_parallel(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of calls made at once, in order; the first failure is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))
