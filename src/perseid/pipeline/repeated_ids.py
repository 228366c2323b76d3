"""Count the ids of a survey that occur more than once, without holding all of them in memory."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perseid.masked import is_masked_array
from perseid.pipeline.ids import Ids

BUCKETS = 16
"""Number of buckets that ids are divided into; only one bucket is in memory at a time."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: the leading bits of a product with it depend on all bits of an
id."""

Keys = NDArray[np.uint64]


class IdSpill:
    """Counts repeated ids by way of files, one per bucket, at 8 bytes per id.

    Parameters
    ----------
    folder
        An existing folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"ids-{number}" for number in range(BUCKETS)]

    def add(self, columns: Iterable[Ids | None]) -> None:
        """Add the ids of some partitions."""
        for path, keys in zip(self._paths, buckets(columns), strict=True):
            if len(keys):
                with open(path, "ab") as file:
                    file.write(keys.tobytes())

    def repeats(self) -> int:
        """Count the objects whose id also belongs to an earlier object, and remove the files."""
        total = 0
        for path in self._paths:
            if path.exists():
                total += count_repeats(np.fromfile(path, np.uint64))
                path.unlink()
        return total


def buckets(columns: Iterable[Ids | None]) -> list[Keys]:
    """Distribute the ids' keys over `BUCKETS` arrays; equal keys go to the same array."""
    keys = np.concatenate([keys_of(ids) for ids in columns if ids is not None] or [_none()])
    # The four leading bits select one of 16 buckets; even consecutive ids fill them evenly.
    number = (keys * _SPREAD) >> np.uint64(60)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(1, BUCKETS))
    return np.split(keys[order], ends)


def count_repeats(keys: Keys) -> int:
    """Number of keys that are equal to an earlier one."""
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def keys_of(ids: Ids) -> Keys:
    """One 64-bit key for each id that is not missing; 7 and the text "7" have the same key.

    The key of a text that is not a number is a 64-bit hash. Among 50 million such ids, two share a
    hash with a probability of 1 in 15,000.
    """
    known = np.ma.compressed(ids) if is_masked_array(ids) else ids
    if known.dtype.kind != "U":
        return known.astype(np.int64 if known.dtype.kind == "i" else np.uint64).view(np.uint64)
    return np.fromiter((_key(text) for text in known.tolist()), np.uint64, len(known))


def _key(text: str) -> int:
    if text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 20:
        number = int(text)
        if str(number) == text and -(1 << 63) <= number < 1 << 64:
            return number % (1 << 64)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _none() -> Keys:
    return np.empty(0, np.uint64)
