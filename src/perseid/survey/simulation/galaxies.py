"""Draw the components of a galaxy of given magnitudes and redshift.

Magnitudes and redshift are real; everything drawn here (type, size, profile, angles, knots,
neighbors) is simulated. Sizes: Shen et al. 2003 (MNRAS 343, 978), equations 14-16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from perseid.survey.simulation import sdss

RED_RIDGE_Z = (0.0, 0.015, 0.045, 0.075, 0.105, 0.14, 0.18, 0.225, 0.275, 0.325, 0.375, 0.6)
RED_RIDGE_GR = (0.75, 0.775, 0.83, 0.89, 0.98, 1.08, 1.22, 1.385, 1.55, 1.71, 1.75, 1.8)
"""Observed g - r of the red sequence at these redshifts: the ridge in the shipped table."""
BULGE_REDDER = np.array([0.55, 0.22, 0.0, -0.07, -0.11])
"""Magnitudes by which a bulge is fainter than its share of the r flux, per band."""
KNOTS_BLUER = np.array([-0.7, -0.35, 0.0, 0.15, 0.25])
"""As `BULGE_REDDER`, for knots of young stars in the arms."""
HUBBLE = 70.0
"""km/s/Mpc; with OMEGA_M and a flat universe, as in Shen et al. 2003."""
OMEGA_M = 0.3
LIGHT_KM_S = 299792.458


@dataclass(frozen=True, eq=False)
class Sersic:
    """An elliptical Sersic profile."""

    index: float
    radius: float
    """Half-light radius along the circularized axis, arcsec."""
    axis_ratio: float
    angle: float
    """Position angle of the long axis from +x, radians."""
    x: float
    """Arcsec from the middle of the cutout."""
    y: float
    flux: NDArray[np.float64]
    """(5,) nanomaggies."""


@dataclass(frozen=True, eq=False)
class Star:
    """A point of light."""

    x: float
    """Arcsec from the middle of the cutout."""
    y: float
    flux: NDArray[np.float64]
    """(5,) nanomaggies."""


@dataclass(frozen=True, eq=False)
class Points:
    """Round spots of one size: knots in spiral arms, or the light along an arc."""

    x: NDArray[np.float64]
    """(k,) arcsec from the middle of the cutout."""
    y: NDArray[np.float64]
    weight: NDArray[np.float64]
    """(k,) share of each spot, summing to 1."""
    sigma: float
    """Gaussian sigma of a spot before the PSF, arcsec."""
    flux: NDArray[np.float64]
    """(5,) nanomaggies of all spots together."""


Component = Sersic | Points | Star
Scene = tuple[Component, ...]


@dataclass(frozen=True, eq=False)
class Galaxy:
    """One drawn galaxy: its components, and the quantities that anomalies depend on."""

    scene: Scene
    early: bool
    radius: float
    """Half-light radius, arcsec."""
    x: float
    """Center, arcsec from the middle of the cutout."""
    y: float
    flux: NDArray[np.float64]
    """(5,) total, nanomaggies; the components sum to it in every band."""


def scaled(scene: Scene, factor: float | NDArray[np.float64]) -> Scene:
    """The scene with all fluxes multiplied by `factor`, a number or (5,)."""
    return tuple(replace(part, flux=part.flux * factor) for part in scene)


def draw_galaxy(
    magnitudes: NDArray[np.floating], redshift: float, rng: np.random.Generator
) -> Galaxy:
    """Draw a galaxy of these magnitudes (5,) at this redshift."""
    total = sdss.flux(magnitudes)
    early = bool(rng.random() < early_probability(float(magnitudes[1] - magnitudes[2]), redshift))
    radius = _draw_radius(float(magnitudes[2]), redshift, early, rng)
    # Real objects are not centered on a pixel.
    x, y = rng.uniform(-0.5, 0.5, 2) * sdss.PIXEL
    draw = _early_scene if early else _late_scene
    scene = draw(total, radius, float(x), float(y), rng)
    return Galaxy(scene, early, radius, float(x), float(y), total)


def early_probability(g_minus_r: float, redshift: float) -> float:
    """Probability of an early type: a smooth step 0.13 mag blueward of the red sequence."""
    ridge = float(np.interp(redshift, RED_RIDGE_Z, RED_RIDGE_GR))
    return float(1.0 / (1.0 + np.exp(-(g_minus_r - ridge + 0.13) / 0.04)))


def median_radius(absolute: float, early: bool) -> tuple[float, float]:
    """Median half-light radius (kpc) and scatter of its logarithm (ln), Shen et al. 2003.

    `absolute` is the r magnitude for H0 = 70; equations 14 (early), 15 (late) and 16 (scatter).
    """
    alpha, beta, gamma, knee, faint_scatter, bright_scatter = 0.21, 0.53, -1.31, -20.52, 0.48, 0.25
    if early:
        log_radius = -0.4 * 0.60 * absolute - 4.63
    else:
        bend = np.log10(1.0 + 10.0 ** (-0.4 * (absolute - knee)))
        log_radius = -0.4 * alpha * absolute + (beta - alpha) * bend + gamma
    share = 1.0 / (1.0 + 10.0 ** (-0.8 * (absolute - knee)))
    return float(10.0**log_radius), bright_scatter + (faint_scatter - bright_scatter) * share


def angular_distance(redshift: float) -> float:
    """Angular diameter distance in Mpc, flat Lambda-CDM."""
    grid = np.linspace(0.0, redshift, 65)
    rate = 1.0 / np.sqrt(OMEGA_M * (1.0 + grid) ** 3 + 1.0 - OMEGA_M)
    comoving = LIGHT_KM_S / HUBBLE * float(np.trapezoid(rate, grid))
    return comoving / (1.0 + redshift)


def _draw_radius(r_mag: float, redshift: float, early: bool, rng: np.random.Generator) -> float:
    """Half-light radius in arcsec. K-correction in r: about 1.1 z (early) and 0.6 z (late)."""
    distance = angular_distance(redshift)
    modulus = 5.0 * np.log10(distance * (1.0 + redshift) ** 2) + 25.0
    absolute = r_mag - modulus - (1.1 if early else 0.6) * redshift
    kpc, scatter = median_radius(absolute, early)
    # Clipped, so that no galaxy gets an absurd size.
    kpc *= float(np.exp(scatter * np.clip(rng.standard_normal(), -2.5, 2.5)))
    return float(np.clip(kpc / (distance * 1e3) * 206264.806, 0.25, 14.0))


def _early_scene(
    total: NDArray[np.float64], radius: float, x: float, y: float, rng: np.random.Generator
) -> Scene:
    share = float(np.clip(rng.normal(0.8, 0.15), 0.4, 1.0))
    index = _rounded_index(rng.normal(4.0, 0.6), 2.5, 5.0)
    ratio = float(rng.uniform(0.55, 1.0))
    angle = float(rng.uniform(0.0, np.pi))
    bulge_flux = _bulge_flux(total, share, 0.5 * float(rng.uniform(0.2, 1.0)))
    bulge_radius, disk_radius = component_radii(radius, share, index, 0.6)
    bulge = Sersic(index, bulge_radius, ratio, angle, x, y, bulge_flux)
    disk = Sersic(1.0, disk_radius, 0.9 * ratio, angle, x, y, total - bulge_flux)
    return (bulge, disk)


def _late_scene(
    total: NDArray[np.float64], radius: float, x: float, y: float, rng: np.random.Generator
) -> Scene:
    share = 0.9 * float(rng.beta(1.3, 5.0))
    index = _rounded_index(rng.normal(1.8, 0.6), 1.0, 3.0)
    thickness = 0.2  # of a disk, Ryden 2006 (ApJ 641, 773)
    cosine = float(rng.uniform(0.05, 1.0))
    ratio = float(np.sqrt(cosine**2 * (1.0 - thickness**2) + thickness**2))
    angle = float(rng.uniform(0.0, np.pi))
    bulge_flux = _bulge_flux(total, share, float(rng.uniform(0.3, 1.0)))
    size_ratio = float(rng.uniform(0.15, 0.35))
    bulge_radius, disk_radius = component_radii(radius, share, index, size_ratio)
    disk_flux = total - bulge_flux
    knot_flux = disk_flux * np.minimum(rng.uniform(0.04, 0.22) * 10.0 ** (-0.4 * KNOTS_BLUER), 0.6)
    return (
        Sersic(index, bulge_radius, 0.5 + 0.5 * ratio, angle, x, y, bulge_flux),
        Sersic(1.0, disk_radius, ratio, angle, x, y, disk_flux - knot_flux),
        _arm_knots(disk_radius, ratio, angle, x, y, knot_flux, rng),
    )


def _arm_knots(
    radius: float,
    ratio: float,
    angle: float,
    x: float,
    y: float,
    flux: NDArray[np.float64],
    rng: np.random.Generator,
) -> Points:
    """Knots along two logarithmic arms of the disk, which is seen at `ratio` and `angle`."""
    count = int(rng.integers(8, 25))
    distance = radius * rng.uniform(0.4, 1.9, count)
    pitch = np.tan(np.radians(rng.uniform(12.0, 30.0))) * rng.choice((-1.0, 1.0))
    turn = np.log(distance / radius) / pitch + np.pi * rng.integers(0, 2, count)
    turn += rng.normal(0.0, 0.18, count) + rng.uniform(0.0, 2 * np.pi)
    along = distance * np.cos(turn) / np.sqrt(ratio)
    across = distance * np.sin(turn) * np.sqrt(ratio)
    weight = rng.exponential(1.0, count) * np.exp(-distance / radius)
    return Points(
        x + along * np.cos(angle) - across * np.sin(angle),
        y + along * np.sin(angle) + across * np.cos(angle),
        weight / weight.sum(),
        max(0.15, 0.1 * radius),
        flux,
    )


def draw_neighbors(table: sdss.GalaxyTable, rng: np.random.Generator) -> Scene:
    """Draw field galaxies and stars around the object, some just outside the cutout.

    About 0.3 galaxies and 0.1 stars per cutout to r = 23, as at high galactic latitude; number
    counts rise as 10^(0.38 r) and 10^(0.15 r). Galaxies take the colors of a random
    real row. None lies within 2 arcsec of the center, where it would look like the anomaly
    `merger`.
    """
    parts: list[Component] = []
    for _ in range(int(rng.poisson(0.42))):
        x, y = _field_position(rng)
        colors = table.magnitudes[int(rng.integers(len(table)))]
        light = sdss.flux(colors - colors[2] + _field_magnitude(rng, 0.38, 17.0))
        radius = float(np.clip(0.9 * np.exp(0.4 * rng.standard_normal()), 0.3, 3.0))
        index = float(rng.choice((1.0, 2.5, 4.0)))
        ratio = float(rng.uniform(0.3, 1.0))
        parts.append(Sersic(index, radius, ratio, float(rng.uniform(0, np.pi)), x, y, light))
    for _ in range(int(rng.poisson(0.14))):
        x, y = _field_position(rng)
        light = star_flux(_field_magnitude(rng, 0.15, 16.5), float(rng.uniform(0.3, 1.4)))
        parts.append(Star(x, y, light))
    return tuple(parts)


def star_flux(r_mag: float, g_minus_r: float) -> NDArray[np.float64]:
    """(5,) nanomaggies of a main-sequence star on a simple stellar locus (Covey et al. 2007)."""
    r_minus_i = 0.4 * g_minus_r + max(0.0, g_minus_r - 1.2) * 3.0
    u_minus_g = 0.7 + 1.3 * g_minus_r
    offsets = (u_minus_g + g_minus_r, g_minus_r, 0.0, -r_minus_i, -1.5 * r_minus_i)
    return sdss.flux(r_mag + np.array(offsets))


def component_radii(
    radius: float, bulge_share: float, bulge_index: float, ratio: float
) -> tuple[float, float]:
    """Half-light radii of bulge and disk whose sum has the half-light radius `radius`.

    `ratio` is bulge over disk; found by bisection on the enclosed light in r.
    """
    low, high = radius * 0.2, radius / ratio * 5.0
    # 24 bisections give a precision far below that of the sizes themselves.
    for _ in range(24):
        disk = np.sqrt(low * high)
        inside = bulge_share * _enclosed(bulge_index, radius / (ratio * disk))
        inside += (1.0 - bulge_share) * _enclosed(1.0, radius / disk)
        low, high = (disk, high) if inside > 0.5 else (low, disk)
    disk = float(np.sqrt(low * high))
    return ratio * disk, disk


def _enclosed(index: float, radii: float) -> float:
    """Fraction of a Sersic profile's light inside `radii` half-light radii."""
    grid, light = _curve_of_growth(index)
    return float(np.interp(np.log(radii), grid, light))


