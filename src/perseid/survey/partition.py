"""Sizes of partitions in rows, and their natural order."""

from __future__ import annotations

import math
import re

from perseid.errors import BadInputError

_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Parse a size such as ``25MB`` into bytes; a MB is 1,048,576 bytes (a MiB), as in the paper.

    Raises `BadInputError` if it is not a positive number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise BadInputError(f"{text!r} is not a size: give a number and a unit, such as 25MB")
    return int(float(match[1]) * unit)


def rows_per_partition(size: int, shape: tuple[int, int, int]) -> int:
    """Rows of a partition of `size` bytes, for images of `shape` (bands, height, width).

    A row counts as its float32 pixels, one float32 magnitude per band and a float64 redshift,
    whatever the file's format and dtypes: 20,508 bytes for 5 bands of 32 x 32. That gives 1,278,
    2,556, 3,834 and 5,113 rows for 25, 50, 75 and 100 MB and so the published numbers of partitions
    of 659,817 rows: 517, 259, 173 and 130 (Cloud-based Astronomy Inference, arXiv:2501.06249).
    Raises `BadInputError` if not even one row fits.
    """
    row = math.prod(shape) * 4 + shape[0] * 4 + 8
    if size < row:
        raise BadInputError(f"a partition of {size} bytes holds no row: a row has {row} bytes")
    return size // row


def natural_key(key: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts ``2.pt`` before ``10.pt``, in every part of a path."""
    parts = re.split(r"(\d+)", key)
    numbered: list[tuple[int, int | str]] = []
    for part in parts:
        if part:
            numbered.append((0, int(part)) if part.isdecimal() else (1, part))
    # The key itself comes last, because `01.pt` and `1.pt` have equal numbers and still need an
    # order.
    return (*numbered, (2, key))
