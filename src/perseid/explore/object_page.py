"""The page of one object: its pictures, values, explanation of the score, and neighbors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perseid.errors import BadInputError, PerseidError
from perseid.explore.explanation import Explanation, explain
from perseid.explore.explored_run import ExploredRun
from perseid.explore.object_table import ObjectTable
from perseid.explore.plots import SKY
from perseid.explore.run_features import RunFeatures
from perseid.explore.views import BodyCell, cell_of, head_of, names_of
from perseid.measure.present.gallery import shown_bands

NEIGHBORS = 12
"""Number of neighbors that are shown."""
VIEWERS = (
    ("Legacy Surveys", "https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&zoom=16"),
    ("SDSS", "https://skyserver.sdss.org/dr18/VisualTools/navi?ra={ra:.6f}&dec={dec:.6f}"),
    ("Aladin", "https://aladin.cds.unistra.fr/AladinLite/?target={ra:.6f}%20{dec:.6f}&fov=0.03"),
    ("SIMBAD", "https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}d{dec:+.6f}d"
               "&Radius=10&Radius.unit=arcsec"),
)  # fmt: skip
"""Sky viewers that the page links to; nothing is loaded from them."""


@dataclass(frozen=True)
class Viewer:
    """A link to a sky viewer."""

    name: str
    address: str


@dataclass(frozen=True)
class NearObject:
    """An object with similar features."""

    index: int
    name: str
    distance: str


@dataclass(frozen=True)
class ObjectView:
    """Content of the page of one object."""

    index: int
    name: str
    bands: tuple[str, ...]
    """Names of the image's bands; empty if the image cannot be read."""
    color: tuple[int, ...]
    """Bands for red, green and blue, counted from 0."""
    size: tuple[int, int]
    """Width and height of the image, in pixels."""
    residual: bool
    """Whether the residual of the model's reconstruction can be shown."""
    reason: str
    """Reason why there is no picture; empty if there is one."""
    values: tuple[tuple[str, BodyCell], ...]
    coordinates: str
    """Right ascension and declination, in degrees; empty if the catalogue has none."""
    viewers: tuple[Viewer, ...]
    last: int
    """Row number of the last object in the catalogue."""
    explanation: Explanation | None
    """Explanation of the score; None if there are no features or they are not yet read."""
    neighbors: tuple[NearObject, ...]
    """The most similar objects, nearest first."""
    pending: bool
    """Whether the features are still being read."""


def object_view(explored: ExploredRun, index: int, *, brief: bool = False) -> ObjectView:
    """Content of the page of one object; raises `BadInputError` if there is no such object.

    With `brief`, the explanation of the score and the neighbors are left out.
    """
    partition, row = explored.place(index)
    table, one = explored.needed_table(), np.array([index])
    bands: tuple[str, ...] = ()
    shape, reason = (0, 0, 0), ""
    try:
        image = explored.images.image(partition, row)
        shape = (image.shape[0], image.shape[1], image.shape[2])
        bands = explored.band_names(shape[0])
    # A survey may have moved or be unreadable; the values are shown without a picture.
    except PerseidError as error:
        reason = str(error)
    # Only features that are already read: the page of an object never waits for them.
    names, features = explored.columns(), None if brief else explored.known_features
    values = tuple(
        (head_of(name), cell_of(table, name, table.values(name, one)[0])) for name in names
    )
    coordinates, viewers = _sky(table, one)
    return ObjectView(
        index=index,
        name=names_of(table, one)[0],
        bands=bands,
        color=shown_bands(shape[0]) if bands else (),
        size=(shape[2], shape[1]),
        residual=bool(bands) and explored.residuals is not None,
        reason=reason,
        values=values,
        coordinates=coordinates,
        viewers=viewers,
        last=len(table) - 1,
        explanation=explain(features, index, bands) if features else None,
        neighbors=_neighbors(features, table, index) if features else (),
        pending=features is None and not explored.prepared.is_set(),
    )


def _neighbors(features: RunFeatures, table: ObjectTable, index: int) -> tuple[NearObject, ...]:
    """The most similar objects; empty if the object has no features."""
    try:
        found = features.neighbors(index, NEIGHBORS)
    except BadInputError:
        return ()
    names = names_of(table, found.rows)
    return tuple(
        NearObject(int(row), name, f"{distance:.3g}")
        for row, name, distance in zip(found.rows, names, found.distance, strict=True)
    )


def _sky(table: ObjectTable, one: np.ndarray) -> tuple[str, tuple[Viewer, ...]]:
    """Coordinates of an object as text, and links to viewers of its position."""
    pair = next((pair for pair in SKY if all(map(table.has, pair))), None)
    if pair is None:
        return "", ()
    ra, dec = (float(table.numbers(name)[one[0]]) for name in pair)
    # False for NaN, too: an object may have no position.
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        return "", ()
    # Formatted with six decimals, about 4 milliarcseconds.
    viewers = tuple(Viewer(name, form.format(ra=ra, dec=dec)) for name, form in VIEWERS)
    return f"{ra:.6f} {dec:+.6f}", viewers
