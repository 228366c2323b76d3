"""The two tables that users read: a rank's predictions and the survey's catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.ids import Ids, as_kind
from perseid.pipeline.parquet_writer import ParquetColumn, ParquetType, Strings, Values

PREDICTIONS = (
    ParquetColumn("object_id", ParquetType.INT64, optional=True),
    ParquetColumn("partition", ParquetType.UTF8),
    ParquetColumn("row", ParquetType.INT32),
    ParquetColumn("z_pred", ParquetType.FLOAT32),
    ParquetColumn("z_spec", ParquetType.FLOAT64, optional=True),
    ParquetColumn("label", ParquetType.INT32, optional=True),
    ParquetColumn("flag", ParquetType.INT32),
)
"""Columns of a rank's ``predictions.parquet``; a row group a partition."""
CATALOGUE = (
    *PREDICTIONS,
    ParquetColumn("anomaly_score", ParquetType.FLOAT64, optional=True),
    ParquetColumn("anomaly_rank", ParquetType.INT64, optional=True),
)
"""Columns of ``catalogue.parquet``; a row group a partition."""


def with_ids(columns: Sequence[ParquetColumn], kind: ParquetType) -> tuple[ParquetColumn, ...]:
    """The columns of a table whose object ids are of this kind."""
    return tuple(replace(c, kind=kind) if c.name == "object_id" else c for c in columns)


def predictions_table(result: PartitionResult, kind: ParquetType) -> dict[str, Values]:
    """One partition's row group of `PREDICTIONS` with ids of this kind.

    Raises `BadInputError` where the partition's ids do not fit it.
    """
    rows = len(result)
    return {
        "object_id": _ids(result.object_id, rows, kind),
        "partition": Strings(np.zeros(rows, np.int32), [result.key]),
        "row": np.arange(rows, dtype=np.int32),
        "z_pred": result.z_pred,
        "z_spec": _optional(result.z_spec, rows, np.float64),
        "label": _optional(result.label, rows, np.int32),
        "flag": result.flag,
    }


def catalogue_table(
    result: PartitionResult, score: NDArray[np.float64], rank: NDArray[np.int64], kind: ParquetType
) -> dict[str, Values]:
    """One partition's row group of `CATALOGUE`; no score is NaN, no rank 0."""
    return predictions_table(result, kind) | {
        "anomaly_score": np.ma.masked_invalid(score),
        "anomaly_rank": np.ma.masked_equal(rank, 0),
    }


def _ids(ids: Ids | None, rows: int, kind: ParquetType) -> Values:
    if ids is None and kind is ParquetType.UTF8:
        return Strings(np.ma.masked_array(np.zeros(rows, np.int32), mask=True), [""])
    if ids is None:
        return _optional(None, rows, np.int64)
    ids = as_kind(ids, kind)
    if kind is not ParquetType.UTF8:
        return ids
    names, codes = np.unique(np.ma.getdata(ids), return_inverse=True)
    mask = np.ma.getmaskarray(ids)
    codes = codes.reshape(-1).astype(np.int32)
    return Strings(np.ma.masked_array(codes, mask=mask) if mask.any() else codes, names.tolist())


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
