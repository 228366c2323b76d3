"""Choose which of a file's columns are read, and as which of ours."""

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
    """Map each of our columns to the file's name of it.

    Our own names take precedence over those of known surveys.

    Parameters
    ----------
    where
        The file, for messages.
    names
        Of all its columns.
    options
        Names given by the user, which take precedence over all others, and further columns.

    Returns
    -------
    Magnitudes of several columns are ``magnitude.0``, ``magnitude.1``, …, in the user's order;
    further columns are ``further.NAME``.

    Raises
    ------
    BadPartitionError
        Two of the names mean the same column, such as ``image`` and ``images``; or the file lacks a
        column that the user named.
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
    picked = {**plain, **given, **_further(names, options)}
    if not options.reads_image:
        picked.pop("image", None)
    return picked


def _by_any_case(names: Iterable[str]) -> dict[str, str]:
    """Index the file's names by themselves and by their lower case."""
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
            continue  # coordinates, say, which are further columns
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
    """The names of a file's columns that are not used, in the file's order."""
    taken = set(used)
    return tuple(name for name in names if name not in taken)


def without_strangers(found: Mapping[str, str], is_column: Callable[[str], bool]) -> dict[str, str]:
    """Drop from the result of `pick_columns` what has a survey's column name but is not a column.

    A group or a pickled array that happens to be called ``source_id`` is not an error.
    """
    known = {
        name
        for name, key in renamed(found).items()
        if key.lower() in KNOWN.get(name, ()) or is_further(name)
    }
    return {name: key for name, key in found.items() if name not in known or is_column(key)}


def renamed(found: Mapping[str, str]) -> dict[str, str]:
    """The columns in the result of `pick_columns` that were recognized by another survey's name."""
    return {name: source for name, source in found.items() if canonical(source) != name}
