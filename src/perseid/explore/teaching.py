"""Ratings of one run, and the second ranking that is learned from them, for all visitors."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, PerseidError
from perseid.explore.explored_run import ExploredRun
from perseid.explore.object_table import Category
from perseid.explore.ratings import Rating, RatingsFile
from perseid.explore.run_features import RunFeatures
from perseid.explore.views import names_of
from perseid.science.preference import Preference, blended, proposals, quantiles

RATING, LEARNED, LEARNED_RANK = "rating", "learned_score", "learned_rank"
"""Columns that are added to the catalogue's own."""
QUEUE, SHOWN = 5, 24
"""Number of objects to rate, and of first objects of the ranking, on the page."""
TOP = 100
"""Number of first objects that precision is measured with."""


@dataclass(frozen=True)
class Precision:
    """Share of the first hundred objects with a wanted label, for both rankings."""

    wanted: int
    """Number of objects with a wanted label in the catalogue."""
    by_score: float
    """Share by the anomaly score, 0 to 1."""
    learned: float
    """Share by the learned ranking, 0 to 1."""


class Teaching:
    """The ratings of one run and what is learned from them.

    Parameters
    ----------
    explored
        The run.
    rater
        Name stored with each rating; empty for none.
    """

    def __init__(self, explored: ExploredRun, rater: str = "") -> None:
        self._explored = explored
        self.file = RatingsFile(explored.store, rater)
        """The file of ratings at the run's prefix."""
        self._lock = threading.RLock()
        self._rows: dict[tuple[str, int], int] = {}
        self._table_seen: object = None
        self._published: object = None
        self._top: NDArray[np.int64] = np.empty(0, np.int64)
        self._ranking: NDArray[np.float64] = np.empty(0)
        self._quantile: NDArray[np.float64] = np.empty(0)

    def rate(self, index: int, rating: int) -> Rating:
        """Store a rating of an object, given by its row number in the catalogue."""
        partition, row = self._explored.place(index)
        table = self._explored.needed_table()
        has_id = "object_id" in table.names
        name = names_of(table, np.array([index]))[0] if has_id else None
        return self.file.rate(partition, row, name, rating)

    def undo(self) -> Rating | None:
        """Undo the last rating."""
        return self.file.undo()

    def rated(self) -> dict[int, int]:
        """Ratings by row number in the catalogue, in the order of rating."""
        found = {}
        for place, one in self.file.current().items():
            index = self._row_of(place)
            if index is not None:
                found[index] = one.rating
        return found

    def _row_of(self, place: tuple[str, int]) -> int | None:
        if place not in self._rows:
            # The file names partition and row, since row numbers change with each catalogue.
            found = self._explored.find(*place)
            if found is None:
                return None
            self._rows[place] = found
        return self._rows[place]

    def ranking(self) -> NDArray[np.float64]:
        """Scores of the learned ranking, (n,); NaN for objects without an anomaly score."""
        with self._lock:
            table, version = self._explored.needed_table(), len(self.file.history)
            last = self.file.history[-1].rated_at if version else 0.0
            # Changes with each rating, each undo, and each new catalogue.
            seen = (id(table), version, last)
            if self._table_seen == seen:
                return self._ranking
            # A new catalogue has other row numbers.
            if not len(self._quantile) or len(self._quantile) != len(table):
                self._rows.clear()
                self._quantile = quantiles(table.numbers("anomaly_score"))
            self._ranking = blended(self._quantile, self._learned())
            self._top = self._first(TOP)
            self._table_seen = seen
            return self._ranking

    def _learned(self) -> NDArray[np.float64] | None:
        rated = self.rated()
        features = self._features()
        if not rated or features is None:
            return None
        rows = np.array(list(rated))
        learned = Preference.of(features.values[rows], features.moments, list(rated.values()))
        return learned.values(features.values)

    def publish(self) -> None:
        """Add the columns of ratings and ranking, so that the table can be sorted by them."""
        with self._lock:
            self.ranking()
            if self._published != self._table_seen:
                self._make_columns()
                self._published = self._table_seen

    def _make_columns(self) -> None:
        table, rated = self._explored.needed_table(), self.rated()
        # No empty columns before the first rating; after an undo they stay, but are empty.
        if not rated and RATING not in table.added:
            return
        ratings = np.full(len(table), np.nan)
        ratings[list(rated)] = list(rated.values())
        order = np.argsort(-np.nan_to_num(self._ranking, nan=-np.inf), kind="stable")
        ranks = np.empty(len(table))
        ranks[order] = np.arange(1.0, len(table) + 1)
        ranks[np.isnan(self._ranking)] = np.nan
        for name, values in ((RATING, ratings), (LEARNED, self._ranking), (LEARNED_RANK, ranks)):
            table.add(name, values)
            self._explored.changed(name)

    def queue(self) -> NDArray[np.int64]:
        """Row numbers of the next objects to rate."""
        ranking, features = self.ranking(), self._features()
        rated = np.array(list(self.rated()), np.int64)
        if features is None:
            # Without features nothing can be learned: propose the highest scores.
            values = np.nan_to_num(ranking, nan=-np.inf)
            values[rated] = -np.inf
            order = np.argsort(-values, kind="stable")[:QUEUE]
            return np.asarray(order[np.isfinite(values[order])], np.int64)
        # The number of ratings as the seed: the same proposals after a reload, new ones after a
        # rating.
        return proposals(ranking, features.values, features.moments, rated, QUEUE, seed=len(rated))

    def top(self, count: int = SHOWN) -> NDArray[np.int64]:
        """Row numbers of the first objects of the learned ranking, at most a hundred."""
        self.ranking()
        return self._top[:count]

    def _first(self, count: int) -> NDArray[np.int64]:
        values = np.nan_to_num(self._ranking, nan=-np.inf)
        # A partition first: sorting a million values for the first hundred would be slow.
        size = min(count, len(values))
        found = np.argpartition(-values, size - 1)[:size] if size else np.empty(0, np.int64)
        # Ties in the order of the catalogue, so that the list is the same each time.
        found = found[np.lexsort((found, -values[found]))]
        return np.asarray(found[np.isfinite(values[found])], np.int64)

    def labels(self) -> tuple[Category, ...]:
        """The labels except 0, which can be wanted; empty if the survey has no labels."""
        table = self._explored.needed_table()
        if not table.has("label"):
            return ()
        return tuple(one for one in table.categories("label") if one.value != 0)

    def precision(self, wanted: Collection[int]) -> Precision | None:
        """Precision of both rankings for these labels; None without labels or scores."""
        table = self._explored.needed_table()
        if not table.has("label") or not table.has("anomaly_score"):
            return None
        unknown = set(wanted) - {one.value for one in self.labels()}
        # The labels come from the address.
        if unknown:
            raise BadInputError(f"there is no label {min(unknown)} in the catalogue")
        good = np.isin(table.numbers("label"), list(wanted))
        by_score = table.order("anomaly_score", descending=True)[:TOP]
        return Precision(
            int(good.sum()), float(good[by_score].mean()), float(good[self.top(TOP)].mean())
        )

    def _features(self) -> RunFeatures | None:
        try:
            return self._explored.features()
        except PerseidError:
            return None
