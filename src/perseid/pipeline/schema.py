"""The JSON codec of the types that travel between processes, and the versions of their keys.

A manifest or an item names the `schema` of its keys; if it does not, it has schema 1, as written by
0.1. Before it starts anything, a reader checks the schema and the minor version of perseid that
wrote it: a clear error is better than results from mismatched code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from perseid import __version__
from perseid.errors import BadInputError

SCHEMA = 3
"""Schema that this version writes. Schema 2 added ``schema``, ``model`` and ``missing`` to
manifests and items, and ``version`` and ``model_change`` to items. Schema 3 added ``layout``,
``survey_columns``, ``signature``, ``fit``, ``intervals`` and ``lists`` to settings and items."""
FIRST = 1
"""Schema of files that do not name one."""
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Within:
    """The smallest and the largest value of a number, as ``Annotated[int, Within(1)]``."""

    low: float
    high: float = 2**63 - 1
    """Below 2^63, so that the number fits wherever it goes on."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Encodable:
    """A text that UTF-8 can encode: JSON may hold one half of a surrogate pair."""

    def __contains__(self, value: str) -> bool:
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


Name = typing.Annotated[str, Encodable()]
"""A name or an address that goes on into files and requests."""
NOT_REQUIRED: Any = typing.NotRequired
Count = typing.Annotated[int, Within(0)]
"""A number of things."""
Seconds = typing.Annotated[float, Within(0)]
"""A duration, or a time since the epoch."""


def check_schema(value: object, what: str, version: str, remedy: str) -> int:
    """Validate the schema of an object that another perseid wrote.

    Parameters
    ----------
    value
        The object's ``schema``; None if it has none.
    what, version
        A name of the object for messages, and the version of perseid that wrote it (empty if
        unknown).
    remedy
        What to do if the schema is newer than this version can read.

    Raises
    ------
    BadInputError
        The schema is newer, or not a whole number from 1.
    """
    if value is None:
        return FIRST
    if not isinstance(value, int) or isinstance(value, bool) or value < FIRST:
        raise BadInputError(f"{what} has the schema {value!r}, which is not a whole number from 1")
    if value > SCHEMA:
        writer = f"perseid {version}" if version else "a newer perseid"
        raise BadInputError(
            f"{what} was written by {writer} (schema {value}), but this is perseid {__version__}, "
            f"which reads schemas up to {SCHEMA}: {remedy}"
        )
    return value


def check_version(version: str, what: str, remedy: str) -> None:
    """Raise `BadInputError` if an object comes from a perseid of another minor version.

    An object without a version comes from 0.1, which did not compare versions, and is accepted.
    """
    if version and minor(version) != minor(__version__):
        raise BadInputError(
            f"{what} is of perseid {version}, but this is perseid {__version__}: {remedy}"
        )


def minor(version: str) -> str:
    """The minor version, e.g. ``0.2`` for ``0.2.1``; versions that share it can work together."""
    return ".".join(version.split(".")[:2])


def to_plain(value: object) -> object:
    """Convert an object to JSON values; fields that are not `written` are left out.

    A class with ``sparse = True`` also leaves out fields that have their default value, because
    many objects of it are written.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        sparse = getattr(value, "sparse", False)
        pairs = [(f, getattr(value, f.name)) for f in written(type(value))]
        return {f.name: to_plain(item) for f, item in pairs if not (sparse and item == f.default)}
    if isinstance(value, Mapping):
        return {str(name): to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], plain: object, what: str) -> T:
    """The reverse of `to_plain`.

    Raises
    ------
    BadInputError
        A key is missing, unknown, or has a value of another type or outside its range; `what` names
        the object in the message.
    """
    if not isinstance(plain, Mapping):
        raise BadInputError(f"{what} cannot be read: it is not a JSON object")
    hints, known = (
        _hints(typing.cast(Any, kind)),
        {field.name: field for field in written(typing.cast(Any, kind))},
    )
    unknown = [str(name) for name in plain if name not in known]
    if unknown:
        raise BadInputError(f"{what} cannot be read: the key {unknown[0]!r} is not known")
    missing = [name for name, field in known.items() if name not in plain and _is_required(field)]
    if missing:
        raise BadInputError(f"{what} cannot be read: it has no {missing[0]!r}")
    values = {name: _decode(hints[name], item, name, what) for name, item in plain.items()}
    return kind(**values)


@functools.cache
def written(kind: type) -> list[dataclasses.Field[object]]:
    """The fields of a type that appear in its JSON."""
    return [field for field in dataclasses.fields(kind) if field.metadata.get("written", True)]


@functools.cache
def _hints(kind: Any) -> dict[str, object]:
    return typing.get_type_hints(kind, include_extras=True)


def _is_required(field: dataclasses.Field[object]) -> bool:
    nothing = dataclasses.MISSING
    return field.default is nothing and field.default_factory is nothing


def _decode(hint: Any, value: object, name: str, what: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        found = _decode(inner[0], value, name, what)
        return found if found is None or found in inner[1] else _refuse(value, name, what)
    if origin is typing.Literal:
        return value if value in inner else _refuse(value, name, what)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in inner:
            return None
        (hint,) = [one for one in inner if one is not types.NoneType]
        return _decode(hint, value, name, what)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, f"`{name}` of {what}")
    if origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        return tuple(_decode(inner[0], item, name, what) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): _decode(inner[1], item, name, what) for key, item in value.items()}
    return value if hint is object else _scalar(hint, value, name, what)


def _scalar(hint: Any, value: object, name: str, what: str) -> object:
    """The text, number or truth value, if it is one that can be written and computed with."""
    if not is_scalar(hint, value):
        _refuse(value, name, what)
    return float(typing.cast(float, value)) if hint is float else value


def is_scalar(hint: type, value: object) -> bool:
    """Whether a JSON value is of this type: a text, a finite number, or a truth value.

    Examples
    --------
    >>> is_scalar(float, 3), is_scalar(int, True), is_scalar(float, math.nan)
    (True, False, False)
    """
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if isinstance(value, int) and hint in (int, float):
        return abs(value) < 1 << 1023
    if isinstance(value, float) and hint is float:
        return math.isfinite(value)
    return isinstance(value, str) and hint is str


def fits(hint: Any, value: object) -> bool:
    """Whether a JSON value has the form of a `TypedDict`, or of another type in one.

    Keys that the type does not name may have any value, and numbers may be NaN.

    Examples
    --------
    >>> fits(list[int | None], [3, None]), fits(list[int], ["3"])
    (True, False)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        return isinstance(value, dict) and all(
            fits(kind, value[name]) if name in value else typing.get_origin(kind) is NOT_REQUIRED
            for name, kind in _hints(hint).items()
        )
    if origin in (typing.Union, types.UnionType, NOT_REQUIRED):
        return any(fits(one, value) for one in inner)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(inner[0], item) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(inner[1], item) for item in value.values())
    if hint is types.NoneType:
        return value is None
    nan = isinstance(value, float) and hint is float
    return hint is object or nan or is_scalar(hint, value)


def _refuse(value: object, name: str, what: str) -> typing.NoReturn:
    raise BadInputError(f"{what} cannot be read: {name!r} is {str(value)[:80]!r}")
