"""Find the objects most similar to a given one: exact nearest neighbors over all ranks' features.

Features are read from the store rank by rank and dropped again. So memory holds a few ranks and the
nearest objects so far, whatever the size of the survey.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.pipeline import rank_outputs
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import BrokenRankError
from perseid.pipeline.stored import Records
from perseid.plaintext import one_line, option
from perseid.science import nearest
from perseid.science.anomaly import group_columns
from perseid.storage import Storage

EMBEDDING = "embedding"
ALL = "both"
"""Selects all groups of features that the model has."""
NAMED = 5
"""Number of positions that a message names if several objects have the same id."""


@dataclass(frozen=True)
class SimilarObject:
    """An object, and the distance of its features from those of the reference object."""

    distance: float
    """Euclidean distance, in the unit of the features; 0 for the reference object itself."""
    object_id: int | str | None
    """The object's id in the survey; None if it has none."""
    partition: str
    """Key of the object's partition."""
    row: int
    """Row of the object in its partition, from 0."""
    z_pred: float | None
    """Predicted redshift; None if there is no prediction."""
    z_spec: float | None
    label: int | None
    """The object's label in the survey."""


@dataclass(frozen=True)
class _Place:
    """Position of an object in the survey."""

    rank: int
    partition: str
    row: int

    def __str__(self) -> str:
        return f"{one_line(self.partition)}:{self.row}"


class SimilarObjects:
    """The features of a published or unfinished run, ready to be searched.

    Parameters
    ----------
    store
        Storage of the run's own prefix.
    manifest
        Manifest of the run.
    use
        Features to compare: ``embedding``, ``residual`` or ``both``. None means the embedding if
        the model has one, else all features.

    Raises
    ------
    NotFoundError
        No rank has left features: the run has not begun, or its model gives none.
    BadInputError
        The model has no such features.
    """

    def __init__(self, store: Storage, manifest: Manifest, use: str | None = None) -> None:
        self._store = store
        self._records, _ = rank_outputs.read_records(store, manifest)
        groups = {} if manifest.script is not None else _groups(store, self._records)
        if not groups:
            raise NotFoundError(
                f"the run at {store.where()} has no features to compare: no rank is done, its "
                f"model gives no embedding, it ran with {option('anomaly', 'none')}, or it "
                "ran a script"
            )
        self.use = use or (EMBEDDING if EMBEDDING in groups else ALL)
        """Feature groups that are compared."""
        self._columns = group_columns(groups, self.use)

    def of_id(self, object_id: int | str, n: int) -> list[SimilarObject]:
        """The n objects nearest to the one with this id, which comes first.

        Raises
        ------
        NotFoundError
            No object has this id.
        BadInputError
            Several objects have this id, or the object was flagged and so has no features.
        """
        found = [
            _Place(rank, part.key, int(row))
            for rank, parts in self._stream(self._records, features=False)
            for part in parts
            for row in _rows_of(part, object_id)
        ]
        if not found:
            raise NotFoundError(
                f"no object of the run at {self._store.where()} has the id "
                f"{one_line(str(object_id))!r}"
            )
        if len(found) > 1:
            some = ", ".join(map(str, found[:NAMED]))
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise BadInputError(
                f"{len(found)} objects have the id {one_line(str(object_id))!r} ({some}{more}): "
                "name one of them by its partition and row, PARTITION:ROW"
            )
        return self._of(found[0], n)

    def of_place(self, partition: str, row: int, n: int) -> list[SimilarObject]:
        """The n objects nearest to the one in this row of this partition, which comes first.

        Raises the same errors as `of_id`.
        """
        for rank, record in self._records.items():
            rows = dict(record.read or ()).get(partition)
            if rows is not None and 0 <= row < rows:
                return self._of(_Place(rank, partition, row), n)
        raise NotFoundError(
            f"the run at {self._store.where()} has no row {row} of a partition "
            f"{one_line(partition)!r}"
        )

    def of_vector(self, vector: ArrayLike, n: int) -> list[SimilarObject]:
        """The n objects nearest to a feature vector.

        Raises
        ------
        BadInputError
            The vector's width differs from that of the features, a number is not finite, or n is
            below 1.
        """
        query = np.asarray(vector, np.float64)
        best: list[tuple[float, int, SimilarObject]] = []
        order = 0
        for _, parts in self._stream(self._records):
            for part in parts:
                if part.features is None:
                    continue
                found = nearest(part.features[:, self._columns], query, n)
                for row, distance in zip(found.rows, found.distance, strict=True):
                    order += 1  # ties are in natural order of partitions, then of rows
                    best.append((float(distance), order, _object(part, int(row), float(distance))))
                best = heapq.nsmallest(n, best)
        return [one for _, _, one in best]

    def _of(self, place: _Place, n: int) -> list[SimilarObject]:
        one = {place.rank: self._records[place.rank]}
        for _, parts in self._stream(one):
            for part in parts:
                if part.key == place.partition and part.features is not None:
                    vector = part.features[place.row, self._columns]
                    if not np.isfinite(vector).all():
                        raise BadInputError(
                            f"the object {place} has no features: its flag is "
                            f"{int(part.flag[place.row])}"
                        )
                    return self.of_vector(vector, n)
        raise BadInputError(f"the partition of {place} has no features")

    def _stream(
        self, records: Records, *, features: bool = True
    ) -> Iterable[tuple[int, list[PartitionResult]]]:
        try:
            yield from rank_outputs.stream_results(self._store, records, features=features)
        except BrokenRankError as error:
            raise RunError(f"rank {error.rank}: {error.reason}") from error


def _groups(store: Storage, records: Records) -> Mapping[str, int]:
    """The feature groups of the first rank that has any."""
    try:
        for _, stamp, _ in rank_outputs.stream_moments(store, records):
            if stamp.groups:
                return stamp.groups
    except BrokenRankError as error:
        raise RunError(f"rank {error.rank}: {error.reason}") from error
    return {}


def _rows_of(part: PartitionResult, object_id: int | str) -> NDArray[np.int64]:
    """Rows of a partition that have this id. The comparison is exact for integers of any size and
    for text."""
    ids = part.object_id
    if ids is None:
        return np.empty(0, np.int64)
    if ids.dtype.kind == "U":
        return np.flatnonzero(np.ma.filled(ids == str(object_id), False))
    try:
        wanted = int(object_id)
    except ValueError:
        return np.empty(0, np.int64)
    limits = np.iinfo(ids.dtype)
    if not limits.min <= wanted <= limits.max:
        return np.empty(0, np.int64)
    return np.flatnonzero(np.ma.filled(ids == ids.dtype.type(wanted), False))


def _object(part: PartitionResult, row: int, distance: float) -> SimilarObject:
    def value(array: NDArray[Any] | None) -> Any:
        if array is None or np.ma.is_masked(array[row]):
            return None
        found = array[row].item()
        return None if isinstance(found, float) and not np.isfinite(found) else found

    return SimilarObject(
        distance,
        value(part.object_id),
        part.key,
        row,
        value(part.z_pred),
        value(part.z_spec),
        value(part.label),
    )
