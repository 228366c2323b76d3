"""Checks of arguments: a wrong value is refused, by its name, before anything is sent."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from perseid.errors import BadInputError

MIN_TAG, MAX_TAG = -(2**31), 2**31 - 1
"""Smallest and largest tag: a frame has four bytes for it, signed."""


def whole(name: str, value: Any) -> int:
    """Convert a whole number of any integer type, NumPy's included, to ``int``.

    Raises
    ------
    BadInputError
        The value is not a whole number; a ``bool`` is refused, too.
    """
    # The common case first: this check is part of every small message.
    if type(value) is int:
        return value
    try:
        # True would pass as rank 1, which is almost certainly a mistake of the caller.
        if not isinstance(value, bool):
            return operator.index(value)
    # Anything may come out of a value's own `__index__`.
    except Exception:
        pass
    raise BadInputError(f"{name} must be a whole number, not {shown(value)}")


def tag(name: str, value: Any) -> int:
    """Check a message's tag; raises `BadInputError` unless it fits into four bytes."""
    number = whole(name, value)
    if not MIN_TAG <= number <= MAX_TAG:
        raise BadInputError(f"{name} must be from {MIN_TAG} to {MAX_TAG}, not {number}")
    return number


def seconds(name: str, value: Any) -> float:
    """Check a time in seconds; raises `BadInputError` if it is negative or not a number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and value >= 0 and not math.isnan(value):
        return float(value)
    raise BadInputError(f"{name} must be a number of seconds, not {shown(value)}")


def text(name: str, value: Any) -> str:
    """Check a string; raises `BadInputError` for anything else."""
    if not isinstance(value, str):
        raise BadInputError(f"{name} must be a string, not {shown(value)}")
    return value


def items(name: str, value: Any) -> list[Any]:
    """The items of a list, tuple, array or other sequence.

    Raises
    ------
    BadInputError
        It is no sequence, or one that does not give its items (an array without dimensions).
    """
    if isinstance(value, (Sequence, np.ndarray)):
        try:
            return list(value)
        # Anything may come out of a sequence of the caller's own.
        except Exception:
            pass
    raise BadInputError(f"{name} must be a list, not {shown(value)}")


def shown(value: Any) -> str:
    """A value as an error message shows it: shortened to 60 characters, with its type."""
    return f"{short_repr(value)} ({type(value).__name__})"


def short_repr(value: Any) -> str:
    """A value's ``repr``, shortened to 60 characters; its type where it cannot be shown."""
    try:
        said = repr(value)
    # What a wrong argument does in its own `__repr__` must not hide that it is wrong.
    except Exception:
        said = object.__repr__(value)
    return said if len(said) <= 60 else said[:57] + "..."
