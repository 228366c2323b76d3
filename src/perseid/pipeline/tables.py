"""The two tables that users read: a rank's predictions and the survey's catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.parquet import Column, Kind, Strings, Values

PREDICTIONS = (
    Column("object_id", Kind.INT64, optional=True),
    Column("partition", Kind.UTF8),
    Column("row", Kind.INT32),
    Column("z_pred", Kind.FLOAT32),
    Column("z_spec", Kind.FLOAT64, optional=True),
    Column("label", Kind.INT32, optional=True),
    Column("flag", Kind.INT32),
)
"""Columns of a rank's ``predictions.parquet``; a row group a partition."""
CATALOGUE = (
    *PREDICTIONS,
    Column("anomaly_score", Kind.FLOAT64, optional=True),
    Column("anomaly_rank", Kind.INT64, optional=True),
)
"""Columns of ``catalogue.parquet``; a row group a partition."""


def predictions_table(result: PartitionResult) -> dict[str, Values]:
    """One partition's row group of `PREDICTIONS`."""
    rows = len(result)
    return {
        "object_id": _optional(result.object_id, rows, np.int64),
        "partition": Strings(np.zeros(rows, np.int32), [result.key]),
        "row": np.arange(rows, dtype=np.int32),
        "z_pred": result.z_pred,
        "z_spec": _optional(result.z_spec, rows, np.float64),
        "label": _optional(result.label, rows, np.int32),
        "flag": result.flag,
    }


def catalogue_table(
    result: PartitionResult, score: NDArray[np.float64], rank: NDArray[np.int64]
) -> dict[str, Values]:
    """One partition's row group of `CATALOGUE`; no score is NaN, no rank 0."""
    return predictions_table(result) | {
        "anomaly_score": np.ma.masked_invalid(score),
        "anomaly_rank": np.ma.masked_equal(rank, 0),
    }


def _optional(array: NDArray[Any] | None, rows: int, dtype: type) -> NDArray[Any]:
    """Missing where there is no array, and where a floating-point value is not finite."""
    if array is None:
        return np.ma.masked_array(np.zeros(rows, dtype), mask=True)
    if np.issubdtype(array.dtype, np.floating):
        return np.ma.masked_invalid(array)
    return array


def joined(parts: Sequence[NDArray[Any] | None], rows: Sequence[int], fill: float) -> NDArray[Any]:
    """Columns of several partitions as one; `fill` where a partition has none."""
    return np.concatenate(
        [np.full(n, fill) if part is None else part for part, n in zip(parts, rows, strict=True)]
        or [np.empty(0)]
    )
