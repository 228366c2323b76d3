"""Arguments of calls: a value of the wrong type is refused by name before anything is sent."""

from __future__ import annotations

import math
import operator
from typing import Any

from perseid.errors import BadInputError

MIN_TAG, MAX_TAG = -(2**31), 2**31 - 1
"""A tag has four bytes in a frame."""


def whole(name: str, value: Any) -> int:
    """A whole number of any integer type, NumPy's included.

    Raises
    ------
    BadInputError
        It is something else; a bool is, too.
    """
    if type(value) is int:
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise BadInputError(f"{name} must be a whole number, not {shown(value)}")


def tag(name: str, value: Any) -> int:
    """A message's tag; raises `BadInputError` unless it fits four bytes."""
    number = whole(name, value)
    if not MIN_TAG <= number <= MAX_TAG:
        raise BadInputError(f"{name} must be from {MIN_TAG} to {MAX_TAG}, not {number}")
    return number


def seconds(name: str, value: Any) -> float:
    """A time that is not negative; raises `BadInputError` otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and value >= 0 and not math.isnan(value):
        return float(value)
    raise BadInputError(f"{name} must be a number of seconds, not {shown(value)}")


def text(name: str, value: Any) -> str:
    """A string; raises `BadInputError` otherwise."""
    if not isinstance(value, str):
        raise BadInputError(f"{name} must be a string, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value as it stands in an error, with its type, cut to a line."""
    said = repr(value)
    return f"{said if len(said) <= 60 else said[:57] + '...'} ({type(value).__name__})"
