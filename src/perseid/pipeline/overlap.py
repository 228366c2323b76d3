"""Keep a run's data and results apart: neither may lie within the other or within another run."""

from __future__ import annotations

from collections.abc import Mapping

from perseid.errors import BadInputError, PerseidError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.storage import Location, Storage

_RANKS = "ranks"
"""Folder of a run in which each rank has a folder of its own."""


def refuse_overlap(
    data: Location, results: Location, *, results_may_lie_below: bool = False
) -> None:
    """Refuse a run that would write into its own data, or whose data lies within a run.

    A later run would take the catalogue of such a run for a partition, and ``--replace`` could
    remove data.

    Parameters
    ----------
    data
        The folder of the partitions.
    results
        The run's own prefix.
    results_may_lie_below
        Whether results may lie in a folder below the data: true if the partitions are named one by
        one, or lie at the root of a bucket, as in requests of the existing system.

    Raises
    ------
    BadInputError
        One of them lies within the other, or the data lies within a run.
    """
    inside = _holds(data, results)
    if _same(data, results) or (inside and not results_may_lie_below):
        raise BadInputError(
            f"the results {results} would lie in the data {data}: a run is written beside its "
            "data; choose another place for results"
        )
    if _holds(results, data):
        raise BadInputError(
            f"the data {data} lie in the place for results, {results}: choose another one"
        )
    run = _run_around(data)
    if run is not None:
        raise BadInputError(
            f"the data {data} lie in the results of the run at {run}: name the folder of that "
            "run's data, or copy what you need out of it"
        )


def _same(one: Location, other: Location) -> bool:
    return _real(one) == _real(other)


def _holds(folder: Location, place: Location) -> bool:
    """Whether a place lies within a folder."""
    outer, inner = _real(folder), _real(place)
    # The slash matters: `runs/a` does not contain `runs/ab`.
    below = f"{outer.key}/" if outer.key else ""
    return outer.store == inner.store and outer != inner and inner.key.startswith(below)


def _real(place: Location) -> Location:
    """The place with symbolic links resolved, if it is on a disk."""
    return place if place.path is None else Location.parse(place.path.resolve())


def _run_around(data: Location) -> Location | None:
    """The run that contains a folder, or is that folder; on a disk, all parent folders are checked.

    In a store only two places are checked, because each check is a request. Earlier versions let a
    run be written into its own data, so such data may still be read.
    """
    places = [data]
    if data.path is not None:
        # A symbolic link must not lead past this check.
        real = data.path.resolve()
        places = [Location.parse(path) for path in (real, *real.parents)]
    elif data.parent.name == _RANKS and data.name.isdecimal():
        places.append(data.parent.parent)
    for place in places:
        run = _run_at(place)
        if run and not (place == places[0] and run.get("data_url") in (data.url, place.url)):
            return place
    return None


def _run_at(folder: Location) -> Mapping[str, object]:
    """URL of the run at a place, from its manifest; empty if there is none."""
    try:
        manifest = parse_json(Storage(folder).get(layout.MANIFEST))
    except (PerseidError, ValueError):
        return {}
    if not isinstance(manifest, dict) or not {"run_id", "assignment"} <= set(manifest):
        return {}
    return manifest
