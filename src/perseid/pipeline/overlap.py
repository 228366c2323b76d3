"""Keep a run's data and results apart: neither may lie in the other, nor in another run."""

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
    """Refuse a run that would be written into its own data, or that reads out of a run.

    Such a run would take its own catalogue for a partition the next time, and ``--replace`` could
    remove data.

    Parameters
    ----------
    data
        The folder of the partitions.
    results
        The run's own prefix.
    results_may_lie_below
        The partitions are named one by one, or lie at the root of a bucket, as in requests of the
        existing system: then results in a folder below are no part of the data.

    Raises
    ------
    BadInputError
        One of them lies in the other, or the data lie in a run.
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
    """Whether a place lies below a folder."""
    outer, inner = _real(folder), _real(place)
    # With the slash: `runs/a` does not hold `runs/ab`.
    below = f"{outer.key}/" if outer.key else ""
    return outer.store == inner.store and outer != inner and inner.key.startswith(below)


def _real(place: Location) -> Location:
    """Without symbolic links, on a disk."""
    return place if place.path is None else Location.parse(place.path.resolve())


def _run_around(data: Location) -> Location | None:
    """The run that a folder is, or lies in; on a disk any folder above is looked at.

    In a store only two places are: each look is a request. Earlier versions let a run be written
    into its own data: such data may still be read.
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
    """The manifest of the run at a place; empty if there is none."""
    try:
        manifest = parse_json(Storage(folder).get(layout.MANIFEST))
    except (PerseidError, ValueError):
        return {}
    if not isinstance(manifest, dict) or not {"run_id", "assignment"} <= set(manifest):
        return {}
    return manifest
