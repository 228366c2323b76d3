"""The part of a communicator that the pipeline uses; without one, summarize merges from the
store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Exchange(Protocol):
    """The collectives that `collective_merge` uses; names and meanings as in mpi4py."""

    @property
    def rank(self) -> int:
        """0 <= rank < world_size."""

    @property
    def world_size(self) -> int:
        """How many ranks take part."""

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Every rank's value in rank order on the root, None elsewhere."""

    def bcast(self, value: Any = None, root: int = 0) -> Any:
        """The root's value on every rank."""

    def scatter(self, values: Sequence[Any] | None = None, root: int = 0) -> Any:
        """The value of the root's list that is this rank's."""

    def reduce(self, value: Any, op: Any, root: int = 0) -> Any:
        """All ranks' values as one on the root, None elsewhere."""
