"""Histograms with fixed bins, so that those of a survey's parts add up to that of the whole.

The bins divide each octave from 2^-32 to 2^32 into 1,024 equal parts. Values are thus known to 0.1
%, and the bins depend neither on the data nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OCTAVES = 64
"""The bins cover 2^-32 to 2^32; smaller and larger values go to the first and the last bin."""
OCTAVE_BITS = 10
"""Leading mantissa bits that select a bin within an octave."""
BINS = OCTAVES << OCTAVE_BITS
_SHIFT = 52 - OCTAVE_BITS
_FIRST = (1023 - OCTAVES // 2) << OCTAVE_BITS
"""Leading bits of 2^-32 as a float64."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of non-negative values in the fixed bins.

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
        """Count values of any shape, except NaN."""
        array = np.asarray(values, np.float64).reshape(-1)
        counts = np.bincount(bins(array[~np.isnan(array)]), minlength=BINS)
        return cls(counts.astype(np.int64, copy=False))

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        """Add several histograms."""
        counts = np.zeros(BINS, np.int64)
        for part in parts:
            counts += part.counts
        return cls(counts)

    def join(self, other: Histogram) -> Histogram:
        """Add two histograms."""
        return Histogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    def share_below(self, values: ArrayLike) -> NDArray[np.float64]:
        """Fraction of the histogram's values below each of these, 0 to 1; NaN for NaN.

        Of the values in the same bin, half count as lower.
        """
        array = np.asarray(values, np.float64)
        ends = np.cumsum(self.counts)
        middle = (ends - self.counts / 2.0) / max(self.total, 1)
        good = ~np.isnan(array)
        out = np.full(array.shape, np.nan)
        out[good] = middle[bins(array[good])]
        return out


def bins(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of each value's bin; values must not be NaN or negative."""
    bits = np.ascontiguousarray(values).view(np.int64) >> _SHIFT
    return np.asarray(np.clip(bits - _FIRST, 0, BINS - 1), np.int64)


def centers() -> NDArray[np.float64]:
    """(`BINS`,): the middle of each bin."""
    edges = ((np.arange(BINS + 1, dtype=np.int64) + _FIRST) << _SHIFT).view(np.float64)
    return (edges[:-1] + edges[1:]) / 2.0


def weighted_median(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """The median of values that occur `counts` times each; NaN if there are none.

    For an even number it is the mean of the two middle values.
    """
    total = int(counts.sum())
    if not total:
        return float("nan")
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])
    middle = np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")
    return float(values[order][middle].mean())
