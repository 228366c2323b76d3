"""Redshift metrics as statistics that merge, for surveys too large for one process."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.science.histogram import BINS, Histogram, centers, weighted_median
from perseid.science.metrics import (
    NMAD_SCALE,
    OUTLIER,
    OUTLIER_LOW_Z,
    RedshiftMetrics,
    scaled_error,
)


def _nothing() -> Histogram:
    return Histogram(np.zeros(BINS, np.int64))


@dataclass(frozen=True, eq=False)
class RedshiftStatistics:
    """Sums and histograms of ``dz`` over some objects; see `metrics.redshift_metrics`.

    Every figure equals that of `redshift_metrics` up to rounding, except NMAD, whose medians come
    from the fixed bins of a `Histogram`, each 0.1 % wide.
    """

    n: int = 0
    excluded: int = 0
    error: float = 0.0
    """Sum of |z_pred - z_spec|."""
    square: float = 0.0
    """Sum of (z_pred - z_spec)^2."""
    dz: float = 0.0
    """Sum of dz."""
    z_mean: float = 0.0
    """Mean of z_spec."""
    z_scatter: float = 0.0
    """Sum of (z_spec - mean)^2."""
    outliers: int = 0
    outliers_low_z: int = 0
    above: Histogram = field(default_factory=_nothing)
    """Histogram of dz, for dz >= 0."""
    below: Histogram = field(default_factory=_nothing)
    """Histogram of -dz, for dz < 0."""

    @classmethod
    def of(cls, z_pred: ArrayLike, z_spec: ArrayLike) -> RedshiftStatistics:
        """Statistics of (n,) redshifts; rows in which either is not finite are counted as
        excluded."""
        dz = scaled_error(z_pred, z_spec)
        true = np.asarray(z_spec, np.float64).reshape(-1)
        good = np.isfinite(dz)
        excluded = int(good.size - np.count_nonzero(good))
        dz, true = dz[good], true[good]
        if not dz.size:
            return cls(excluded=excluded)
        error, size, mean = dz * (1.0 + true), np.abs(dz), float(true.mean())
        return cls(
            n=int(dz.size),
            excluded=excluded,
            error=float(np.abs(error).sum()),
            square=float((error**2).sum()),
            dz=float(dz.sum()),
            z_mean=mean,
            z_scatter=float(((true - mean) ** 2).sum()),
            outliers=int(np.count_nonzero(size > OUTLIER)),
            outliers_low_z=int(np.count_nonzero(size > OUTLIER_LOW_Z)),
            above=Histogram.of(dz[dz >= 0]),
            below=Histogram.of(-dz[dz < 0]),
        )

    def join(self, other: RedshiftStatistics) -> RedshiftStatistics:
        """Statistics of both sets of objects."""
        n = self.n + other.n
        shift = other.z_mean - self.z_mean
        weight = other.n / n if n else 0.0
        return RedshiftStatistics(
            n=n,
            excluded=self.excluded + other.excluded,
            error=self.error + other.error,
            square=self.square + other.square,
            dz=self.dz + other.dz,
            z_mean=self.z_mean + shift * weight,
            z_scatter=self.z_scatter + other.z_scatter + shift**2 * weight * self.n,
            outliers=self.outliers + other.outliers,
            outliers_low_z=self.outliers_low_z + other.outliers_low_z,
            above=self.above.join(other.above),
            below=self.below.join(other.below),
        )

    def metrics(self) -> RedshiftMetrics:
        """Compute the metrics of all objects."""
        if not self.n:
            return RedshiftMetrics(0, self.excluded, *(float("nan"),) * 7)
        variance = self.z_scatter / self.n
        mse = self.square / self.n
        return RedshiftMetrics(
            n=self.n,
            excluded=self.excluded,
            mae=self.error / self.n,
            mse=mse,
            bias=self.dz / self.n,
            nmad=self._nmad(),
            r2=1.0 - mse / variance if variance > 0 else float("nan"),
            outliers=self.outliers / self.n,
            outliers_low_z=self.outliers_low_z / self.n,
        )

    def _nmad(self) -> float:
        values, counts = self._values()
        median = weighted_median(values, counts)
        return float(NMAD_SCALE * weighted_median(np.abs(values - median), counts))

    def _values(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The centers of non-empty bins, in dz, and their counts."""
        middle = centers()
        values = np.concatenate([-middle, middle])
        counts = np.concatenate([self.below.counts, self.above.counts])
        used = counts > 0
        return values[used], counts[used]
