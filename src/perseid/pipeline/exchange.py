"""The part of a communicator that the pipeline uses; without one, summarize merges from the
store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Exchange(Protocol):
    """The collectives that `collective_merge` uses; names and meanings as in mpi4py."""

    @property
    def rank(self) -> int:
        """Rank of this process, from 0 to `world_size` - 1."""

    @property
    def world_size(self) -> int:
        """Number of ranks that take part."""

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """On the root, the values of all ranks in rank order; None elsewhere."""

    def bcast(self, value: Any = None, root: int = 0) -> Any:
        """On every rank, the root's value."""

    def scatter(self, values: Sequence[Any] | None = None, root: int = 0) -> Any:
        """On every rank, its own entry of the root's list."""

    def reduce(self, value: Any, op: Any, root: int = 0) -> Any:
        """On the root, the values of all ranks combined into one; None elsewhere."""
