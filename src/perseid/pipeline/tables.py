"""Schemas of the two tables for users: a rank's predictions and the survey's catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.model.outputs import CLASS, Z_PRED, OutputColumn
from perseid.pipeline.columns import PartitionResult
from perseid.pipeline.ids import Ids, as_kind
from perseid.pipeline.parquet_writer import ParquetColumn, ParquetType, Strings, Values
from perseid.survey.column_spec import TEXT_KIND, ColumnSpec

PREDICTIONS = (
    ParquetColumn("object_id", ParquetType.INT64, optional=True, ucd="meta.id;meta.main",
                  description="Identifier of the object in the survey"),
    ParquetColumn("partition", ParquetType.UTF8, ucd="meta.id;meta.file",
                  description="File of the survey that the object lies in"),
    ParquetColumn("row", ParquetType.INT32, ucd="meta.record",
                  description="Row of the object in that file, from 0"),
    ParquetColumn("z_pred", ParquetType.FLOAT32, ucd="src.redshift.phot",
                  description="Redshift predicted by the model; NaN where flag is not 0"),
    ParquetColumn("z_spec", ParquetType.FLOAT64, optional=True, ucd="src.redshift",
                  description="Spectroscopic redshift given by the survey"),
    ParquetColumn("label", ParquetType.INT32, optional=True, ucd="meta.code.class",
                  description="Label given by the survey"),
    ParquetColumn("flag", ParquetType.INT32, ucd="meta.code.qual",
                  description="0; 1: a pixel or a magnitude is not finite; 2: the model gave no "
                  "finite answer; 3: an input that the model uses is missing"),
)  # fmt: skip
"""Columns of a rank's ``predictions.parquet``, which has one row group per partition."""
_KINDS = {
    "bool": ParquetType.BOOL,
    "int32": ParquetType.INT32,
    "int64": ParquetType.INT64,
    "uint64": ParquetType.UINT64,
    "float32": ParquetType.FLOAT32,
    "float64": ParquetType.FLOAT64,
    TEXT_KIND: ParquetType.UTF8,
}
"""Types of carried columns, by `ColumnSpec.kind`."""
CATALOGUE = (
    *PREDICTIONS,
    ParquetColumn("anomaly_score", ParquetType.FLOAT64, optional=True, ucd="stat.value",
                  description="Distance from the whole survey; about 1 for a plain object"),
    ParquetColumn("anomaly_rank", ParquetType.INT64, optional=True, ucd="stat.rank",
                  description="1 for the most anomalous object of the survey"),
)  # fmt: skip
"""Columns of ``catalogue.parquet``, which has one row group per partition."""
PERCENTILE = ParquetColumn(
    "anomaly_percentile",
    ParquetType.FLOAT32,
    optional=True,
    ucd="stat.value",
    description="Share of all scores below this one, 0 to 100",
)
"""Additional column for surveys with too many rows to rank each of them."""


def with_ids(columns: Sequence[ParquetColumn], kind: ParquetType) -> tuple[ParquetColumn, ...]:
    """The columns of a table whose object ids have this type."""
    return tuple(replace(c, kind=kind) if c.name == "object_id" else c for c in columns)


def with_outputs(
    columns: Sequence[ParquetColumn], outputs: Sequence[OutputColumn]
) -> tuple[ParquetColumn, ...]:
    """The columns of a table, with a model's columns in place of ``z_pred``."""
    at = next(i for i, column in enumerate(columns) if column.name == Z_PRED.name)
    return (*columns[:at], *map(_output_column, outputs), *columns[at + 1 :])


def all_outputs(results: Iterable[PartitionResult]) -> tuple[OutputColumn, ...]:
    """The columns of all models that were used; there is only one unless the user let them
    differ."""
    found = {column.name: column for result in results for column in result.output_columns}
    return tuple(found.values())


def _output_column(column: OutputColumn) -> ParquetColumn:
    text = column.kind == CLASS
    return ParquetColumn(
        column.name,
        ParquetType.UTF8 if text else ParquetType.FLOAT32,
        optional=text,
        width=column.width or None,
        unit=column.unit,
        ucd=column.ucd,
        description=column.description,
    )


