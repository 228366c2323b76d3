"""How good predicted redshifts are: the definitions of the published AstroMAE figures.

With ``dz = (z_pred - z_spec) / (1 + z_spec)``: bias is the mean of dz, NMAD ("precision" in the
papers) is 1.48 times the median of ``|dz - median(dz)|``, the outlier fraction is the share of
``|dz|`` above a stated threshold. MAE, MSE and R2 are of ``z_pred - z_spec`` itself, not of dz:
so they are in the published figures (arXiv 2501.06249; NMAD as in Ilbert et al. 2006).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError

NMAD_SCALE = 1.48
"""As published; 1.4826 would make NMAD the sigma of a Gaussian exactly."""
OUTLIER = 0.15
"""|dz| above it is an outlier ("catastrophic"), the usual threshold of the field."""
OUTLIER_LOW_Z = 0.05
"""The threshold for samples as near as SDSS galaxies, where 0.15 is almost never reached."""


@dataclass(frozen=True)
class RedshiftMetrics:
    """What `redshift_metrics` gives; every figure is dimensionless, NaN where n is 0."""

    n: int
    """Objects that were compared."""
    excluded: int
    """Objects left out: no finite prediction or no finite spectroscopic redshift."""
    mae: float
    """Mean of |z_pred - z_spec|."""
    mse: float
    """Mean of (z_pred - z_spec)^2."""
    bias: float
    """Mean of dz."""
    nmad: float
    """1.48 median |dz - median dz|."""
    r2: float
    """1 - MSE / variance of z_spec: grows with the spread of the sample, so R2 of two samples
    must not be compared. NaN where all z_spec are equal."""
    outliers: float
    """Fraction with |dz| > `outlier_threshold`."""
    outliers_low_z: float
    """Fraction with |dz| > 0.05."""
    outlier_threshold: float = OUTLIER

    def to_json(self) -> dict[str, float]:
        """Plain JSON values, NaN as None being the caller's choice."""
        return asdict(self)


def scaled_error(z_pred: ArrayLike, z_spec: ArrayLike) -> NDArray[np.float64]:
    """``dz = (z_pred - z_spec) / (1 + z_spec)``, float64 (n,)."""
    predicted = np.asarray(z_pred, np.float64).reshape(-1)
    true = np.asarray(z_spec, np.float64).reshape(-1)
    if predicted.shape != true.shape:
        raise BadInputError(
            f"{predicted.size} predicted and {true.size} spectroscopic redshifts do not belong "
            "together: give one of each an object"
        )
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
