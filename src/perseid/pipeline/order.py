"""Natural order of keys: numbers inside names count as numbers."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"(\d+)")


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts ``1.pt, 2.pt, 10.pt`` in this order, part by part."""
    parts = [part for part in _DIGITS.split(text) if part]
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
