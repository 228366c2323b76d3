"""Quality of predicted distributions (PIT, CRPS, coverage), and intervals for point predictions.

A predicted distribution is a set of quantiles or a density on a grid. The probability integral
transform (PIT) of an object is the predicted probability of values below its true one: it is
uniform over all objects if the distributions are calibrated. The continuous ranked probability
score (CRPS) is the integral of (CDF - step at the true value)^2, in the unit of the value; for a
point prediction it is the absolute error (Gneiting & Raftery 2007, JASA 102, 359).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError

Floats = NDArray[np.float64]
PIT_BINS = 20
"""Bins of a PIT histogram."""


@dataclass(frozen=True, eq=False)
class Distributions:
    """One predicted distribution per object, as a piecewise linear CDF."""

    values: Floats
    """(n, k), ascending in each row: at least two values at which the CDF is known."""
    cdf: Floats
    """(k,) or (n, k): the CDF at these values, ascending, from 0 to 1. It is 0 below the first
    value and 1 from the last value on."""

    @classmethod
    def of_quantiles(cls, quantiles: ArrayLike, levels: ArrayLike) -> Distributions:
        """From quantiles (n, k) at the levels (k,), ascending within 0 to 1.

        Crossing quantiles, which networks can produce, are sorted row by row.

        Raises
        ------
        BadInputError
            The shapes do not match, or the levels do not ascend.
        """
        q, level = np.asarray(quantiles, np.float64), np.asarray(levels, np.float64)
        if q.ndim != 2 or level.shape != q.shape[1:] or len(level) < 2:
            raise BadInputError(
                f"quantiles {q.shape} and levels {level.shape} do not match: give a row of two or "
                "more quantiles per object, and their levels once"
            )
        if not (np.all(np.diff(level) > 0) and level[0] >= 0 and level[-1] <= 1):
            raise BadInputError(f"levels {level.tolist()} must ascend within 0 to 1")
        return cls(np.sort(q, axis=1), level)

    @classmethod
    def of_density(cls, density: ArrayLike, grid: ArrayLike) -> Distributions:
        """From a density (n, k) on a grid (k,), ascending; rows are normalized.

        The integral is by the trapezoidal rule. Rows whose integral is not positive give NaN.

        Raises
        ------
        BadInputError
            The shapes do not match, the grid does not ascend, or a density is negative.
        """
        p, x = np.asarray(density, np.float64), np.asarray(grid, np.float64)
        if p.ndim != 2 or x.shape != p.shape[1:] or len(x) < 2 or not np.all(np.diff(x) > 0):
            raise BadInputError(
                f"densities {p.shape} and the grid {x.shape} do not match: give a row of two or "
                "more densities per object on one ascending grid"
            )
        if np.any(p < 0):
            raise BadInputError(f"densities must not be negative: the least is {np.nanmin(p)}")
        steps = (p[:, 1:] + p[:, :-1]) / 2.0 * np.diff(x)
        cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(steps, axis=1)], axis=1)
        total = cdf[:, -1:]
        with np.errstate(invalid="ignore"):
            cdf = np.where(total > 0, cdf / np.where(total > 0, total, 1.0), np.nan)
        return cls(np.broadcast_to(x, p.shape), cdf)

    @classmethod
    def of_bins(cls, probabilities: ArrayLike, edges: ArrayLike) -> Distributions:
        """From probabilities (n, k) of the bins between edges (k + 1,), ascending.

        Rows are normalized; rows whose sum is not positive give NaN.

        Raises
        ------
        BadInputError
            The shapes do not match, the edges do not ascend, or a number is negative.

        Examples
        --------
        >>> Distributions.of_bins([[1.0, 3.0]], [0.0, 1.0, 2.0]).pit([1.5]).tolist()
        [0.625]
        """
        p, x = np.asarray(probabilities, np.float64), np.asarray(edges, np.float64)
        if p.ndim != 2 or x.shape != (p.shape[1] + 1,) or not np.all(np.diff(x) > 0):
            raise BadInputError(
                f"probabilities {p.shape} and edges {x.shape} do not match: give one probability "
                "per bin for each object, and the ascending edges of the bins"
            )
        return cls(*_cumulated(p, x))

    def quantile(self, level: float) -> Floats:
        """(n,): the value below which the fraction `level` (0 to 1) of the probability lies.

        Levels outside the known part of the CDF give the first or last value.
        """
        cdf = np.broadcast_to(self.cdf, self.values.shape)
        return _interpolate(cdf, self.values, np.full(len(self.values), level))

    def pit(self, truth: ArrayLike) -> Floats:
        """(n,), 0 to 1: the CDF at the true values (n,); NaN if anything is not finite.

        Outside the known values it is 0 or 1.
        """
        true = np.asarray(truth, np.float64)
        cdf = np.broadcast_to(self.cdf, self.values.shape)
        inside = _interpolate(self.values, cdf, true)
        found = np.where(true < self.values[:, 0], 0.0, inside)
        found = np.where(true >= self.values[:, -1], 1.0, found)
        return np.where(self._finite(true), found, np.nan)

    def crps(self, truth: ArrayLike) -> Floats:
        """(n,), in the unit of the values: CRPS for the true values (n,); NaN if not finite.

        Exact for the piecewise linear CDF.
        """
        true = np.asarray(truth, np.float64)
        y, x = true[:, None], self.values
        f = np.broadcast_to(self.cdf, x.shape)
        low, high, below, above = x[:, :-1], x[:, 1:], f[:, :-1], f[:, 1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            middle = np.clip(y, low, high)
            width = high - low
            share = np.where(width > 0, (middle - low) / np.where(width > 0, width, 1.0), 0.0)
            at = below + (above - below) * share
            left = (middle - low) * (below**2 + below * at + at**2) / 3.0
            right = (
                (high - middle) * ((1 - at) ** 2 + (1 - at) * (1 - above) + (1 - above) ** 2) / 3
            )
            inside = np.sum(left + right, axis=1)
            outside = np.clip(x[:, 0] - true, 0.0, None) + np.clip(true - x[:, -1], 0.0, None)
        return np.where(self._finite(true), inside + outside, np.nan)

    def coverage(self, truth: ArrayLike, level: float) -> float:
        """Fraction of the true values inside the central interval of probability `level` (0 to
        1)."""
        low, high = self.quantile((1.0 - level) / 2.0), self.quantile((1.0 + level) / 2.0)
        return interval_coverage(low, high, truth)

    def _finite(self, true: Floats) -> NDArray[np.bool_]:
        cdf = np.broadcast_to(self.cdf, self.values.shape)
        good = np.isfinite(self.values).all(axis=1) & np.isfinite(cdf).all(axis=1)
        return good & np.isfinite(true)


def _cumulated(p: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Convert probabilities in bins to values (n, k + 1) and the CDF at them."""
    if np.any(p < 0):
        raise BadInputError(f"probabilities must not be negative: the least is {np.nanmin(p)}")
    cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, axis=1)], axis=1)
    total = cdf[:, -1:]
    with np.errstate(invalid="ignore"):
        cdf = np.where(total > 0, cdf / np.where(total > 0, total, 1.0), np.nan)
    return np.broadcast_to(x, cdf.shape), cdf


