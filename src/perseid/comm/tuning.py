"""Where the algorithms change over, for choices that all ranks must make alike."""

from __future__ import annotations


def few_messages(size: int) -> bool:
    """Whether a barrier goes up and down a tree (2 (n - 1) messages) instead of spreading.

    Spreading needs n log2(n) messages in half the rounds.
    """
    return size > 2
