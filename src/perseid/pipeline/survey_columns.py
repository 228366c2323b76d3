"""Columns that are copied from the survey into the catalogue, and their names there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.masked import is_masked_array
from perseid.plaintext import option
from perseid.survey.column_spec import TEXT_KIND, ColumnSpec
from perseid.survey.content import convert
from perseid.survey.look import FileLook
from perseid.survey.names import FURTHER, KNOWN, POSITION, ColumnNames, column_names
from perseid.survey.read_options import ReadOptions, channels_last

ALL: Final = "all"
"""Value of `RunRequest.keep` that means every column with one value per row."""
PREFIX: Final = "survey_"
"""Prefix of a survey column's name in the catalogue if it would collide with one of ours."""
OURS: Mapping[str, str] = MappingProxyType(
    {"object_id": "object_id", "redshift": "z_spec", "label": "label"}
)
"""Survey columns that every catalogue has, and their names there."""
_POSITION_UCD = {"ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main"}


class ReadSettings(Protocol):
    """How ranks read the survey; satisfied by a run's settings and by an item."""

    @property
    def columns(self) -> Mapping[str, Sequence[str]] | None:
        """The survey's column names, by ours."""

    @property
    def layout(self) -> str | None:
        """Axis order of the images in the files."""

    @property
    def bands(self) -> Sequence[str] | None:
        """Names of the images' bands, in the order of the files."""

    @property
    def survey_columns(self) -> Sequence[ColumnSpec] | None:
        """Columns of the catalogue that are copied from the survey."""


def read_options(settings: ReadSettings) -> ReadOptions:
    """Options with which a rank, or a report, opens the partitions of a run."""
    return ReadOptions(
        names=column_names(settings.columns or {}),
        further=carried(settings.survey_columns),
        channels_last=channels_last(settings.layout),
        bands=tuple(settings.bands or ()),
    )


def carried(specs: Sequence[ColumnSpec] | None) -> tuple[ColumnSpec, ...]:
    """The survey columns that a catalogue has in addition to its own (those of `OURS` are
    excluded)."""
    return tuple(spec for spec in specs or () if spec.name not in OURS.values())


def parse_keep(keep: str | Sequence[str] | None) -> tuple[str, ...]:
    """Parse the names of columns to keep: a list, or a text with commas."""
    listed = keep.split(",") if isinstance(keep, str) else keep or ()
    return tuple(name for one in listed if (name := one.strip()))


def choose_columns(
    looks: Sequence[FileLook], names: ColumnNames, keep: Sequence[str], reserved: Collection[str]
) -> tuple[ColumnSpec, ...]:
    """Choose the columns of the catalogue that are copied from the survey.

    Parameters
    ----------
    looks
        Descriptions of the survey's files.
    names
        Column names given by the user.
    keep
        Names of further columns that the user wants in the catalogue, or ``all``.
    reserved
        Names of the catalogue's own columns.

    Raises
    ------
    BadInputError
        No file has a requested column, or the column has more than one value per row.
    """
    there: dict[str, ColumnSpec] = {}
    sources: dict[str, str] = {}
    for look in looks:
        for spec in look.described:
            there.setdefault(spec.source.lower(), spec)
        for name, source in look.sources.items():
            sources.setdefault(name, source)
    chosen = [
        replace(there[sources[name].lower()], name=ours)
        for name, ours in OURS.items()
        if name in sources
    ]
    chosen += _positions(there, names)
    taken = {name.lower() for name in (*reserved, *(spec.name for spec in chosen))}
    used = {spec.source.lower() for spec in chosen} | {one.lower() for one in sources.values()}
    for spec in _kept(there, keep, used):
        name = spec.source
        while name.lower() in taken:
            name = PREFIX + name
        taken.add(name.lower())
        chosen.append(replace(spec, name=name))
    return tuple(chosen)


def _positions(there: Mapping[str, ColumnSpec], names: ColumnNames) -> Iterable[ColumnSpec]:
    """Right ascension and declination, in degrees unless the survey says otherwise."""
    for name in POSITION:
        given = [one.lower() for one in names.get(name, ())]
        spec = next((there[one] for one in given or (name, *KNOWN[name]) if one in there), None)
        if spec is None and given:
            raise BadInputError(
                f"the survey has no column {names[name][0]} for {name}: it has {_listed(there)}"
            )
        if spec is not None and spec.is_scalar and spec.kind != TEXT_KIND:
            ucd = spec.ucd or _POSITION_UCD[name]
            yield replace(spec, name=name, unit=spec.unit or "deg", ucd=ucd)


def _kept(
    there: Mapping[str, ColumnSpec], keep: Sequence[str], used: Collection[str]
) -> Iterable[ColumnSpec]:
    every = any(name.lower() == ALL for name in keep)
    named = {name.lower() for name in keep} - {ALL}
    for name in keep:
        spec = there.get(name.lower())
        if spec is None and name.lower() != ALL:
            raise BadInputError(
                f"{option('keep')} names the column {name}, which the survey lacks: it has "
                f"{_listed(there)}"
            )
        if spec is not None and spec.is_scalar and not spec.can_be_carried:
            raise BadInputError(
                f"{option('keep')} names the column {spec.source!r}, whose name has "
                "control characters: give it another name in the survey"
            )
        if spec is not None and not spec.is_scalar:
            what = (
                f"{spec.shape} values per row" if spec.kind else "values of a type that is not read"
            )
            raise BadInputError(
                f"{option('keep')} names the column {name}, which has {what}: the "
                "catalogue takes columns of one number or text a row"
            )
    for key, spec in there.items():
        wanted = key in named or (every and key not in used)
        if wanted and spec.can_be_carried:
            yield spec


def _listed(there: Mapping[str, ColumnSpec]) -> str:
    return ", ".join(sorted(spec.source for spec in there.values())) or "no named columns"


def conform(array: NDArray[Any], spec: ColumnSpec, where: str) -> NDArray[Any]:
    """Convert a carried column to its type in the catalogue.

    Raises `BadPartitionError` naming the partition `where` if a value does not fit that type.
    """
    dtype = spec.dtype
    text = array.dtype.kind == "U"
    if text != (spec.kind == TEXT_KIND):
        has = "text" if text else f"{array.dtype} numbers"
        raise BadPartitionError(
            f"{where}: the column {spec.source} is {has} here and {spec.kind} in the survey's "
            f"first file: write it in one type, or leave it out of {option('keep')}"
        )
    if text or array.dtype == dtype:
        return array
    if dtype.kind == "b" or array.dtype.kind == "b":
        return np.ma.array(array).astype(dtype) if is_masked_array(array) else array.astype(dtype)
    return convert(f"{FURTHER}{spec.source}", array, dtype, where)
