"""The catalogue of a run as arrays, for pictures and charts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.storage import Storage

# Only these: a catalogue may have many further columns, which would take memory for nothing.
_READ = (
    "partition", "row", "object_id", "z_pred", "z_spec", "label", "flag",
    "anomaly_score", "anomaly_rank",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class CatalogueColumns:
    """Columns of a catalogue, one row per object, in the order of the file.

    Each array has shape (objects,); a missing value is NaN or 0.
    """

    partition: NDArray[np.object_]
    """Key of the partition."""
    row: NDArray[np.int64]
    """Row in the partition."""
    object_id: NDArray[np.object_] | None
    """Ids, integers or text, with None for a missing one; None if the survey has no ids."""
    z_pred: NDArray[np.float64]
    """Predicted redshift; NaN without a prediction."""
    z_spec: NDArray[np.float64]
    """Spectroscopic redshift; NaN if unknown."""
    label: NDArray[np.int64] | None
    """Labels, masked for objects without one; None if the survey has no labels."""
    flag: NDArray[np.int64]
    """0 for a row with a prediction; any other value says why there is none."""
    score: NDArray[np.float64]
    """Anomaly score; NaN without one."""
    rank: NDArray[np.int64]
    """Anomaly rank, 1 for the most anomalous object; 0 for a row without a score."""

    def __len__(self) -> int:
        return len(self.row)

    def most_anomalous(self, count: int) -> NDArray[np.int64]:
        """Indices of the `count` most anomalous objects, by anomaly rank."""
        # Rows without a score have rank 0 and must not come first.
        ranked = np.flatnonzero(self.rank > 0)
        return np.asarray(ranked[np.argsort(self.rank[ranked], kind="stable")][:count], np.int64)

    def compared(self) -> NDArray[np.bool_]:
        """Mask of the rows with both a predicted and a spectroscopic redshift."""
        return np.isfinite(self.z_pred) & np.isfinite(self.z_spec)


def read_catalogue(store: Storage) -> CatalogueColumns:
    """Read the catalogue of the run at this prefix.

    Raises
    ------
    NotFoundError
        The run has no catalogue (yet).
    BadInputError
        The object is not a catalogue.
    """
    stored = StoredCatalogue(store)
    missing = {"partition", "row"} - set(stored.schema.names)
    if missing:
        raise BadInputError(
            f"{stored.where} has no column {', '.join(sorted(missing))}: it is not a catalogue"
        )
    table = stored.table([name for name in _READ if name in stored.schema.names])
    return CatalogueColumns(
        partition=np.asarray(table["partition"].to_pylist(), object),
        row=_whole(table, "row"),
        object_id=np.asarray(table["object_id"].to_pylist(), object)
        if _has(table, "object_id")
        else None,
        z_pred=_float(table, "z_pred"),
        z_spec=_float(table, "z_spec"),
        label=_masked(table, "label") if _has(table, "label") else None,
        flag=_whole(table, "flag"),
        score=_float(table, "anomaly_score"),
        rank=_whole(table, "anomaly_rank"),
    )


def _has(table: Any, name: str) -> bool:
    """Whether a column exists and has at least one value."""
    return name in table.column_names and table[name].null_count < len(table)


def _float(table: Any, name: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)


def _masked(table: Any, name: str) -> NDArray[np.int64]:
    values = _whole(table, name)
    missing = table[name].is_null().to_numpy()
    return np.ma.masked_array(values, mask=missing) if missing.any() else values


def _whole(table: Any, name: str) -> NDArray[np.int64]:
    if name not in table.column_names:
        return np.zeros(len(table), np.int64)
    # Integers have no NaN.
    return np.asarray(table[name].fill_null(0).to_numpy(zero_copy_only=False), np.int64)
