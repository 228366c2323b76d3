"""When to try a rank again, and when to try it twice at once: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from perseid.errors import BadInputError
from perseid.pipeline.attempts import Ending

FINAL = frozenset({Ending.DONE, Ending.BAD_INPUT})
"""Endings that another attempt cannot change."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a rank is tried, and how long to wait in between."""

    retries: int = 2
    """Attempts after the first; 0 or more."""
    first_wait: float = 0.5
    """Seconds before the second attempt."""
    factor: float = 2.0
    """Each further wait is longer by this factor."""
    longest_wait: float = 30.0
    """Seconds."""

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise BadInputError(f"retries must be 0 or more, not {self.retries}")

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failed attempts (1 or more)."""
        return min(self.first_wait * self.factor ** (failures - 1), self.longest_wait)

    def again(self, ending: Ending, failures: int) -> bool:
        """Whether a rank that failed `failures` times, last like this, is tried again."""
        return ending not in FINAL and failures <= self.retries


def is_straggler(
    elapsed: float,
    finished: Sequence[float],
    ranks: int,
    *,
    factor: float = 3.0,
    fraction: float = 0.5,
    floor: float = 5.0,
) -> bool:
    """Whether a second attempt beside a running one is worth an idle worker.

    Parameters
    ----------
    elapsed
        Seconds that the running attempt has taken so far.
    finished
        Seconds that each finished attempt took.
    ranks
        How many ranks the run has.
    factor
        It must have taken so many times the median of the finished ones.
    fraction
        So much of the run must be finished: early on, the median means little.
    floor
        Attempts shorter than this many seconds are never doubled.
    """
    if ranks < 2 or len(finished) < fraction * ranks:
        return False
    return elapsed > max(floor, factor * median(finished))
