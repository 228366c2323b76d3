"""Quality of predicted distributions and intervals, as statistics that merge.

All statistics are counts or integer multiples of a small unit, so that the sum over ranks has the
same bits in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.science.distributions import PIT_BINS, Distributions, pit_histogram

CRPS_UNIT = 2.0**-40
"""CRPS is summed in integer multiples of this unit, so that sums are exact in any order."""
ROUNDING = 1e-9
"""Tolerance of levels, since (1 - 0.68) / 2 is not exactly 0.16."""
LEVELS = (0.68, 0.95)
"""Probabilities of the central intervals whose coverage is reported."""


@dataclass(frozen=True, eq=False)
class DistributionStatistics:
    """PIT, CRPS and coverage of the distributions predicted for some objects of known value."""

    n: int = 0
    """Objects with a distribution and a known value."""
    excluded: int = 0
    """Objects without a distribution or without a known value."""
    pit: NDArray[np.int64] = field(default_factory=lambda: np.zeros(PIT_BINS, np.int64))
    """(`PIT_BINS`,): objects by the predicted probability of values below the true one."""
    crps_units: int = 0
    """Sum of CRPS in units of `CRPS_UNIT`."""
    inside: Mapping[float, int] = field(default_factory=dict)
    """Objects whose true value lies in the central interval, by its probability. Probabilities
    beyond the predicted quantiles are left out."""

    @classmethod
    def of(cls, predicted: Distributions, truth: ArrayLike) -> DistributionStatistics:
        """Statistics of (n,) objects; NaN means that the value is not known.

        Examples
        --------
        >>> predicted = Distributions.of_quantiles([[0.0, 1.0], [0.0, 1.0]], [0.0, 1.0])
        >>> found = DistributionStatistics.of(predicted, [0.5, float("nan")])
        >>> found.n, found.excluded, found.inside[0.68]
        (1, 1, 1)
        """
        true = np.asarray(truth, np.float64)
        if not len(true):
            return cls()
        pit, crps = predicted.pit(true), predicted.crps(true)
        good = np.isfinite(pit) & np.isfinite(crps)
        inside = {}
        first, last = float(np.min(predicted.cdf)), float(np.max(predicted.cdf))
        for level in LEVELS:
            low, high = (1.0 - level) / 2.0, (1.0 + level) / 2.0
            if first <= low + ROUNDING and high - ROUNDING <= last:
                inside[level] = _count_inside(
                    predicted.quantile(low), predicted.quantile(high), np.where(good, true, np.nan)
                )
        return cls(
            int(good.sum()),
            int(good.size - good.sum()),
            pit_histogram(pit[good]),
            int(np.rint(crps[good] / CRPS_UNIT).astype(np.int64).sum()),
            inside,
        )

    @classmethod
    def of_values(cls, pit: ArrayLike, crps: ArrayLike) -> DistributionStatistics:
        """Statistics of objects from their PIT and CRPS (n,); NaN if not known."""
        at, score = np.asarray(pit, np.float64), np.asarray(crps, np.float64)
        good = np.isfinite(at) & np.isfinite(score)
        at = at[good]
        inside = {
            level: int(np.count_nonzero(np.abs(at - 0.5) <= level / 2.0 + ROUNDING))
            for level in LEVELS
        }
        return cls(
            int(good.sum()),
            int(good.size - good.sum()),
            pit_histogram(at),
            int(np.rint(score[good] / CRPS_UNIT).astype(np.int64).sum()),
            inside if good.size else {},
        )

    def join(self, other: DistributionStatistics) -> DistributionStatistics:
        """Statistics of both sets of objects."""
        return DistributionStatistics(
            self.n + other.n,
            self.excluded + other.excluded,
            self.pit + other.pit,
            self.crps_units + other.crps_units,
            _added(self.inside, other.inside),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the summary."""
        return {
            "n": self.n,
            "excluded": self.excluded,
            "crps": self.crps_units * CRPS_UNIT / self.n if self.n else float("nan"),
            "pit": self.pit.tolist(),
            "coverage": shares(self.inside, self.n),
        }


@dataclass(frozen=True)
class CoverageStatistics:
    """How often intervals contain the true value."""

    n: int = 0
    """Objects with intervals and a known value."""
    inside: Mapping[float, int] = field(default_factory=dict)
    """Objects whose true value lies in the interval, by the interval's probability."""

    @classmethod
    def of(
        cls, intervals: Mapping[float, tuple[ArrayLike, ArrayLike]], truth: ArrayLike
    ) -> CoverageStatistics:
        """Statistics of (n,) objects.

        Parameters
        ----------
        intervals
            Lower and upper ends, (n,) each, by the intervals' probability; NaN if there is no
            interval.
        truth
            (n,): the true values; NaN if not known.
        """
        true = np.asarray(truth, np.float64)
        known = np.isfinite(true)
        for ends in intervals.values():
            known &= np.isfinite(np.asarray(ends[0])) & np.isfinite(np.asarray(ends[1]))
        true = np.where(known, true, np.nan)
        counts = {level: _count_inside(*ends, true) for level, ends in intervals.items()}
        return cls(int(known.sum()), counts)

    def join(self, other: CoverageStatistics) -> CoverageStatistics:
        """Statistics of both sets of objects."""
        return CoverageStatistics(self.n + other.n, _added(self.inside, other.inside))

    def coverage(self) -> dict[str, float]:
        """Fraction of the true values inside, by the intervals' probability."""
        return shares(self.inside, self.n)


def shares(counts: Mapping[float, int], n: int) -> dict[str, float]:
    """Fractions of n by level, with the level as text, as in JSON."""
    return {f"{level:g}": count / n if n else float("nan") for level, count in counts.items()}


def _count_inside(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> int:
    a, b, true = (np.asarray(x, np.float64) for x in (low, high, truth))
    return int(np.count_nonzero((a <= true) & (true <= b)))


def _added(one: Mapping[float, int], two: Mapping[float, int]) -> Mapping[float, int]:
    levels = sorted({*one, *two})
    return {level: one.get(level, 0) + two.get(level, 0) for level in levels}
