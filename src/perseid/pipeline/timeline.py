"""A worker's own measurements: the times of its stages, and its memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

JOIN_SECONDS = 0.1
"""Intervals of the same stage that are closer than this (in seconds) are merged."""


class Timeline:
    """Intervals of stages, in seconds since the epoch (UTC)."""

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
        """Add intervals of a stage that were measured elsewhere."""
        self._spans += [(name, start, end) for start, end in spans]

    def seconds(self, name: str) -> float:
        """Total length of a stage's intervals, in seconds."""
        return sum(end - start for stage, start, end in self._spans if stage == name)

    def elapsed(self) -> float:
        """Seconds since the timeline was created."""
        return time.time() - self.began

    def joined(self) -> tuple[tuple[str, float, float], ...]:
        """Intervals sorted by start; those of one stage that nearly touch are merged."""
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
    """Peak resident memory of this process so far, in MiB; 0 if the system does not tell.

    Reads Linux's VmHWM, not ``ru_maxrss``, because the latter starts with the parent's value at the
    fork.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
