"""Counts of rows in cells, fast enough for a million rows while the user drags a brush.

The cell of each row is computed once and kept, so that each count only reads small integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """Cells of equal width from `low` to `high`, in the logarithm if `log` is true."""

    low: float
    high: float
    count: int
    log: bool = False

    @classmethod
    def around(
        cls, values: NDArray[np.float64], count: int, *, tail: float = 0.001, log: bool = False
    ) -> Axis:
        """An axis over all values except the fraction `tail` at either end, with a margin."""
        finite = values[np.isfinite(values) & ((values > 0) if log else True)]
        # An axis is drawn in any case, even for a column without values.
        if not len(finite):
            return cls(1.0, 10.0, count, log) if log else cls(0.0, 1.0, count)
        if len(finite) > SAMPLE:  # quantiles of a regular sample are precise enough
            finite = finite[:: len(finite) // SAMPLE]
        low, high = (float(v) for v in np.quantile(finite, (tail, 1 - tail)))
        if log:
            return cls(low / 1.05, high * 1.05 if high > low else low * 1.05, count, True)
        # If all values are equal, a range without width would divide by zero.
        room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.01
        # The margin must not take an axis of non-negative values below zero.
        start = max(0.0, low - room) if low >= 0 else low - room
        return cls(start, high + room, count)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the cells, (count + 1,)."""
        if self.log:
            # Equal steps of the logarithm, as the axis is drawn.
            return np.geomspace(self.low, self.high, self.count + 1)
        return np.linspace(self.low, self.high, self.count + 1)

    def cells(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """Cell of each value, (n,); -1 for values that are missing or outside."""
        low, high, at = self.low, self.high, values
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.log:
                low, high, at = np.log(low), np.log(high), np.log(values)
            share = (at - low) * (self.count / (high - low))
            inside = (share >= 0) & (share <= self.count)
            share = np.where(inside, share, -1.0)
        # A value equal to `high` belongs to the last cell.
        return np.minimum(share.astype(np.int32), self.count - 1)


SAMPLE = 200_000
"""Maximum number of rows from which a range is computed."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cell of each row in one or two axes."""

    shape: tuple[int, ...]
    codes: NDArray[np.int32]
    """Number of each row's cell, (n,); the number of cells for a row outside."""

    @classmethod
    def of(cls, *parts: tuple[Axis, NDArray[np.float64]]) -> Cells:
        """Compute the cells from pairs of an axis and the values along it."""
        shape = tuple(axis.count for axis, _ in parts)
        total = int(np.prod(shape))
        codes = np.zeros(len(parts[0][1]), np.int32)
        outside = np.zeros(len(codes), np.bool_)
        for axis, values in parts:
            cell = axis.cells(values)
            outside |= cell < 0
            codes = codes * axis.count + cell
        # One code past the end: bincount counts it separately, so no mask is needed each time.
        codes[outside] = total
        return cls(shape, codes)

    def counts(self, rows: Mask | None = None) -> NDArray[np.int64]:
        """Number of rows in each cell, for all rows or those of a mask."""
        codes = self.codes if rows is None else self.codes[rows]
        total = int(np.prod(self.shape))
        return np.bincount(codes, minlength=total + 1)[:total].reshape(self.shape)

    def outside(self, rows: Mask | None = None) -> int:
        """Number of rows that lie in no cell."""
        total = int(np.prod(self.shape))
        codes = self.codes if rows is None else self.codes[rows]
        return int(np.count_nonzero(codes == total))

    def means(self, values: NDArray[np.float64], rows: Mask | None = None) -> NDArray[np.float64]:
        """Mean of the finite values in each cell; NaN for a cell without any."""
        # Missing values must not make the mean of a cell NaN.
        good = np.isfinite(values) if rows is None else np.isfinite(values) & rows
        total = int(np.prod(self.shape))
        codes, kept = self.codes[good], values[good]
        # One pass over all rows, where a loop over cells would take one pass per cell.
        sums = np.bincount(codes, kept, minlength=total + 1)[:total]
        counts = np.bincount(codes, minlength=total + 1)[:total]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sums / counts).reshape(self.shape))
