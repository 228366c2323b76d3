"""Validate rank records: anybody with write access may have put anything into the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from perseid.errors import RunError
from perseid.jsontext import parse_json

MAX_DEPTH = 64
"""Deepest nesting accepted in JSON that a script wrote."""


def wrong_key(record: Mapping[str, object]) -> str | None:
    """The first of our keys whose value has the wrong type; None if all are right or absent."""
    return next((k for k, fits in _FITS.items() if k in record and not fits(record[k])), None)


def parse_result(text: bytes, where: str) -> dict[str, object]:
    """Parse the result that a script wrote, any JSON object; raises `RunError` if it is not one."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise RunError(f"{where}, which the script wrote, is not JSON") from error
    if not isinstance(value, dict):
        raise RunError(f"{where}, which the script wrote, is not a JSON object")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = [entry.values() if isinstance(entry, dict) else entry for entry in level]
        level = [e for entries in inner for e in entries if isinstance(e, (dict, list))]
        if not level:
            return value
    raise RunError(f"{where}, which the script wrote, is nested more than {MAX_DEPTH} levels deep")


def amount(value: object) -> float | None:
    """The value, if it is a finite number of at least 0; otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _amount(value: object) -> bool:
    return amount(value) is not None


def _count(value: object) -> bool:
    return isinstance(value, int) and amount(value) is not None and value < 1 << 63


def _number_of_one(value: object) -> bool:
    return _count(value) and value != 0


def _text(value: object) -> bool:
    return isinstance(value, str)


def _amounts(value: object) -> bool:
    return isinstance(value, dict) and all(_amount(seconds) for seconds in value.values())


def _counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_count, value.values()))


def _texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _spans(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, list) and len(span) == 3 and _text(span[0]) and all(map(_amount, span[1:]))
        for span in value
    )


def _parts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict)
        and _text(part.get("key"))
        and _text(part.get("error", ""))
        and (part.get("rows") is None or _count(part["rows"]))
        for part in value
    )


_FITS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("rank", "rows", "rows_flagged", "pixel_bits"), _count),
    **dict.fromkeys(("world_size", "attempt"), _number_of_one),
    **dict.fromkeys(("throughput_bps", "peak_memory_mb"), _amount),
    **dict.fromkeys(("run_id", "transport", "transport_note", "precision"), _text),
    **dict.fromkeys(("partitions", "failed_partitions"), _parts),
    "stages": _amounts,
    "rows_missing": _counts,
    "timeline": _spans,
    "routes": _texts,
    "environment": lambda value: isinstance(value, dict),
}
