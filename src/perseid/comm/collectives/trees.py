"""Binomial trees, the same on every rank.

Ranks are numbered from the root: ``virtual = (rank - root) mod size``. The parent of a virtual rank
is its number without the lowest set bit, so its subtree holds consecutive numbers that start with
its own (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations
in MPICH", 2005).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass


# Compared by identity, which is quicker than by value: `functools.cache` returns the same object
# for the same arguments.
@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """One rank's place in a tree."""

    parent: int
    """Rank of the parent; -1 at the root."""
    children: tuple[int, ...]
    """Ranks of the children, the one with the largest subtree first."""
    sizes: tuple[int, ...]
    """Number of ranks in the subtree of each child."""
    near: tuple[int, ...]
    """Ranks of the parent and the children: all that this rank talks to."""


@dataclass(frozen=True, eq=False, slots=True)
class Rounds:
    """One rank's rounds in a dissemination."""

    jumps: tuple[int, ...]
    """Distance between the ranks of each round: powers of two."""
    peers: tuple[tuple[int, int], ...]
    """In each round, the rank that far after this one and the rank that far before it."""
    near: frozenset[int]
    """All ranks that this rank talks to."""


@functools.cache
def rounds(rank: int, size: int) -> Rounds:
    """The rounds in which a rank of ``size`` ranks hears of all others, directly or through
    others."""
    jumps = tuple(1 << k for k in range((size - 1).bit_length()))
    peers = tuple(((rank + jump) % size, (rank - jump) % size) for jump in jumps)
    return Rounds(jumps, peers, frozenset(peer for pair in peers for peer in pair))


# Cached, since a program calls its collectives with the same few roots again and again.
@functools.cache
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
