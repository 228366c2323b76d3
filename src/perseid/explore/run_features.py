"""The features of all objects in memory, from which maps, neighbors and explanations are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, NotFoundError
from perseid.explore.object_table import ObjectTable
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.merge import survey_metric
from perseid.pipeline.rank_outputs import (
    BrokenRankError,
    read_records,
    stream_moments,
    stream_results,
)
from perseid.pipeline.stored import Records
from perseid.plaintext import option
from perseid.science import Metric, Moments, Neighbors, Partial, nearest
from perseid.storage import Storage

EMBEDDING = "embedding"
MOST_BYTES = 4 << 30
"""Maximum size of all features in memory, in bytes."""
BLOCK = 65_536
"""Number of rows that are projected at once, which bounds the additional memory."""


@dataclass(frozen=True, eq=False)
class RunFeatures:
    """The features that the model gives for each object besides its predictions."""

    values: NDArray[np.float32]
    """Features in the order of the catalogue, (n, d); NaN for objects without any."""
    groups: Mapping[str, int]
    """Number of features of each group, in order."""
    moments: Moments
    """Moments of the features of the whole survey."""
    metric: Metric
    """Metric of the anomaly score."""
    reasons: tuple[str, ...] = ()
    """Reasons why some objects have no features."""

    def group(self, name: str) -> slice:
        """Columns of a group; all columns if there is no group of this name."""
        start = 0
        for one, width in self.groups.items():
            if one == name:
                return slice(start, start + width)
            start += width
        return slice(0, start)

    @property
    def compared(self) -> slice:
        """Columns that neighbors are found by, as in `perseid similar`: the embedding, else all."""
        return self.group(EMBEDDING)

    def neighbors(self, index: int, count: int) -> Neighbors:
        """The objects nearest to one, without itself; exact, as in `perseid similar`.

        Raises `BadInputError` if the object has no features.
        """
        columns = self.compared
        query = self.values[index, columns]
        if not np.isfinite(query).all():
            raise BadInputError("the object has no features, so it has no neighbors")
        # One more than wanted, since the nearest is the object itself.
        found = nearest(self.values[:, columns], query, count + 1)
        others = found.rows != index
        return Neighbors(found.rows[others][:count], found.distance[others][:count])

    def places(self) -> NDArray[np.float64]:
        """Positions in the map, (n, 2): the first two principal components of the embedding.

        Each feature is divided by its spread. The largest weight of each component is made
        positive, so that a map looks the same each time.
        """
        columns = self.compared
        chosen = np.arange(columns.start, columns.stop)
        part = self.moments.columns(chosen)
        # Clipped: rounding may make a variance of zero slightly negative.
        spread = np.sqrt(np.clip(np.diag(part.covariance()), 0, None))
        scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0.0)
        values, vectors = np.linalg.eigh(part.covariance() * np.outer(scale, scale))
        axes = vectors[:, np.argsort(values)[::-1][:2]]
        axes *= np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])])
        found = np.zeros((len(self.values), 2))
        matrix = scale[:, None] * axes
        for start in range(0, len(found), BLOCK):
            rows = slice(start, start + BLOCK)
            centered = self.values[rows, columns].astype(np.float64) - part.mean
            found[rows, : axes.shape[1]] = centered @ matrix
        return found

    def standardized(self, rows: NDArray[np.integer[Any]] | slice) -> NDArray[np.float64]:
        """Features of some objects as deviations from the mean in units of the spread, (m, d)."""
        spread = np.sqrt(np.clip(np.diag(self.moments.covariance()), 0, None))
        scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0.0)
        return np.asarray((self.values[rows].astype(np.float64) - self.moments.mean) * scale)


def load_features(store: Storage, manifest: Manifest, table: ObjectTable) -> RunFeatures:
    """Load the features that the ranks of a run stored, in the order of its catalogue.

    Raises
    ------
    NotFoundError
        No rank stored any: the model gives none, or the run scored nothing.
    BadInputError
        They do not fit into memory.
    """
    records, _ = read_records(store, manifest)
    reasons: list[str] = []
    groups, moments = _survey(store, records, reasons)
    metric = survey_metric(moments, groups) if groups else None
    if metric is None:
        raise NotFoundError(
            "the run has no features: its model gives none, or it ran with "
            f"{option('anomaly', 'none')}"
        )
    width = sum(groups.values())
    # Refused before reading: swapping would make the whole machine unusable.
    if 4 * width * len(table) > MOST_BYTES:
        raise BadInputError(
            f"{len(table):,} objects of {width} features do not fit into the memory of this page: "
            "`perseid similar` compares them from the store"
        )
    # float32, as on disk: float64 would double the memory without adding precision.
    values = np.full((len(table), width), np.nan, np.float32)
    places = _Places(table)
    for rank, record in records.items():
        try:
            for _, parts in stream_results(store, {rank: record}):
                for part in parts:
                    if part.features is not None:
                        rows, own = places.of(part.key)
                        values[rows] = part.features[own]
        except BrokenRankError as error:
            # One broken rank costs its own objects only.
            reasons.append(f"rank {error.rank} has no features: {error.reason}")
    return RunFeatures(values, groups, moments.total(), metric, tuple(reasons))


def _survey(
    store: Storage, records: Records, reasons: list[str]
) -> tuple[Mapping[str, int], Partial]:
    """Width of each group, and the statistics of all ranks that stored some."""
    groups: Mapping[str, int] = {}
    every: list[Moments] = []
    for rank, record in records.items():
        try:
            for _, stamp, parts in stream_moments(store, {rank: record}):
                groups = groups or stamp.groups
                every += [moments for _, moments in parts]
        except BrokenRankError as error:
            reasons.append(f"rank {error.rank} has no statistics: {error.reason}")
    return groups, Partial.of(enumerate(every))


class _Places:
    """Finds the catalogue's rows of each partition."""

    def __init__(self, table: ObjectTable) -> None:
        self._codes = table.numbers("partition").astype(np.int64)
        self._names = {name: code for code, name in enumerate(table.texts("partition"))}
        # Sorted once, so that each of many partitions is found by bisection.
        self._order = np.argsort(self._codes, kind="stable")
        self._sorted = self._codes[self._order]
        self._rows = table.numbers("row").astype(np.int64)

    def of(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the catalogue from a partition, and the row of each in that partition."""
        # -1 finds no row: a partition may have failed and be missing from the catalogue.
        code = self._names.get(key, -1)
        start, stop = np.searchsorted(self._sorted, (code, code + 1))
        rows = self._order[start:stop]
        return rows, self._rows[rows]
