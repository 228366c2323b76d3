"""Labeled anomalies: rare objects and image defects.

Each is applied at the stage where it arises: on the sky (merger, ring, tidal stream), in the
optics before photons are counted (satellite trail, saturated star, misaligned band), or in the
detector (cosmic ray, bad column, dead band).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perseid.survey.kinds import ANOMALY_KINDS as ANOMALY_KINDS
from perseid.survey.simulation import sdss
from perseid.survey.simulation.galaxies import (
    Galaxy,
    Points,
    Scene,
    Sersic,
    Star,
    scaled,
    star_flux,
)
from perseid.survey.simulation.render import render

Image = NDArray[np.float64]
_BLUE_ARC = np.array([0.55, 0.35, 0.0, -0.12, -0.15])
"""Magnitudes of a star-forming background galaxy in u, g, r, i, z relative to r."""


def observe(
    galaxy: Galaxy,
    neighbors: Scene,
    kind: int,
    chance: np.random.Generator,
    noise: np.random.Generator,
) -> Image:
    """Simulate the observation of one object.

    Parameters
    ----------
    galaxy, neighbors
        Components of the scene; the same with and without an anomaly.
    kind
        A key of `ANOMALY_KINDS`.
    chance
        Random numbers of the anomaly; unused for a plain object.
    noise
        Random numbers of the noise.

    Returns
    -------
    (5, 32, 32) nanomaggies.
    """
    name = ANOMALY_KINDS[kind]
    scene = _ON_THE_SKY[name](galaxy, chance) if name in _ON_THE_SKY else galaxy.scene
    shift = _band_shift(chance) if name == "band offset" else None
    image = render((*scene, *neighbors), shift)
    if name in _IN_THE_TELESCOPE:
        image = _IN_THE_TELESCOPE[name](image, chance)
    image = sdss.add_noise(image, noise)
    if name in _IN_THE_DETECTOR:
        image = _IN_THE_DETECTOR[name](image, chance)
    return image


def merger(galaxy: Galaxy, rng: np.random.Generator) -> Scene:
    """Add a second nucleus at 1.6 to 3.8 arcsec and a short tail; the total flux is unchanged."""
    ratio = rng.uniform(0.35, 1.0)
    apart = rng.uniform(1.6, 3.8)
    angle = rng.uniform(0.0, 2 * np.pi)
    tail_share = rng.uniform(0.05, 0.15)
    radius = max(0.4, min(galaxy.radius, 2.5) * np.sqrt(ratio) * 0.6)
    second = galaxy.flux * (1 - tail_share) * ratio / (1 + ratio)
    companion = Sersic(
        float(rng.choice((1.0, 2.5, 4.0))),
        float(radius),
        float(rng.uniform(0.5, 1.0)),
        float(rng.uniform(0.0, np.pi)),
        galaxy.x + float(apart * np.cos(angle)),
        galaxy.y + float(apart * np.sin(angle)),
        second,
    )
    tail = _arc(
        companion.x, companion.y, angle + np.pi / 2, rng.uniform(2, 4), rng.uniform(-1.2, 1.2)
    )
    tail_light = Points(*tail, 0.6, galaxy.flux * tail_share)
    return (*scaled(galaxy.scene, (1 - tail_share) / (1 + ratio)), companion, tail_light)


def ring(galaxy: Galaxy, rng: np.random.Generator) -> Scene:
    """Add a blue ring or arc around the galaxy, like that of a lensed background galaxy."""
    radius = float(np.clip(rng.uniform(1.0, 1.5) * galaxy.radius, 1.8, 4.5))
    span = float(rng.choice((1.0, rng.uniform(0.25, 0.7))))
    start = rng.uniform(0.0, 2 * np.pi)
    turn = start + span * np.linspace(0.0, 2 * np.pi, 160, endpoint=False)
    ratio = rng.uniform(0.85, 1.0)
    weight = 1.0 + 0.5 * np.cos(2 * turn + rng.uniform(0.0, 2 * np.pi))
    light = max(float(rng.uniform(0.15, 0.45) * galaxy.flux[2]), 10.0 * span * radius / 3)
    arc = Points(
        galaxy.x + radius * np.cos(turn),
        galaxy.y + radius * ratio * np.sin(turn),
        weight / weight.sum(),
        0.3,
        light * 10.0 ** (-0.4 * _BLUE_ARC),
    )
    return (*galaxy.scene, arc)


def tidal_stream(galaxy: Galaxy, rng: np.random.Generator) -> Scene:
    """Add a long curved stream with the galaxy's colors; the total flux is unchanged."""
    share = float(np.clip(12.0 / galaxy.flux[2], rng.uniform(0.12, 0.28), 0.45))
    angle = rng.uniform(0.0, 2 * np.pi)
    begin = 0.7 * min(galaxy.radius, 3.0)
    bend = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.8, 2.4))
    x, y, weight = _arc(
        galaxy.x + begin * np.cos(angle),
        galaxy.y + begin * np.sin(angle),
        angle + 0.4 * bend,
        rng.uniform(6.0, 10.0),
        bend,
    )
    stream = Points(x, y, weight, float(rng.uniform(0.35, 0.6)), galaxy.flux * share)
    return (*scaled(galaxy.scene, 1.0 - share), stream)


