"""Sentinel values that mean "not measured", in magnitudes and redshifts.

Surveys use numbers such as 99 or -9999 in formats without nulls. Only magnitudes and redshifts have
sentinels: a pixel can really be -1, and an id can be 99. Sentinels become NaN, like nulls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.survey.cutouts import Cutouts

NONE = "none"
"""The word with which a user states that no value means missing."""


@dataclass(frozen=True)
class MissingValues:
    """The numbers that mean missing; by default those that public surveys use.

    Examples
    --------
    >>> MissingValues.parse(["magnitude=99,-99", "redshift=none"])
    MissingValues(magnitude=(99.0, -99.0), redshift=())
    """

    magnitude: tuple[float, ...] = (99.0, 99.99, -99.0, -99.99, -999.0, -9999.0)
    """In any band, mag."""
    redshift: tuple[float, ...] = (-1.0, -9.0, -99.0, -999.0, -9999.0)

    @classmethod
    def parse(cls, options: Iterable[str]) -> MissingValues:
        """Parse options such as ``redshift=-1,-9`` or ``magnitude=none``; raises like `of`."""
        return cls.of(parse_options(options))

    @classmethod
    def of(cls, given: Mapping[str, object]) -> MissingValues:
        """Make it from a mapping of columns to a number, a list of numbers, or ``none``.

        Columns that are not named keep their defaults.

        Raises
        ------
        BadInputError
            Sentinels do not apply to the column, it is named twice, or a value is not a number.
        """
        known = [field.name for field in fields(cls)]
        named: set[str] = set()
        rules = cls()
        for column, values in given.items():
            name = sentinel_column(column)
            if name in named:
                raise _named_twice(name)
            named.add(name)
            if name not in known:
                raise BadInputError(
                    f"{column!r} has no values that mean missing: only {' and '.join(known)} have, "
                    "for a pixel or an id may be any number"
                )
            rules = replace(rules, **{name: _numbers(column, values)})
        return rules

    def to_json(self) -> dict[str, list[float]]:
        """Convert to JSON values that `of` accepts."""
        return {"magnitude": list(self.magnitude), "redshift": list(self.redshift)}

    def apply(self, cutouts: Cutouts) -> Cutouts:
        """Replace missing values by NaN; returns the same object if there are none."""
        changed: dict[str, NDArray[np.floating[Any]]] = {}
        for name, values in (("magnitudes", self.magnitude), ("redshift", self.redshift)):
            array = getattr(cutouts, name)
            found = None if array is None else _equal_to(array, values)
            if found is not None and found.any():
                changed[name] = np.where(found, array.dtype.type(np.nan), array)
        return replace(cutouts, **cast(Any, changed)) if changed else cutouts


NO_SENTINELS = MissingValues((), ())
"""No number means missing."""


def sentinel_column(name: str) -> str:
    """Map the name of a column, in any case, singular or plural, to a field of `MissingValues`."""
    return name.lower().removesuffix("s")


def _named_twice(name: str) -> BadInputError:
    return BadInputError(
        f"the values of {name} that mean missing are given more than once: give them together, "
        f"such as {name}=-99,-9999"
    )


def parse_options(options: Iterable[str]) -> dict[str, str]:
    """Split options such as ``redshift=-1,-9`` into columns and values for `MissingValues.of`.

    Raises `BadInputError` for an option that is not of this form, or a column that is named twice.
    """
    given: dict[str, str] = {}
    for option in options:
        column, equals, values = option.partition("=")
        if not equals or not values.strip():
            raise BadInputError(
                f"{option!r} does not say which values are missing: give COLUMN=VALUES, such as "
                "redshift=-1,-9, or COLUMN=none"
            )
        name = sentinel_column(column.strip())
        if name in map(sentinel_column, given):
            raise _named_twice(name)
        given[column.strip()] = values.strip()
    return given


def _numbers(column: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str):
        values = [] if values.lower() == NONE else values.split(",")
    elif not isinstance(values, (list, tuple)):
        values = [values]
    try:
        if any(isinstance(value, bool) for value in values):
            raise ValueError
        # NaN is missing in any case, and an infinity is never a prediction's input.
        return tuple(value for value in map(float, values) if math.isfinite(value))
    except (TypeError, ValueError):
        raise BadInputError(
            f"{column} is missing where it is {values!r}: give numbers, such as -1 or -99,-9999, "
            f"or {NONE}"
        ) from None


def _equal_to(array: NDArray[Any], values: tuple[float, ...]) -> NDArray[np.bool_]:
    """Where an array equals one of the values, including the value rounded to float32 (99.99)."""
    found = np.zeros(array.shape, np.bool_)
    for value in values:
        with np.errstate(over="ignore"):
            found |= array == array.dtype.type(value)
            if array.dtype != np.float32:
                # Data that was once float32 contains 99.98999786 where its manual says 99.99.
                found |= array == np.float64(np.float32(value))
    return found