def pit_histogram(pit: ArrayLike, bins: int = PIT_BINS) -> NDArray[np.int64]:
    """(bins,) counts of PIT values from 0 to 1, without NaN. The counts of ranks can be added."""
    values = np.asarray(pit, np.float64)
    values = values[np.isfinite(values)]
    return np.histogram(values, bins=bins, range=(0.0, 1.0))[0].astype(np.int64)


def interval_coverage(low: ArrayLike, high: ArrayLike, truth: ArrayLike) -> float:
    """Fraction of true values (n,) from `low` to `high` (n,), without rows with a NaN.

    NaN if no row is left.
    """
    a, b, true = (np.asarray(x, np.float64) for x in (low, high, truth))
    good = np.isfinite(a) & np.isfinite(b) & np.isfinite(true)
    return float(np.mean(((a <= true) & (true <= b))[good])) if good.any() else float("nan")


def conformal_width(residuals: ArrayLike, level: float) -> float:
    """Half width of intervals around point predictions that contain `level` of the true values.

    Split conformal prediction: with residuals of n calibration objects, the interval around the
    prediction of a new object of the same population holds its true value with a probability of at
    least `level`, whatever the model (Lei et al. 2018, JASA 113, 1094).

    Parameters
    ----------
    residuals
        (n,): true minus predicted, in the unit of the value, or divided by a scale for each object
        (such as 1 + z); objects must not have been used for training. NaN does not count.
    level
        Desired probability, above 0 and below 1.

    Returns
    -------
    The half width, in the unit of the residuals.

    Raises
    ------
    BadInputError
        The level is not between 0 and 1, or there are too few objects for it.

    Examples
    --------
    >>> conformal_width([-0.02, 0.01, 0.03, -0.01], 0.68)
    0.03
    """
    if not 0.0 < level < 1.0:
        raise BadInputError(f"the level must be between 0 and 1, not {level}")
    sizes = np.abs(np.asarray(residuals, np.float64))
    sizes = np.sort(sizes[np.isfinite(sizes)])
    # Rounded first, because a product such as 100 * 0.07 is slightly too large in floating point.
    place = ceil(round((len(sizes) + 1) * level, 9))
    if place > len(sizes):
        raise BadInputError(
            f"{len(sizes)} calibration objects are too few for intervals of {level:.0%}: give at "
            f"least {ceil(level / (1.0 - level))}"
        )
    return float(sizes[place - 1])


def _interpolate(x: Floats, y: Floats, at: Floats) -> Floats:
    """Interpolate y(x) linearly at one point per row, constant beyond the ends; rows of x
    ascend."""
    place = np.clip(np.sum(x <= at[:, None], axis=1), 1, x.shape[1] - 1)
    row = np.arange(len(x))
    x0, x1, y0, y1 = x[row, place - 1], x[row, place], y[row, place - 1], y[row, place]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(x1 > x0, (at - x0) / np.where(x1 > x0, x1 - x0, 1.0), 1.0)
    return np.asarray(y0 + (y1 - y0) * np.clip(share, 0.0, 1.0))
