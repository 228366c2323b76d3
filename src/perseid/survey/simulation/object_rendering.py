"""Render any objects of a simulated survey from the survey's seed and the objects' ids.

Each object has its own random streams, seeded by (survey seed, object id), so any part of the
survey can be rendered in any order and the result is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perseid.survey.cutouts import Cutouts
from perseid.survey.simulation import sdss
from perseid.survey.simulation.anomalies import ANOMALY_KINDS, observe
from perseid.survey.simulation.galaxies import draw_galaxy, draw_neighbors
from perseid.survey.splits import TEST, assign_split

ROUND = 100_000
"""An object id is ``round * 100000 + row of the real table``."""


def object_ids(seed: int, rows: int, galaxies: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows,) unique ids: all real galaxies in random order, then all of them again, and so on.

    `galaxies` is the number of rows of the real table, or the (n,) rows to draw from.
    """
    each = galaxies if isinstance(galaxies, int) else len(galaxies)
    rounds = [
        number * ROUND + np.random.default_rng([seed, number]).permutation(galaxies)
        for number in range(-(-rows // each))
    ]
    return np.concatenate(rounds)[:rows].astype(np.int64) if rounds else np.empty(0, np.int64)


def held_out(table_rows: int) -> NDArray[np.int64]:
    """Rows of the real table that were used neither for training nor for validating the default
    model."""
    rows = np.arange(table_rows)
    return np.asarray(rows[assign_split(rows) == TEST])


def table_rows_of(object_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) rows of the real table; objects with the same row show the same real galaxy."""
    return np.asarray(object_id % ROUND)


def render_objects(
    seed: int,
    object_id: NDArray[np.int64] | Sequence[int],
    *,
    anomaly_rate: float,
    table: sdss.GalaxyTable,
    kinds: Sequence[int] | None = None,
) -> Cutouts:
    """Render objects of a survey.

    Parameters
    ----------
    seed
        Seed of the survey.
    object_id
        (n,) ids, see `object_ids`.
    anomaly_rate
        Probability of an anomaly. The galaxy and its neighbors do not depend on it.
    table
        The real galaxies.
    kinds
        (n,) anomalies to use instead of random ones.

    Returns
    -------
    Cutouts
        images float32 (n, 5, 32, 32) nanomaggies, magnitudes float32 and redshift float32 as in
        the table, object id, label.
    """
    ids = np.asarray(object_id, dtype=np.int64)
    rows = table_rows_of(ids)
    images = np.empty((len(ids), sdss.BANDS, sdss.SIZE, sdss.SIZE), np.float32)
    label = np.zeros(len(ids), np.int32)
    for place, number in enumerate(ids):
        forced = None if kinds is None else kinds[place]
        images[place], label[place] = _render_one(seed, int(number), anomaly_rate, table, forced)
    return Cutouts(images, table.magnitudes[rows], table.redshift[rows], ids, label)


def draw_kind(chance: np.random.Generator, anomaly_rate: float) -> int:
    """Draw the kind of anomaly of one object, 0 for none; all kinds are equally likely."""
    if chance.random() < anomaly_rate:
        return int(chance.integers(1, len(ANOMALY_KINDS)))
    return 0


def streams(seed: int, number: int) -> list[np.random.Generator]:
    """Four independent generators of one object: galaxy, neighbors, noise, anomaly."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence([seed, number]).spawn(4)]


def _render_one(
    seed: int, number: int, anomaly_rate: float, table: sdss.GalaxyTable, forced: int | None
) -> tuple[NDArray[np.float64], int]:
    sky, field, noise, chance = streams(seed, number)
    row = number % ROUND
    galaxy = draw_galaxy(table.magnitudes[row], float(table.redshift[row]), sky)
    neighbors = draw_neighbors(table, field)
    drawn = draw_kind(chance, anomaly_rate)
    kind = drawn if forced is None else forced
    return observe(galaxy, neighbors, kind, chance, noise), kind
