"""Find the objects most similar to one: exact nearest neighbors among feature vectors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perseid.errors import BadInputError

BLOCK = 2048
"""Rows to compare at once, which bounds the memory needed besides the features."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Result of `nearest`, nearest first; ties are ordered by row."""

    rows: NDArray[np.int64]
    """(n,): rows of the features."""
    distance: NDArray[np.float64]
    """(n,): Euclidean distance, in the unit of the features."""


def nearest(features: NDArray[np.floating], query: ArrayLike, n: int) -> Neighbors:
    """Find the n rows nearest to a query exactly, by comparing every row.

    A first pass in the features' own precision selects all rows that could be among the n despite
    rounding; their distances are then computed in float64.

    Parameters
    ----------
    features
        (rows, d), float32 or float64; rows with a value that is not finite are never near.
    query
        (d,).
    n
        How many rows to find; fewer are returned if fewer are finite.

    Raises
    ------
    BadInputError
        The widths differ, the query is not finite, or n is below 1.

    Examples
    --------
    >>> nearest(np.array([[0.0], [3.0], [1.0]]), [0.9], 2).rows.tolist()
    [2, 0]
    """
    center = np.asarray(query, np.float64)
    if features.ndim != 2 or center.shape != features.shape[1:]:
        raise BadInputError(f"a query {center.shape} does not fit features {features.shape}")
    if n < 1:
        raise BadInputError(f"n must be at least 1, not {n}")
    if not np.isfinite(center).all():
        raise BadInputError("the query has features that are not finite: choose another object")
    near = center.astype(features.dtype)
    rough = _squares(features, near)
    finite = np.flatnonzero(np.isfinite(rough))
    # float32 squares overflow beyond 1.8e19; float64 separates such rows from those with NaN.
    if len(finite) < min(n, len(features)):  # squares overflow, or rows are not finite
        rough, near = _squares(features.astype(np.float64), center), center
        finite = np.flatnonzero(np.isfinite(rough))
    wanted = min(n, len(finite))
    if not wanted:
        return Neighbors(np.empty(0, np.int64), np.empty(0))
    moved = float(np.sqrt(np.sum((center - near) ** 2)))
    # Few rows are left, so the exact distances cost little.
    kept = finite[_candidates(rough[finite], wanted, features.shape[1], moved)]
    exact = np.asarray(features[kept], np.float64) - center
    distance = np.sqrt(np.sum(exact * exact, axis=1))
    # Ties are ordered by row, so that the result does not depend on the division into blocks.
    order = np.lexsort((kept, distance))[:wanted]
    return Neighbors(kept[order], distance[order])


def _squares(features: NDArray[np.floating], center: NDArray[np.floating]) -> NDArray[np.floating]:
    """(rows,): squared distances in the features' own precision, block by block.

    All usable cores share the blocks; the result does not depend on their number.
    """
    out = np.empty(len(features), features.dtype)

    def part(starts: range) -> None:
        difference = np.empty((min(BLOCK, len(features)), features.shape[1]), features.dtype)
        for start in starts:
            rows = features[start : start + BLOCK]
            here = difference[: len(rows)]
            np.subtract(rows, center, out=here)
            np.einsum("nd,nd->n", here, here, out=out[start : start + BLOCK], optimize=False)

    blocks = range(0, len(features), BLOCK)
    threads = min(len(blocks), usable_cores())
    if threads < 2:
        part(blocks)
        return out
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(part, blocks[first::threads]) for first in range(threads)]:
            done.result()
    return out


def usable_cores() -> int:
    """Cores that this process may use, if the system tells; otherwise those of the machine."""
    tell = getattr(os, "sched_getaffinity", None)
    return len(tell(0)) if tell else os.cpu_count() or 1


def _candidates(
    rough: NDArray[np.floating], wanted: int, width: int, moved: float
) -> NDArray[np.int64]:
    """Rows that could be among the nearest, given the rounding of their squared distances.

    A sum of d products has a relative error below (d + 2) u (Higham 2002, section 3.1), and each
    difference one of u; a multiple of that, on both sides of the limit, is safe. Rounding to the
    features' precision may also have `moved` the query itself by this distance.
    """
    distance = np.sqrt(rough)
    slack = 8.0 * (width + 4) * float(np.finfo(rough.dtype).eps)
    limit = float(np.partition(distance, wanted - 1)[wanted - 1]) * (1.0 + slack) + 2.0 * moved
    return np.flatnonzero(distance <= limit * (1.0 + slack))
