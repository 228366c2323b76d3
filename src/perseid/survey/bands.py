"""Bands by name: which of a survey's are those that a model takes."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PARTS = re.compile(r"[-_./: ]+")


def band_places(wanted: Sequence[str], there: Sequence[str]) -> tuple[int, ...] | None:
    """Places of the wanted bands among those that are there; None if one of them is not.

    Names are compared as they are, then in any case, then by their last part, so that ``g`` finds
    ``DES-G``. A name that fits several bands finds none of them.

    Examples
    --------
    >>> band_places(("g", "r", "z"), ("u", "g", "r", "i", "z"))
    (1, 2, 4)
    >>> band_places(("r", "g"), ("des-g", "des-r"))
    (1, 0)
    """
    found = [_place(name, there) for name in wanted]
    places = tuple(place for place in found if place is not None)
    return places if len(set(places)) == len(wanted) else None


def _place(name: str, there: Sequence[str]) -> int | None:
    for form in (str, str.casefold, _last_part):
        same = [place for place, one in enumerate(there) if form(one) == form(name)]
        if len(same) == 1:
            return same[0]
    return None


def _last_part(name: str) -> str:
    return _PARTS.split(name.strip())[-1].casefold()
