"""Binomial trees, the same on every rank.

Ranks are numbered from the root: ``virtual = (rank - root) mod size``. The parent of a virtual rank
is the number without its lowest set bit, so the subtree below it holds the following numbers
without a gap (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
in MPICH", 2005).
"""

from __future__ import annotations

import functools
from typing import NamedTuple


class Branch(NamedTuple):
    """One rank's place in a tree."""

    parent: int
    """Rank; -1 at the root."""
    children: tuple[int, ...]
    """Ranks, the largest subtree first."""
    sizes: tuple[int, ...]
    """Ranks in the subtree of each child."""
    near: tuple[int, ...]
    """Parent and children."""


@functools.lru_cache(maxsize=4096)
def branch(rank: int, size: int, root: int) -> Branch:
    """The place of a rank in the binomial tree of ``size`` ranks."""
    virtual = (rank - root) % size
    # The lowest set bit; the root has none and counts as a power of two that holds all ranks.
    low = virtual & -virtual if virtual else 1 << (size - 1).bit_length()
    parent = (virtual - low + root) % size if virtual else -1
    children, sizes = [], []
    step = low >> 1
    while step:
        if virtual + step < size:
            children.append((virtual + step + root) % size)
            sizes.append(min(step, size - virtual - step))
        step >>= 1
    near = children if parent < 0 else [parent, *children]
    return Branch(parent, tuple(children), tuple(sizes), tuple(near))
