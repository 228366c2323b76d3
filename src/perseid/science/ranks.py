"""Rank scores block by block, for surveys too large to sort together with their rows."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""Scores; NaN for rows without one."""
Ranks = NDArray[np.int64]
"""Ranks; 1 for the highest score, 0 for rows without one."""


class Ranker(Protocol):
    """Gives the ranks of a survey's rows in their order, block by block."""

    def take(self, scores: Scores) -> Ranks:
        """Ranks of the next rows, given their scores."""


class AllRanks:
    """The rank of every row, like `anomaly.ranking`: of equal scores, the earlier row ranks first.

    Memory: 8 bytes per score in addition to the scores themselves.

    Parameters
    ----------
    scores
        Scores of all rows, in their order.
    """

    def __init__(self, scores: Scores) -> None:
        self._ascending = scores[~np.isnan(scores)]
        self._ascending.sort()
        equal = self._ascending[1:] == self._ascending[:-1]
        self._tied = np.unique(self._ascending[1:][equal])
        self._seen = np.zeros(len(self._tied), np.int64)

    def take(self, scores: Scores) -> Ranks:
        """Ranks of the next rows; blocks must come in the order of the rows."""
        good = np.flatnonzero(~np.isnan(scores))
        good = good[np.argsort(scores[good], kind="stable")]  # sorted lookups use the cache better
        values = scores[good]
        above = np.searchsorted(self._ascending, values, side="right")
        found = len(self._ascending) - above + 1 + self._earlier(values)
        ranks = np.zeros(len(scores), np.int64)
        ranks[good] = found
        return ranks

    def _earlier(self, values: Scores) -> NDArray[np.int64]:
        """How many earlier rows have exactly the same score."""
        earlier = np.zeros(len(values), np.int64)
        if not len(self._tied):
            return earlier
        place = np.minimum(np.searchsorted(self._tied, values), len(self._tied) - 1)
        tied = np.flatnonzero(self._tied[place] == values)
        order = tied[np.argsort(place[tied], kind="stable")]
        groups, starts, counts = np.unique(place[order], return_index=True, return_counts=True)
        within = np.arange(len(order)) - np.repeat(starts, counts)
        earlier[order] = within + np.repeat(self._seen[groups], counts)
        self._seen[groups] += counts
        return earlier


class FirstRanks:
    """The ranks of only the highest scores; 0 for every other row.

    Parameters
    ----------
    scores
        Scores of all rows, in their order.
    count
        How many rows get a rank.
    """

    def __init__(self, scores: Scores, count: int) -> None:
        good = int(np.count_nonzero(~np.isnan(scores)))
        places = np.flatnonzero(scores >= _least(scores, min(count, good)))
        best = places[np.argsort(-scores[places], kind="stable")][:count]
        order = np.argsort(best)
        self._places, self._ranks = best[order], order + 1
        self._row = 0

    def take(self, scores: Scores) -> Ranks:
        """Ranks of the next rows; blocks must come in the order of the rows."""
        first, last = np.searchsorted(self._places, [self._row, self._row + len(scores)])
        ranks = np.zeros(len(scores), np.int64)
        ranks[self._places[first:last] - self._row] = self._ranks[first:last]
        self._row += len(scores)
        return ranks


def _least(scores: Scores, count: int) -> float:
    """The lowest of the `count` highest scores; infinite if `count` is 0."""
    if not count:
        return np.inf
    ordered = -scores  # NaN sorts last
    ordered.partition(count - 1)
    return float(-ordered[count - 1])