@cache
def _curve_of_growth(index: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log radius and enclosed share; b_n by Ciotti & Bertin 1999 (A&A 352, 447)."""
    b = 2.0 * index - 1.0 / 3.0 + 4.0 / (405.0 * index) + 46.0 / (25515.0 * index**2)
    log_radius = np.linspace(np.log(1e-4), np.log(1e4), 4001)
    radius = np.exp(log_radius)
    shell = radius**2 * np.exp(-b * (radius ** (1.0 / index) - 1.0))
    light = np.concatenate([[0.0], np.cumsum(0.5 * (shell[1:] + shell[:-1]))])
    return log_radius, light / light[-1]


def _bulge_flux(total: NDArray[np.float64], share: float, contrast: float) -> NDArray[np.float64]:
    """Flux of the bulge: its share of r, redder than the galaxy, always below the total."""
    return np.asarray(total * np.minimum(share * 10.0 ** (-0.4 * contrast * BULGE_REDDER), 0.98))


def _rounded_index(value: float, low: float, high: float) -> float:
    """Round a Sersic index to steps of 0.5, because GalSim computes a table for each value."""
    return float(np.clip(np.round(2.0 * value) / 2.0, low, high))


def _field_position(rng: np.random.Generator) -> tuple[float, float]:
    """Anywhere on 38 x 38 pixels, at least 2 arcsec from the middle."""
    half = 19.0 * sdss.PIXEL
    while True:
        x, y = rng.uniform(-half, half, 2)
        if np.hypot(x, y) >= 2.0:
            return float(x), float(y)


def _field_magnitude(rng: np.random.Generator, slope: float, bright: float) -> float:
    """An r magnitude up to 23 with number counts rising as 10^(slope r)."""
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * 23.0)
    return float(np.log10(rng.uniform(low, high)) / slope)
