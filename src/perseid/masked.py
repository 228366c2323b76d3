"""Masked arrays, without importing `numpy.ma` where no value is missing.

NumPy imports that module when it is first used, which takes a worker as long as reading its first
block; most surveys have no missing values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_masked_array(array: object) -> bool:
    """Whether an array can have missing values, which a plain one cannot."""
    return array is not None and type(array) is not np.ndarray and np.ma.isMaskedArray(array)


def has_missing(array: object) -> bool:
    """Whether at least one value of an array is missing."""
    return is_masked_array(array) and bool(np.ma.is_masked(array))


def values_of(array: NDArray[Any]) -> NDArray[Any]:
    """All values of an array; where one is missing, whatever lies in its place."""
    return np.ma.getdata(array) if is_masked_array(array) else array
