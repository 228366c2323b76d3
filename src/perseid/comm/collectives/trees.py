"""Binomial trees, the same on every rank.

Ranks are numbered from the root: ``virtual = (rank - root) mod size``. The parent of a virtual rank
is its number without the lowest set bit, so its subtree holds consecutive numbers that start with
its own (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
in MPICH", 2005).
"""

from __future__ import annotations

import functools
from typing import NamedTuple


class Branch(NamedTuple):
    """One rank's place in a tree."""

    parent: int
    """Rank of the parent; -1 at the root."""
    children: tuple[int, ...]
    """Ranks of the children, the one with the largest subtree first."""
    sizes: tuple[int, ...]
    """Number of ranks in the subtree of each child."""
    near: tuple[int, ...]
    """Ranks of the parent and the children: all that this rank talks to."""


# Cached, since a program calls its collectives with the same few roots again and again.
@functools.lru_cache(maxsize=4096)
def branch(rank: int, size: int, root: int) -> Branch:
    """The place of a rank in the binomial tree of ``size`` ranks."""
    virtual = (rank - root) % size
    # The lowest set bit. The root has none: it gets the power of two that covers all ranks.
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
