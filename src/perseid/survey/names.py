"""Names of columns: ours, and those by which common surveys and tools know the same things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from perseid.errors import BadPartitionError

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


def canonical(name: str) -> str:
    """A column's name as in `NAMES`: any case, plurals accepted; other names in lower case."""
    lower = name.lower()
    return _PLURALS.get(lower, lower)


def pick_columns(where: str, names: Iterable[str]) -> dict[str, str]:
    """Which of a file's names are columns of ours: a file's name for each of `NAMES`.

    A name of ours comes before a known one of another survey.

    Parameters
    ----------
    where
        The file, for messages.
    names
        Of all its columns.

    Raises
    ------
    BadPartitionError
        Two of the names mean the same column, such as ``image`` and ``images``.
    """
    found: dict[str, str] = {}
    others: dict[str, str] = {}
    for source in names:
        name = canonical(source)
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
        if name not in found and known is not None:
            found[name] = known
    return {name: found[name] for name in NAMES if name in found}


def unused_names(names: Iterable[str], used: Iterable[str]) -> tuple[str, ...]:
    """A file's names of columns that are none of ours, in the file's order."""
    taken = set(used)
    return tuple(name for name in names if name not in taken)


def without_strangers(found: Mapping[str, str], is_column: Callable[[str], bool]) -> dict[str, str]:
    """What `pick_columns` gave, less the known names of other surveys that are no column here.

    A group or a pickled array that is called ``source_id`` is none of ours, and no error.
    """
    known = renamed(found)
    return {name: key for name, key in found.items() if name not in known or is_column(key)}


def renamed(found: Mapping[str, str]) -> dict[str, str]:
    """Of what `pick_columns` gave, the columns that go by another survey's name."""
    return {name: source for name, source in found.items() if canonical(source) != name}
