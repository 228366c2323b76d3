"""A worker's own measurements: the times of its stages, and its memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

JOIN_SECONDS = 0.1
"""Intervals of a stage that are nearer than this are drawn as one."""


class Timeline:
    """Intervals of stages, seconds since the epoch (UTC)."""

    def __init__(self) -> None:
        self.began = time.time()
        self._spans: list[tuple[str, float, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block of code as one interval of a stage."""
        began = time.time()
        try:
            yield
        finally:
            self.add(name, [(began, time.time())])

    def add(self, name: str, spans: Iterable[tuple[float, float]]) -> None:
        """Intervals of a stage measured elsewhere."""
        self._spans += [(name, start, end) for start, end in spans]

    def seconds(self, name: str) -> float:
        """Sum of a stage's intervals."""
        return sum(end - start for stage, start, end in self._spans if stage == name)

    def elapsed(self) -> float:
        """Seconds since the timeline was made."""
        return time.time() - self.began

    def joined(self) -> tuple[tuple[str, float, float], ...]:
        """Intervals by start; those of one stage that nearly touch are one."""
        out: list[tuple[str, float, float]] = []
        last: dict[str, int] = {}
        for stage, start, end in sorted(self._spans, key=lambda span: span[1]):
            place = last.get(stage)
            if place is not None and start - out[place][2] < JOIN_SECONDS:
                out[place] = (stage, out[place][1], max(end, out[place][2]))
            else:
                last[stage] = len(out)
                out.append((stage, start, end))
        return tuple(out)


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, MiB; 0 where the system does not say.

    Linux' VmHWM, not ``ru_maxrss``: that one begins with what the parent had when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
