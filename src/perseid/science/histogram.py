"""Histograms with fixed bins, so that those of parts of a survey add up to that of the whole.

The bins divide each octave from 2^-32 to 2^32 into 1,024 equal parts: a value is known to 0.1 %,
whatever its size, and neither the data nor the number of workers has a say in where bins lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OCTAVES = 64
"""From 2^-32 to 2^32; smaller and larger values are in the first and the last bin."""
OCTAVE_BITS = 10
"""Leading bits of the mantissa that name a bin of an octave."""
BINS = OCTAVES << OCTAVE_BITS
_SHIFT = 52 - OCTAVE_BITS
_FIRST = (1023 - OCTAVES // 2) << OCTAVE_BITS
"""Leading bits of 2^-32 as a float64."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many values of 0 and above lie in each of the fixed bins.

    Examples
    --------
    >>> both = Histogram.of([0.5, 1.0]).join(Histogram.of([2.0]))
    >>> both.total, both.share_below([1.0]).tolist()
    (3, [0.5])
    """

    counts: NDArray[np.int64]
    """(`BINS`,)."""

    @classmethod
    def of(cls, values: ArrayLike) -> Histogram:
        """Of values of any shape; NaN does not count."""
        array = np.asarray(values, np.float64).reshape(-1)
        counts = np.bincount(bins(array[~np.isnan(array)]), minlength=BINS)
        return cls(counts.astype(np.int64, copy=False))

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        """Of all parts together."""
        counts = np.zeros(BINS, np.int64)
        for part in parts:
            counts += part.counts
        return cls(counts)

    def join(self, other: Histogram) -> Histogram:
        """Of both sets of values."""
        return Histogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def share_below(self, values: ArrayLike) -> NDArray[np.float64]:
        """Share of the histogram's values below each of these, 0 to 1; NaN of NaN.

        Values of one bin share a place: half of them count as lower.
        """
        array = np.asarray(values, np.float64)
        ends = np.cumsum(self.counts)
        middle = (ends - self.counts / 2.0) / max(self.total, 1)
        good = ~np.isnan(array)
        out = np.full(array.shape, np.nan)
        out[good] = middle[bins(array[good])]
        return out


def bins(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of each value's bin; values are not NaN and not negative."""
    bits = np.ascontiguousarray(values).view(np.int64) >> _SHIFT
    return np.asarray(np.clip(bits - _FIRST, 0, BINS - 1), np.int64)


def centers() -> NDArray[np.float64]:
    """(`BINS`,): the middle of each bin."""
    edges = ((np.arange(BINS + 1, dtype=np.int64) + _FIRST) << _SHIFT).view(np.float64)
    return (edges[:-1] + edges[1:]) / 2.0


def weighted_median(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """The median of values that occur `counts` times each; NaN of none.

    Of an even number the mean of the two in the middle.
    """
    total = int(counts.sum())
    if not total:
        return float("nan")
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])
    middle = np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")
    return float(values[order][middle].mean())
