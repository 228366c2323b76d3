"""The Sloan Digital Sky Survey: the table of real galaxies, and the camera's constants.

Sources: pixel scale, camera and drift scan, Gunn et al. 1998 (AJ 116, 3040); photometry and
gain, Fukugita et al. 1996 (AJ 111, 1748) and the SDSS frame data model (camera column 3);
nanomaggies, Finkbeiner et al. 2004 (AJ 128, 2577): 1 nMgy is 22.5 mag.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

PIXEL = 0.396
"""Arcseconds per pixel."""
SIZE = 32
"""Pixels on each side of a cutout."""
BANDS = 5
"""Number of bands: u, g, r, i, z, in this order everywhere."""
PSF_FWHM = (1.55, 1.43, 1.32, 1.25, 1.18)
"""Arcseconds in u, g, r, i, z: typical seeing of the imaging survey."""
PSF_BETA = 3.0
"""Moffat exponent. Unlike a Gaussian, a Moffat profile has the wings of a real PSF."""
BACKGROUND_SIGMA = np.array([0.053, 0.017, 0.028, 0.045, 0.197])
"""Standard deviation per pixel, nanomaggies: sky, dark current and read noise together."""
NMGY_PER_COUNT = np.array([0.0109, 0.00393, 0.00507, 0.00680, 0.0331])
"""Nanomaggies per count (DN) of a typical frame."""
GAIN = np.array([1.59, 3.845, 4.72, 4.86, 4.885])
"""Electrons per count (DN)."""
DARK_VARIANCE = np.array([8.70, 1.32, 1.32, 4.62, 1.00])
"""Variance of read noise and dark current, counts squared per pixel."""
FULL_SCALE = 65535.0
"""Counts at which the 16-bit converter saturates."""

ELECTRONS = GAIN / NMGY_PER_COUNT
"""Electrons per nanomaggy."""
READ_ELECTRONS = np.sqrt(DARK_VARIANCE) * GAIN
"""Standard deviation of read noise and dark current, electrons per pixel."""
SKY_ELECTRONS = np.maximum((BACKGROUND_SIGMA * ELECTRONS) ** 2 - READ_ELECTRONS**2, 0.0)
"""Sky electrons per pixel: the part of the background variance that is not read noise."""
SATURATION = FULL_SCALE * NMGY_PER_COUNT
"""Flux at which a pixel saturates, nanomaggies."""


@dataclass(frozen=True, eq=False)
class GalaxyTable:
    """Real galaxies, one per row; ``data/README.md`` gives their provenance."""

    magnitudes: NDArray[np.float32]
    """(rows, 5), extinction-corrected model magnitudes u, g, r, i, z."""
    errors: NDArray[np.float32]
    """(rows, 5), their errors, mag."""
    redshift: NDArray[np.float32]
    """(rows,), spectroscopic."""
    ra: NDArray[np.float64]
    """(rows,), degrees; NaN for the half that has no position."""
    dec: NDArray[np.float64]
    """(rows,), degrees; NaN for the half that has no position."""
    source: NDArray[np.str_]
    """(rows,), the package that distributed the row: ``mlz`` or ``kcorrect``."""

    def __len__(self) -> int:
        return int(self.redshift.shape[0])


def load_table() -> GalaxyTable:
    """Load the table shipped with the package, 19,817 rows."""
    path = resources.files("perseid.survey").joinpath("data/sdss_galaxies.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return GalaxyTable(**{name: arrays[name] for name in arrays.files})


def flux(magnitudes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Nanomaggies of (Pogson) AB magnitudes, any shape."""
    return np.asarray(10.0 ** (0.4 * (22.5 - np.asarray(magnitudes, dtype=np.float64))))


def magnitude(nanomaggies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Magnitudes of positive fluxes in nanomaggies, any shape."""
    return np.asarray(22.5 - 2.5 * np.log10(np.asarray(nanomaggies, dtype=np.float64)))


def add_noise(expected: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
    """Add photon noise of object and sky and read noise; the mean sky level is subtracted.

    Parameters
    ----------
    expected
        (5, h, w) nanomaggies, without sky. Small negative values, which the Fourier method can
        give, are treated as zero.
    rng
        Source of all randomness.

    Returns
    -------
    (5, h, w) nanomaggies.
    """
    per_band = (slice(None), None, None)
    electrons = np.maximum(expected, 0.0) * ELECTRONS[per_band]
    sky = SKY_ELECTRONS[per_band]
    # The sky is subtracted after counting, so its photon noise remains, as in real images.
    counted = rng.poisson(electrons + sky) - sky
    read = rng.standard_normal(expected.shape) * READ_ELECTRONS[per_band]
    return np.asarray((counted + read) / ELECTRONS[per_band])