def predictions_table(
    result: PartitionResult, kind: ParquetType, outputs: Sequence[OutputColumn] = (Z_PRED,)
) -> dict[str, Values]:
    """One partition's row group of `PREDICTIONS`, with ids of this type and a model's columns.

    Raises `BadInputError` if the partition's ids do not fit that type.
    """
    rows = len(result)
    return {
        "object_id": _ids(result.object_id, rows, kind),
        "partition": Strings(np.zeros(rows, np.int32), [result.key]),
        "row": np.arange(rows, dtype=np.int32),
        **_outputs(result, outputs),
        "z_spec": _optional(result.z_spec, rows, np.float64),
        "label": _optional(result.label, rows, np.int32),
        "flag": result.flag,
    }


def catalogue_table(
    result: PartitionResult,
    score: NDArray[np.float64],
    rank: NDArray[np.int64],
    kind: ParquetType,
    carried: Sequence[ColumnSpec] = (),
    outputs: Sequence[OutputColumn] = (Z_PRED,),
) -> dict[str, Values]:
    """One partition's row group of `CATALOGUE`; a score of NaN and a rank of 0 become missing
    values.

    `carried` are the survey's columns that follow (see `carried_columns`), `outputs` those of the
    model.
    """
    table = predictions_table(result, kind, outputs) | {
        "anomaly_score": np.ma.masked_invalid(score),
        "anomaly_rank": np.ma.masked_equal(rank, 0),
    }
    return table | {spec.name: _carried(result, spec) for spec in carried}


def carried_columns(carried: Sequence[ColumnSpec]) -> tuple[ParquetColumn, ...]:
    """The catalogue's columns that are copied from the survey."""
    return tuple(
        ParquetColumn(
            spec.name,
            _KINDS[spec.kind],
            optional=True,
            unit=spec.unit,
            ucd=spec.ucd,
            description=spec.description or f"Column {spec.source} of the survey",
        )
        for spec in carried
    )


def as_in_survey(
    columns: Sequence[ParquetColumn], specs: Sequence[ColumnSpec] | None
) -> tuple[ParquetColumn, ...]:
    """The catalogue's own columns; descriptions of those copied from the survey give their name
    there."""
    sources = {spec.name: spec for spec in specs or () if spec.name != spec.source}
    return tuple(
        replace(
            column,
            unit=column.unit or sources[column.name].unit,
            description=f"{column.description} ({sources[column.name].source} there)",
        )
        if column.name in sources
        else column
        for column in columns
    )


def _carried(result: PartitionResult, spec: ColumnSpec) -> Values:
    """A carried column of one partition; all values are missing if the partition does not have
    it."""
    array, kind = result.carried.get(spec.name), _KINDS[spec.kind]
    if kind is ParquetType.UTF8:
        return _ids(array, len(result), kind)
    if array is not None and array.dtype.kind == "f":
        return np.ma.masked_where(np.isnan(array), array)  # infinities are values
    return _optional(array, len(result), spec.dtype.type)


def _outputs(result: PartitionResult, outputs: Sequence[OutputColumn]) -> dict[str, Values]:
    """The model's columns; a column that this partition's model does not give is all missing."""
    found: dict[str, Values] = {}
    for column in outputs:
        values = result.z_pred if column.name == Z_PRED.name else result.outputs.get(column.name)
        if column.kind == CLASS:
            codes = np.full(len(result), -1, np.int32) if values is None else values
            missing = codes < 0
            codes = np.where(missing, 0, codes)
            found[column.name] = Strings(np.ma.masked_array(codes, mask=missing), column.classes)
            continue
        shape = (len(result), column.width) if column.width else (len(result),)
        found[column.name] = np.full(shape, np.nan, np.float32) if values is None else values
    return found


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
    """The values, masked where a floating-point value is not finite; all masked if there is no
    array."""
    if array is None:
        return np.ma.masked_array(np.zeros(rows, dtype), mask=True)
    if np.issubdtype(array.dtype, np.floating):
        return np.ma.masked_invalid(array)
    return array


def joined(parts: Sequence[NDArray[Any] | None], rows: Sequence[int], fill: float) -> NDArray[Any]:
    """Concatenate one column of several partitions; `fill` stands for partitions that lack it."""
    return np.concatenate(
        [np.full(n, fill) if part is None else part for part, n in zip(parts, rows, strict=True)]
        or [np.empty(0)]
    )
