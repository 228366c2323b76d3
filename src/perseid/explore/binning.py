"""Counts of rows in cells, fast enough for a million rows while someone drags a brush.

The cell of each row is found once and kept; what is counted again and again are small integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """Cells of equal width from `low` to `high`; by the logarithm where `log`."""

    low: float
    high: float
    count: int
    log: bool = False

    @classmethod
    def around(
        cls, values: NDArray[np.float64], count: int, *, tail: float = 0.001, log: bool = False
    ) -> Axis:
        """Over all values but the utmost share `tail` at either end, with some room."""
        finite = values[np.isfinite(values) & ((values > 0) if log else True)]
        if not len(finite):
            return cls(1.0, 10.0, count, log) if log else cls(0.0, 1.0, count)
        if len(finite) > SAMPLE:  # quantiles of a regular sample are near enough for a range
            finite = finite[:: len(finite) // SAMPLE]
        low, high = (float(v) for v in np.quantile(finite, (tail, 1 - tail)))
        if log:
            return cls(low / 1.05, high * 1.05 if high > low else low * 1.05, count, True)
        # Where all values are equal, a range of no width would divide by zero.
        room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.01
        # An axis of positive quantities does not begin below zero for the sake of a margin.
        start = max(0.0, low - room) if low >= 0 else low - room
        return cls(start, high + room, count)

    @property
    def edges(self) -> NDArray[np.float64]:
        """(count + 1,)."""
        if self.log:
            return np.geomspace(self.low, self.high, self.count + 1)
        return np.linspace(self.low, self.high, self.count + 1)

    def cells(self, values: NDArray[np.float64]) -> NDArray[np.int32]:
        """(n,): the cell of each value, -1 outside and where there is none."""
        low, high, at = self.low, self.high, values
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.log:
                low, high, at = np.log(low), np.log(high), np.log(values)
            share = (at - low) * (self.count / (high - low))
            inside = (share >= 0) & (share <= self.count)
            share = np.where(inside, share, -1.0)
        return np.minimum(share.astype(np.int32), self.count - 1)


SAMPLE = 200_000
"""Rows that a range is found from."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cell of each row in one or two axes."""

    shape: tuple[int, ...]
    codes: NDArray[np.int32]
    """(n,): number of the cell, the count of cells for a row outside."""

    @classmethod
    def of(cls, *parts: tuple[Axis, NDArray[np.float64]]) -> Cells:
        """Of values along one axis each."""
        shape = tuple(axis.count for axis, _ in parts)
        total = int(np.prod(shape))
        codes = np.zeros(len(parts[0][1]), np.int32)
        outside = np.zeros(len(codes), np.bool_)
        for axis, values in parts:
            cell = axis.cells(values)
            outside |= cell < 0
            codes = codes * axis.count + cell
        # One code past the end: bincount counts it apart, and no mask is needed each time.
        codes[outside] = total
        return cls(shape, codes)

    def counts(self, rows: Mask | None = None) -> NDArray[np.int64]:
        """Rows in each cell, of all or of some."""
        codes = self.codes if rows is None else self.codes[rows]
        total = int(np.prod(self.shape))
        return np.bincount(codes, minlength=total + 1)[:total].reshape(self.shape)

    def outside(self, rows: Mask | None = None) -> int:
        """Rows that lie in no cell."""
        total = int(np.prod(self.shape))
        codes = self.codes if rows is None else self.codes[rows]
        return int(np.count_nonzero(codes == total))

    def means(self, values: NDArray[np.float64], rows: Mask | None = None) -> NDArray[np.float64]:
        """Mean of the values in each cell that are finite; NaN where there is none."""
        good = np.isfinite(values) if rows is None else np.isfinite(values) & rows
        total = int(np.prod(self.shape))
        codes, kept = self.codes[good], values[good]
        sums = np.bincount(codes, kept, minlength=total + 1)[:total]
        counts = np.bincount(codes, minlength=total + 1)[:total]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sums / counts).reshape(self.shape))
