"""When to retry a rank, and when to run two attempts at once: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from perseid.errors import BadInputError
from perseid.pipeline.attempts import Ending

# A bad file stays bad, while a killed process, a timeout or a store may succeed next time.
FINAL = frozenset({Ending.DONE, Ending.BAD_INPUT})
"""Endings that another attempt cannot change."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a rank is tried, and how long to wait between attempts."""

    retries: int = 2
    """Number of attempts after the first; 0 or more."""
    first_wait: float = 0.5
    """Seconds before the second attempt."""
    factor: float = 2.0
    """Factor by which each further wait is longer."""
    longest_wait: float = 30.0
    """Maximum wait, in seconds."""
    same_memory: bool = True
    """Whether a rank that ran out of memory is tried again; False if its caller submits it again
    with more memory."""

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise BadInputError(f"retries must be 0 or more, not {self.retries}")

    def wait(self, failures: int) -> float:
        """Seconds to wait after this many failed attempts (1 or more)."""
        return min(self.first_wait * self.factor ** (failures - 1), self.longest_wait)

    def again(self, ending: Ending, failures: int) -> bool:
        """Whether a rank is tried again after `failures` failures, the last with this ending."""
        if ending is Ending.OUT_OF_MEMORY and not self.same_memory:
            return False
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
    """Whether an idle worker should start a second attempt beside a running one.

    Parameters
    ----------
    elapsed
        Seconds that the running attempt has taken so far.
    finished
        Seconds that each finished attempt took.
    ranks
        Number of ranks of the run.
    factor
        Multiple of the median of `finished` that the attempt must have taken.
    fraction
        Fraction of the ranks that must be finished; early on, the median means little.
    floor
        Seconds below which no second attempt is started.
    """
    if ranks < 2 or len(finished) < fraction * ranks:
        return False
    # The median, since a mean would grow with the very stragglers that are looked for.
    return elapsed > max(floor, factor * median(finished))
