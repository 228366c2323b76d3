"""Reads values of the expected type from JSON objects that other programs wrote.

Records of scripts, files of other versions and exports of other tools may have anything under any
key. A value of the wrong type counts as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


class Fields:
    """The keys of a JSON object; any other value counts as an object without keys.

    Examples
    --------
    >>> Fields({"rows": "12", "name": 3}).number("rows")
    12.0
    """

    def __init__(self, value: object) -> None:
        known = value if isinstance(value, Mapping) else {}
        self._values: dict[str, object] = {str(name): item for name, item in known.items()}

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, name: str) -> bool:
        # The getters treat null as missing, so it counts as missing here as well.
        return self._values.get(name) is not None

    def names(self) -> tuple[str, ...]:
        """All keys, in the order of the object."""
        return tuple(self._values)

    def number(self, name: str) -> float | None:
        """A finite number, which may be written as text; otherwise None."""
        return as_number(self._values.get(name))

    def count(self, name: str) -> int | None:
        """A whole number of at least 0, rounded if written with a fraction; otherwise None."""
        value = self.number(name)
        return round(value) if value is not None and value >= 0 else None

    def text(self, name: str) -> str | None:
        """A text, if it is not empty; otherwise None."""
        value = self._values.get(name)
        return value if isinstance(value, str) and value else None

    def flag(self, name: str) -> bool:
        """Whether the value is the JSON value true."""
        return self._values.get(name) is True

    def json(self, name: str) -> str:
        """The value as JSON text."""
        return json.dumps(self._values.get(name))

    def inner(self, name: str) -> Fields:
        """An object inside this one; without keys if there is none."""
        return Fields(self._values.get(name))

    def items(self, name: str) -> list[object]:
        """A list inside this object; empty if there is none."""
        value = self._values.get(name)
        return list(value) if isinstance(value, (list, tuple)) else []

    def rows(self, name: str) -> list[Fields]:
        """The objects in a list inside this object; other values are left out."""
        return [Fields(item) for item in self.items(name) if isinstance(item, Mapping)]

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts in a list inside this object, or a single text in place of the list."""
        value = self._values.get(name)
        if isinstance(value, str):
            return (value,)
        return tuple(item for item in self.items(name) if isinstance(item, str))


def as_number(value: object) -> float | None:
    """A finite number, which may be written as text; otherwise None."""
    # bool is an int in Python, but true is not a number in JSON.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
