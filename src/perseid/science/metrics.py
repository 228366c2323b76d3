"""Quality of predicted redshifts, as defined for the published AstroMAE figures.

With ``dz = (z_pred - z_spec) / (1 + z_spec)``: bias is the mean of dz, NMAD ("precision" in the
papers) is 1.48 times the median of ``|dz - median(dz)|``, the outlier fraction is the share of
``|dz|`` above a stated threshold. MAE, MSE and R2 use ``z_pred - z_spec`` itself, not dz, as in the
published figures (arXiv 2501.06249; NMAD as in Ilbert et al. 2006).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError

NMAD_SCALE = 1.48
"""The published value; with 1.4826, NMAD would be exactly the sigma of a Gaussian."""
OUTLIER = 0.15
"""The field's usual threshold of |dz| for ("catastrophic") outliers."""
OUTLIER_LOW_Z = 0.05
"""Threshold for nearby samples such as SDSS galaxies, in which 0.15 is almost never reached."""


@dataclass(frozen=True)
class RedshiftMetrics:
    """Result of `redshift_metrics`; every figure is dimensionless, and NaN if n is 0."""

    n: int
    """Objects that were compared."""
    excluded: int
    """Objects left out because the predicted or the spectroscopic redshift is not finite."""
    mae: float
    """Mean of |z_pred - z_spec|."""
    mse: float
    """Mean of (z_pred - z_spec)^2."""
    bias: float
    """Mean of dz."""
    nmad: float
    """1.48 median |dz - median dz|."""
    r2: float
    """1 - MSE / variance of z_spec: grows with the spread of the sample, so R2 of different samples
    cannot be compared. NaN if all z_spec are equal."""
    outliers: float
    """Fraction with |dz| > `outlier_threshold`."""
    outliers_low_z: float
    """Fraction with |dz| > 0.05."""
    outlier_threshold: float = OUTLIER

    def to_json(self) -> dict[str, float]:
        """Convert to JSON values; NaN is kept."""
        return asdict(self)


def scaled_error(z_pred: ArrayLike, z_spec: ArrayLike) -> NDArray[np.float64]:
    """``dz = (z_pred - z_spec) / (1 + z_spec)``, float64 (n,)."""
    predicted = np.asarray(z_pred, np.float64).reshape(-1)
    true = np.asarray(z_spec, np.float64).reshape(-1)
    if predicted.shape != true.shape:
        raise BadInputError(
            f"{predicted.size} predicted and {true.size} spectroscopic redshifts do not match: "
            "give one of each per object"
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # of a redshift that is -1 or infinite
        return np.asarray((predicted - true) / (1.0 + true))


def redshift_metrics(
    z_pred: ArrayLike, z_spec: ArrayLike, *, outlier: float = OUTLIER
) -> RedshiftMetrics:
    """Compare predicted with spectroscopic redshifts.

    Parameters
    ----------
    z_pred, z_spec
        (n,) or (n, 1); rows where either is not finite are left out and counted.
    outlier
        Threshold of |dz| for `RedshiftMetrics.outliers`.

    Raises
    ------
    BadInputError
        The two have different lengths.
    """
    dz = scaled_error(z_pred, z_spec)
    true = np.asarray(z_spec, np.float64).reshape(-1)
    good = np.isfinite(dz)
    dz, true = dz[good], true[good]
    excluded = int(good.size - dz.size)
    if not dz.size:
        return RedshiftMetrics(0, excluded, *(float("nan"),) * 7, outlier_threshold=outlier)
    error = dz * (1.0 + true)
    mse, variance = float(np.mean(error**2)), float(np.var(true))
    size = np.abs(dz)
    return RedshiftMetrics(
        n=int(dz.size),
        excluded=excluded,
        mae=float(np.mean(np.abs(error))),
        mse=mse,
        bias=float(np.mean(dz)),
        nmad=nmad(dz),
        r2=1.0 - mse / variance if variance > 0 else float("nan"),
        outliers=float(np.mean(size > outlier)),
        outliers_low_z=float(np.mean(size > OUTLIER_LOW_Z)),
        outlier_threshold=outlier,
    )


def nmad(dz: NDArray[np.float64]) -> float:
    """1.48 median |dz - median dz|."""
    return float(NMAD_SCALE * np.median(np.abs(dz - np.median(dz))))
