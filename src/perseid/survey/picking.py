"""Which of a file's columns are read, and as what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from perseid.errors import BadPartitionError
from perseid.survey.names import (
    BAND,
    FURTHER,
    KNOWN,
    NAMES,
    ColumnNames,
    canonical,
    is_further,
)
from perseid.survey.read_options import PLAIN, ReadOptions


def pick_columns(where: str, names: Iterable[str], options: ReadOptions = PLAIN) -> dict[str, str]:
    """Which of a file's names are columns of ours: a file's name for each of `NAMES`.

    A name of ours comes before a known one of another survey.

    Parameters
    ----------
    where
        The file, for messages.
    names
        Of all its columns.
    options
        Names that the user has given, which come before all others; further columns.

    Returns
    -------
    Magnitudes of several columns are ``magnitude.0``, ``magnitude.1``, …, in the user's order;
    further columns are ``further.NAME``.

    Raises
    ------
    BadPartitionError
        Two of the names mean the same column, such as ``image`` and ``images``; or the file lacks
        a name that the user has given.
    """
    names, wanted = list(names), options.names
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
    return {**plain, **given, **_further(names, options)}


def _by_any_case(names: Iterable[str]) -> dict[str, str]:
    """The file's names by themselves, and by their lower case."""
    names = list(names)
    return {name.lower(): name for name in names} | {name: name for name in names}


def _further(names: Sequence[str], options: ReadOptions) -> dict[str, str]:
    there = _by_any_case(names)
    found = {s.name: there.get(s.source) or there.get(s.source.lower()) for s in options.further}
    return {f"{FURTHER}{name}": source for name, source in found.items() if source is not None}


def _given(where: str, names: Sequence[str], wanted: ColumnNames) -> dict[str, str]:
    there = _by_any_case(names)
    given: dict[str, str] = {}
    for name, sources in wanted.items():
        if name not in NAMES:
            continue  # such as coordinates: they are further columns
        for number, source in enumerate(sources):
            found = there.get(source) or there.get(source.lower())
            if found is None:
                listed = ", ".join(sorted(names)) or "nothing"
                raise BadPartitionError(
                    f"{where} has no column {source} for {name}: it has {listed}"
                )
            given[f"{BAND}{number}" if len(sources) > 1 else name] = found
    return given


def unused_names(names: Iterable[str], used: Iterable[str]) -> tuple[str, ...]:
    """A file's names of columns that are none of ours, in the file's order."""
    taken = set(used)
    return tuple(name for name in names if name not in taken)


def without_strangers(found: Mapping[str, str], is_column: Callable[[str], bool]) -> dict[str, str]:
    """What `pick_columns` gave, less the known names of other surveys that are no column here.

    A group or a pickled array that is called ``source_id`` is none of ours, and no error.
    """
    known = {
        name
        for name, key in renamed(found).items()
        if key.lower() in KNOWN.get(name, ()) or is_further(name)
    }
    return {name: key for name, key in found.items() if name not in known or is_column(key)}


def renamed(found: Mapping[str, str]) -> dict[str, str]:
    """Of what `pick_columns` gave, the columns that go by another survey's name."""
    return {name: source for name, source in found.items() if canonical(source) != name}
