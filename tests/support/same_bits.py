"""Columns compared by their bytes: -0.0 is not 0.0, and NaNs of two signs are two values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def difference_in_bits(one: np.ndarray, other: np.ndarray) -> str:
    """What the first difference of two columns is; empty if there is none."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype} {one.shape} and {other.dtype} {other.shape}"
    if one.dtype == object:  # texts and lists
        pairs = zip(one.tolist(), other.tolist(), strict=True)
        unlike = [row for row, (a, b) in enumerate(pairs) if _bytes(a) != _bytes(b)]
    else:
        size = (len(one), -1)
        raw, twin = (np.ascontiguousarray(a).view(np.uint8).reshape(size) for a in (one, other))
        unlike = np.flatnonzero((raw != twin).any(axis=1)).tolist() if len(one) else []
    return f"row {unlike[0]}: {one[unlike[0]]!r} and {other[unlike[0]]!r}" if unlike else ""


def assert_same_bits(
    names: Iterable[str], one: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> None:
    found = {name: difference_in_bits(one[name], other[name]) for name in names}
    assert {name: said for name, said in found.items() if said} == {}


def _bytes(value: object) -> object:
    return (value.dtype, value.tobytes()) if isinstance(value, np.ndarray) else value