def satellite_trail(image: Image, rng: np.random.Generator) -> Image:
    """Add a straight line across one band (the bands are exposed one after the other)."""
    band = int(rng.integers(sdss.BANDS))
    angle = rng.uniform(0.0, np.pi)
    y, x = np.mgrid[: sdss.SIZE, : sdss.SIZE] - (sdss.SIZE - 1) / 2
    distance = (x * np.sin(angle) - y * np.cos(angle) - rng.uniform(-10.0, 10.0)) * sdss.PIXEL
    # Satellites are near, so out of focus.
    width = sdss.PSF_FWHM[band] / 2.355 * rng.uniform(1.0, 1.6)
    peak = sdss.BACKGROUND_SIGMA[band] * 10.0 ** rng.uniform(0.9, 2.0)
    out = image.copy()
    out[band] += peak * np.exp(-0.5 * (distance / width) ** 2)
    return out


def saturated_star(image: Image, rng: np.random.Generator) -> Image:
    """Add a star of r = 9.5 to 12.5 off center, whose charge bleeds along the columns."""
    half = (sdss.SIZE / 2 - 1) * sdss.PIXEL
    while True:
        x, y = rng.uniform(-half, half, 2)
        if np.hypot(x, y) > 2.8:
            break
    light = star_flux(float(rng.uniform(9.5, 12.5)), float(rng.uniform(0.3, 1.0)))
    out = image + render((Star(float(x), float(y), light),))
    for band, limit in enumerate(sdss.SATURATION):
        for column in range(sdss.SIZE):
            out[band, :, column] = _bleed(out[band, :, column], float(limit))
    return out


def cosmic_ray(image: Image, rng: np.random.Generator) -> Image:
    """Add a track of 1 to 12 pixels in one band, not blurred by the PSF."""
    band = int(rng.integers(sdss.BANDS))
    length = 1.0 + 11.0 * float(rng.random()) ** 2
    angle = rng.uniform(0.0, 2 * np.pi)
    steps = np.linspace(0.0, length, int(4 * length) + 1)
    start = rng.uniform(3.0, sdss.SIZE - 4.0, 2)
    x = np.round(start[0] + steps * np.cos(angle)).astype(int)
    y = np.round(start[1] + steps * np.sin(angle)).astype(int)
    inside = (x >= 0) & (x < sdss.SIZE) & (y >= 0) & (y < sdss.SIZE)
    track = np.unique(np.stack([y[inside], x[inside]], axis=1), axis=0)
    charge = 10.0 ** rng.uniform(2.6, 3.6) * rng.uniform(0.5, 1.5, len(track))
    out = image.copy()
    out[band, track[:, 0], track[:, 1]] += charge / sdss.ELECTRONS[band]
    return out


def bad_column(image: Image, rng: np.random.Generator) -> Image:
    """Make one or two whole columns of one band hot or cold."""
    band = int(rng.integers(sdss.BANDS))
    first = int(rng.integers(2, sdss.SIZE - 3))
    columns = slice(first, first + int(rng.choice((1, 2), p=(0.7, 0.3))))
    step = sdss.BACKGROUND_SIGMA[band] * 10.0 ** rng.uniform(0.9, 1.9) * rng.choice((-1.0, 1.0))
    out = image.copy()
    out[band, :, columns] += step
    return out


def dead_band(image: Image, rng: np.random.Generator) -> Image:
    """Set one band to zero, to zero from some row on, or to pure background noise."""
    band = int(rng.integers(sdss.BANDS))
    what = rng.random()
    out = image.copy()
    if what < 0.4:
        out[band] = 0.0
    elif what < 0.7:
        out[band, int(rng.integers(8, 25)) :] = 0.0
    else:
        out[band] = sdss.BACKGROUND_SIGMA[band] * rng.standard_normal((sdss.SIZE, sdss.SIZE))
    return out


def _band_shift(rng: np.random.Generator) -> NDArray[np.float64]:
    """(5, 2) offsets in arcsec that displace one band by 2 to 6 pixels."""
    shift = np.zeros((sdss.BANDS, 2))
    angle = rng.uniform(0.0, 2 * np.pi)
    step = rng.uniform(2.0, 6.0) * sdss.PIXEL
    shift[int(rng.integers(sdss.BANDS))] = step * np.cos(angle), step * np.sin(angle)
    return shift


def _arc(
    x: float, y: float, direction: float, length: float, bend: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """60 points on a fading arc of `length` arcsec from (x, y) that turns by `bend` radians."""
    share = np.linspace(0.0, 1.0, 60)
    turn = direction + bend * share
    step = length / len(share)
    weight = 1.0 - 0.6 * share
    path_x = x + np.cumsum(np.cos(turn)) * step
    path_y = y + np.cumsum(np.sin(turn)) * step
    return path_x, path_y, weight / weight.sum()


def _bleed(column: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Spread the charge above `limit` up and down the column into unsaturated pixels."""
    excess = float(np.maximum(column - limit, 0.0).sum())
    if excess <= 0.0:
        return column
    out = np.minimum(column, limit)
    peak = int(np.argmax(column))
    for way in (range(peak, len(out)), range(peak, -1, -1)):
        left = excess / 2.0
        for pixel in way:
            taken = min(left, limit - float(out[pixel]))
            out[pixel] += taken
            left -= taken
            if left <= 0.0:
                break
    return out


_ON_THE_SKY: dict[str, Callable[[Galaxy, np.random.Generator], Scene]] = {
    "merger": merger,
    "ring": ring,
    "tidal stream": tidal_stream,
}
_IN_THE_TELESCOPE: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "satellite trail": satellite_trail,
    "saturated star": saturated_star,
}
_IN_THE_DETECTOR: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "cosmic ray": cosmic_ray,
    "bad column": bad_column,
    "dead band": dead_band,
}
