"""Names of columns: ours, and those by which common surveys and tools know the same things."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from perseid.errors import BadInputError, BadPartitionError

NAMES = ("image", "magnitude", "redshift", "object_id", "label")
"""Columns as our files name them, in the order of the fields of `Cutouts`."""

_PLURALS = {f"{name}s": name for name in NAMES}
KNOWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": ("cutout", "cutouts"),
        "magnitude": ("mags",),
        "redshift": ("z_spec", "zspec", "spec_z", "specz", "specz_redshift"),
        "object_id": ("objid", "objectid", "specobjid", "targetid", "source_id", "coadd_object_id"),
        "label": ("ans",),
    }
)
"""Other names of each column, in any case, those that are preferred first: of SDSS (objID,
specObjID), DESI (TARGETID, Z_SPEC), Gaia (source_id), DES (COADD_OBJECT_ID), HSC
(specz_redshift), Galaxy10 (ans). ``z`` is not among them, since it also names a band."""


ColumnNames = Mapping[str, tuple[str, ...]]
"""By our name of a column, its name in the survey's files; several of a magnitude, one a band."""
NO_NAMES: ColumnNames = MappingProxyType({})
"""Every column is looked for under its usual names."""
_BAND = "magnitude."
"""Beginning of the name of one band of the magnitudes, where each is a column of its own."""


def column_names(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names as a request gives them, by our names: one, or for magnitudes a list, one a band.

    Raises `BadInputError` for a column that is none of ours, or a name that is no text.
    """
    names: dict[str, tuple[str, ...]] = {}
    for column, value in given.items():
        name = canonical(column)
        if name not in NAMES:
            raise BadInputError(f"{column!r} is no column: use {', '.join(NAMES)}")
        listed = [value] if isinstance(value, str) else value
        good = isinstance(listed, (list, tuple)) and listed
        if not good or not all(isinstance(one, str) and one for one in listed):
            raise BadInputError(f"{column} is {value!r}: give the name of the survey's column")
        if len(listed) > 1 and name != "magnitude":
            raise BadInputError(f"{column} is {value!r}: only magnitudes are several columns")
        names[name] = tuple(listed)
    return names


def parse_columns(option: str) -> dict[str, str | list[str]]:
    """``object_id=TARGETID,magnitude=[MAG_G,MAG_R]`` as a request has it.

    Raises `BadInputError` where the text is not of this form.
    """
    given: dict[str, str | list[str]] = {}
    for part in re.split(r",(?![^\[]*\])", option):
        column, equals, value = (text.strip() for text in part.partition("="))
        if not equals or not column or not value:
            raise BadInputError(
                f"{part!r} does not name a column: give COLUMN=NAME, such as object_id=TARGETID, "
                "or magnitude=[MAG_G,MAG_R]"
            )
        many = value.startswith("[") and value.endswith("]")
        given[column] = [one.strip() for one in value[1:-1].split(",")] if many else value
    return given


def is_band(name: str) -> bool:
    """Whether it is one band of magnitudes, as `pick_columns` names them."""
    return name.startswith(_BAND)


def canonical(name: str) -> str:
    """A column's name as in `NAMES`: any case, plurals accepted; other names in lower case."""
    lower = name.lower()
    return _PLURALS.get(lower, lower)


def pick_columns(
    where: str, names: Iterable[str], wanted: ColumnNames = NO_NAMES
) -> dict[str, str]:
    """Which of a file's names are columns of ours: a file's name for each of `NAMES`.

    A name of ours comes before a known one of another survey.

    Parameters
    ----------
    where
        The file, for messages.
    names
        Of all its columns.
    wanted
        Names that the user has given; they come before all others.

    Returns
    -------
    Magnitudes of several columns are ``magnitude.0``, ``magnitude.1``, …, in the user's order.

    Raises
    ------
    BadPartitionError
        Two of the names mean the same column, such as ``image`` and ``images``; or the file lacks
        a name that the user has given.
    """
    names = list(names)
    given = _given(where, names, wanted)
    found: dict[str, str] = {}
    others: dict[str, str] = {}
    for source in names:
        name = canonical(source)
        if name in wanted:
            continue
        if name not in NAMES:
            others.setdefault(source.lower(), source)
            continue
        if name in found:
            raise BadPartitionError(
                f"{where} has both {found[name]} and {source}, which mean the same column: rename "
                "or remove one of them"
            )
        found[name] = source
    for name in NAMES:
        known = next((others[other] for other in KNOWN[name] if other in others), None)
        if name not in found and name not in wanted and known is not None:
            found[name] = known
    plain = {name: found[name] for name in NAMES if name in found}
    return {**plain, **given}


def _given(where: str, names: Sequence[str], wanted: ColumnNames) -> dict[str, str]:
    there = {name.lower(): name for name in names} | {name: name for name in names}
    given: dict[str, str] = {}
    for name, sources in wanted.items():
        for number, source in enumerate(sources):
            found = there.get(source) or there.get(source.lower())
            if found is None:
                listed = ", ".join(sorted(names)) or "nothing"
                raise BadPartitionError(
                    f"{where} has no column {source} for {name}: it has {listed}"
                )
            given[f"{_BAND}{number}" if len(sources) > 1 else name] = found
    return given


def unused_names(names: Iterable[str], used: Iterable[str]) -> tuple[str, ...]:
    """A file's names of columns that are none of ours, in the file's order."""
    taken = set(used)
    return tuple(name for name in names if name not in taken)


def without_strangers(found: Mapping[str, str], is_column: Callable[[str], bool]) -> dict[str, str]:
    """What `pick_columns` gave, less the known names of other surveys that are no column here.

    A group or a pickled array that is called ``source_id`` is none of ours, and no error.
    """
    known = {name for name, key in renamed(found).items() if key.lower() in KNOWN.get(name, ())}
    return {name: key for name, key in found.items() if name not in known or is_column(key)}


def renamed(found: Mapping[str, str]) -> dict[str, str]:
    """Of what `pick_columns` gave, the columns that go by another survey's name."""
    return {name: source for name, source in found.items() if canonical(source) != name}
