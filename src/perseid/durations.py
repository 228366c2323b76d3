"""Parse times as people write them. Standard library only, as the rendezvous server needs it."""

from __future__ import annotations

import argparse
import math
import re

from perseid.errors import BadInputError

_TIME = re.compile(r"([0-9.]+)\s*(ms|s|sec|min|m|h)?", re.IGNORECASE)
_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Parse ``60``, ``60s``, ``2min`` or ``1.5h`` into seconds; raises `BadInputError`."""
    match = _TIME.fullmatch(text.strip())
    try:
        found = float(match[1]) * _SECONDS[(match[2] or "s").lower()]  # type: ignore[index]
    except (TypeError, ValueError):
        found = math.inf
    # So many digits that no floating-point number holds them are a typing error, too.
    if math.isinf(found):
        raise BadInputError(f"{text!r} is not a time: give one such as 60s, 2min or 1h")
    return found


def time_argument(text: str) -> float:
    """`seconds` for an option; an error becomes one that argparse prefixes with its name."""
    try:
        return seconds(text)
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
