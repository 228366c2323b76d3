"""Parse sizes, times and amounts of money as people write them."""

from __future__ import annotations

import argparse
import math
import re
import time
from datetime import UTC, datetime

from perseid.durations import seconds as seconds
from perseid.durations import time_argument as time_argument
from perseid.errors import BadInputError
from perseid.measure import measured_run

_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(MB|GB|MiB|GiB)?", re.IGNORECASE)
_MEGABYTES = {"mb": 1.0, "mib": 1.0, "gb": 1024.0, "gib": 1024.0}
"""A MB of memory is 2^20 bytes everywhere, as on Lambda."""
_MONEY = re.compile(r"\$?\s*([0-9.]+)\s*(?:USD|\$|dollars?)?", re.IGNORECASE)


def size_mb(text: str) -> float:
    """Parse ``12.6GB`` or ``25MB`` into MB of 2^20 bytes, as in the paper; raises
    `BadInputError`."""
    try:
        size = measured_run.size_mb(text)
    except ValueError:
        size = None
    if size is None or math.isinf(size):
        raise BadInputError(f"{text!r} is not a size: give one such as 12.6GB or 25MB")
    return size


def size_bytes(text: str) -> float:
    """Parse ``12.6GB`` or ``25MB`` into bytes; raises as `size_mb`."""
    return size_mb(text) * measured_run.MIB


def size_label(size: float) -> str:
    """Write a number of bytes as ``12.6GB``."""
    return measured_run.size_label(size)


def memory_mb(text: str) -> int:
    """Parse ``2GB``, ``1769MB`` or ``1769`` into MB of 2^20 bytes; raises `BadInputError`."""
    match = _MEMORY.fullmatch(text.strip())
    size = float(match[1]) * _MEGABYTES[(match[2] or "mb").lower()] if match else 0.0
    if not 1 <= size < math.inf or size != round(size):
        raise BadInputError(
            f"{text!r} is not a size of memory: give one such as 2GB, or whole MB such as 1769"
        )
    return round(size)


def memory_argument(text: str) -> int:
    """`memory_mb` for an option; an error becomes one that argparse prefixes with its name."""
    try:
        return memory_mb(text)
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole_time_argument(text: str) -> int:
    """`seconds` for an option that takes whole seconds."""
    return round(time_argument(text))


def rate_argument(text: str) -> float:
    """Parse rows per second, above 0, for an option; an error is prefixed by argparse, too."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: give rows per second, above 0")
    return rate


def usd(text: str) -> float:
    """Parse ``1USD``, ``$0.50`` or ``2`` into USD; raises `BadInputError`."""
    match = _MONEY.fullmatch(text.strip())
    try:
        return float(match[1])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{text!r} is not an amount of money: give one such as 1USD") from error


def moment(text: str) -> float:
    """``2026-11-22T10:15``, ``2026-11-22 10:15:00+01:00`` (UTC without a zone), ``now``, or how
    long ago: ``2h``, ``30min``. Seconds since the epoch; raises `BadInputError`."""
    text = text.strip()
    if text == "now":
        return time.time()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            return time.time() - seconds(text)
        except BadInputError as error:
            raise BadInputError(
                f"{text!r} is not a time: give one such as 2026-11-22T10:15 (UTC), or how long "
                "ago: 2h"
            ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
