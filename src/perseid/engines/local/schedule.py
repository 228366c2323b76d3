"""Decide which rank is tried when: pure bookkeeping without processes, clocks or sockets.

The caller passes the current time, in seconds of any monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from perseid.engines.retry import RetryPolicy, is_straggler
from perseid.pipeline.attempts import Attempt, Ending
from perseid.pipeline.events import RankEvent, RankState


class Schedule:
    """The ranks that are waiting, running, done or failed.

    Parameters
    ----------
    ranks
        Ranks to work on; they are started in ascending order.
    policy
        When a failed rank is tried again.
    former
        By rank, the number of attempts that were made before; numbering continues from there.
    """

    def __init__(
        self, ranks: Iterable[int], policy: RetryPolicy, former: Mapping[int, int] | None = None
    ) -> None:
        self._waiting = [(0.0, rank) for rank in sorted(ranks)]
        self._all = frozenset(rank for _, rank in self._waiting)
        self._policy = policy
        self._last = dict(former or {})
        self._failures: dict[int, int] = {}
        self._running: dict[tuple[int, int], float] = {}
        self._times: list[float] = []
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        """By rank, the last message of each rank that has no attempts left."""
        self.attempts: list[Attempt] = []

    @property
    def finished(self) -> bool:
        """Whether no rank waits or runs."""
        return not self._waiting and not self._running

    @property
    def all_decided(self) -> bool:
        """Whether every rank is done or has no attempts left."""
        # Not the same as `finished`: a stopped rank neither waits nor runs, but is undecided.
        return len(self.done) + len(self.failed) == len(self._all)

    def decided(self, rank: int) -> bool:
        """Whether a rank is done or has no attempts left."""
        return rank in self.done or rank in self.failed

    def ready(self, now: float) -> bool:
        """Whether a waiting rank may be started now."""
        return bool(self._waiting) and self._waiting[0][0] <= now

    def start(self, now: float) -> tuple[int, int]:
        """Start the next rank and return (rank, attempt). Call this only if `ready`."""
        _, rank = heapq.heappop(self._waiting)
        return rank, self._begin(rank, now)

    def start_straggler(self, now: float) -> tuple[int, int] | None:
        """Start a second attempt at the longest-running rank if it is a straggler."""
        # Waiting ranks come first: a second attempt may be wasted work.
        if self._waiting:
            return None
        # A rank with two attempts already has its second chance.
        ranks = [rank for rank, _ in self._running]
        alone = [(began, rank) for (rank, _), began in self._running.items()
                 if ranks.count(rank) == 1]  # fmt: skip
        if not alone:
            return None
        began, rank = min(alone)
        if not is_straggler(now - began, self._times, len(self._all)):
            return None
        return rank, self._begin(rank, now)

    def rivals(self, rank: int) -> list[int]:
        """Numbers of the rank's running attempts, ascending."""
        return sorted(attempt for r, attempt in self._running if r == rank)

    def end(self, attempt: Attempt, now: float) -> RankEvent | None:
        """Note how an attempt ended; return the rank's new state, or None if it is unchanged."""
        began = self._running.pop((attempt.rank, attempt.attempt))
        self.attempts.append(attempt)
        # A stopped attempt says nothing about the rank, and a late attempt does not change a
        # finished one.
        if attempt.ending is Ending.STOPPED or attempt.rank in self.done:
            return None
        if attempt.ending is Ending.DONE:
            self.done.add(attempt.rank)
            # Only successful attempts count: early failures would make all others look slow.
            self._times.append(now - began)
            return _event(attempt, RankState.DONE)
        return self._failed(attempt, now)

    def fail(self, rank: int, message: str) -> RankEvent:
        """Fail a rank that neither waits nor runs; return its new state."""
        self.failed[rank] = message
        return RankEvent(rank, RankState.FAILED, self._last.get(rank, 0), 0, message)

    def give_up(self, message: str) -> list[RankEvent]:
        """Fail every waiting rank; return the new states."""
        events = []
        for _, rank in sorted(self._waiting, key=lambda entry: entry[1]):
            events.append(self.fail(rank, message))
        self._waiting.clear()
        return events

    def _failed(self, attempt: Attempt, now: float) -> RankEvent | None:
        rank = attempt.rank
        failures = self._failures[rank] = self._failures.get(rank, 0) + 1
        if self.rivals(rank):
            return None  # the other attempt decides
        if self._policy.again(attempt.ending, failures):
            heapq.heappush(self._waiting, (now + self._policy.wait(failures), rank))
            return _event(attempt, RankState.RETRYING)
        self.failed[rank] = attempt.message
        return _event(attempt, RankState.FAILED)

    def _begin(self, rank: int, now: float) -> int:
        attempt = self._last[rank] = self._last.get(rank, 0) + 1
        self._running[rank, attempt] = now
        return attempt


def _event(attempt: Attempt, state: RankState) -> RankEvent:
    return RankEvent(attempt.rank, state, attempt.attempt, attempt.rows, attempt.message)
