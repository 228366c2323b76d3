"""Assign objects to the training, validation and test sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAIN, VALIDATION, TEST = 0, 1, 2
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.08
"""Fractions of the objects. They are fixed, so every model trained on a survey has the same test
set."""


def assign_split(key: NDArray[np.int64]) -> NDArray[np.int8]:
    """Assign each object to TRAIN, VALIDATION or TEST by a hash of its id (SplitMix64).

    The same id is assigned to the same set in every survey and in every run.

    Parameters
    ----------
    key
        (n,) int64 object ids.

    Returns
    -------
    (n,) int8: TRAIN, VALIDATION or TEST.
    """
    with np.errstate(over="ignore"):
        x = key.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    place = (x >> np.uint64(11)).astype(np.float64) / 2.0**53
    held_out = np.where(place < TEST_SHARE + VALIDATION_SHARE, VALIDATION, TRAIN)
    return np.where(place < TEST_SHARE, TEST, held_out).astype(np.int8)
