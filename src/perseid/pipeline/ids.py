"""Object ids of several partitions as one column: integers and text, without loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.masked import is_masked_array
from perseid.pipeline.parquet_writer import ParquetType

_DTYPES = {ParquetType.INT64: np.dtype(np.int64), ParquetType.UINT64: np.dtype(np.uint64)}

Ids = NDArray[Any]
"""int64, uint64 or text (a U dtype); a `numpy.ma.MaskedArray` where some are missing."""


def kind_of(ids: Ids) -> ParquetType:
    """The kind of a column that holds these ids."""
    if ids.dtype.kind == "U":
        return ParquetType.UTF8
    return ParquetType.UINT64 if ids.dtype.kind == "u" else ParquetType.INT64


@dataclass(frozen=True)
class IdKinds:
    """Which kinds of ids some partitions have; the results for parts of a survey can be merged."""

    kinds: frozenset[ParquetType] = frozenset()
    least: int = 0
    """The least signed id, or 0."""
    largest: int = 0
    """The largest unsigned id, or 0."""

    @classmethod
    def of(cls, ids: Ids | None) -> IdKinds:
        """Kinds and range of one partition's ids."""
        if ids is None:
            return cls()
        known = np.ma.compressed(ids) if is_masked_array(ids) else ids
        kind = kind_of(ids)
        least = largest = 0
        if known.size and kind is ParquetType.INT64:
            least = min(0, int(known.min()))
        if known.size and kind is ParquetType.UINT64:
            largest = int(known.max())
        return cls(frozenset([kind]), least, largest)

    def join(self, other: IdKinds) -> IdKinds:
        """Combine the kinds and ranges of two sets of partitions."""
        return IdKinds(
            self.kinds | other.kinds,
            min(self.least, other.least),
            max(self.largest, other.largest),
        )

    @property
    def common(self) -> ParquetType:
        """The kind of a column that holds all of these ids without loss; INT64 if there are none.

        A mix of signed and unsigned integers becomes whichever type holds them all, or text if
        neither does. A mix of integers and text becomes text.
        """
        if len(self.kinds) <= 1:
            return next(iter(self.kinds), ParquetType.INT64)
        if ParquetType.UTF8 in self.kinds:
            return ParquetType.UTF8
        if self.largest <= np.iinfo(np.int64).max:
            return ParquetType.INT64
        return ParquetType.UTF8 if self.least else ParquetType.UINT64


def common_kind(columns: Iterable[Ids | None]) -> ParquetType:
    """The kind of a column that holds all of these ids without loss; see `IdKinds.common`."""
    return reduce(IdKinds.join, map(IdKinds.of, columns), IdKinds()).common


def as_kind(ids: Ids, kind: ParquetType) -> Ids:
    """Convert ids to another kind.

    Raises `BadInputError` if that would lose information.
    """
    if kind_of(ids) is kind:
        return ids
    if kind is ParquetType.UTF8:
        return ids.astype(np.str_)
    if not _fits(ids, kind):
        raise BadInputError(
            f"its ids are {_words(kind_of(ids))}, those of the partitions before it "
            f"{_words(kind)}: write them in one type"
        )
    return ids.astype(_DTYPES[kind])


def _fits(ids: Ids, kind: ParquetType) -> bool:
    if kind_of(ids) is kind:
        return True
    if ids.dtype.kind == "U":
        return False
    known = np.ma.compressed(ids) if is_masked_array(ids) else ids
    limits = np.iinfo(_DTYPES[kind])
    return not known.size or (int(known.min()) >= limits.min and int(known.max()) <= limits.max)


def _words(kind: ParquetType) -> str:
    return {ParquetType.UTF8: "text", ParquetType.UINT64: "unsigned integers"}.get(kind, "integers")
