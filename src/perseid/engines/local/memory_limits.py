"""The memory limit of each rank, which may be raised after the rank ran out of memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from perseid.engines.memory import available


@dataclass
class MemoryLimits:
    """The memory limits of the ranks of one run."""

    usual_mb: int
    raised: bool
    """Whether a rank that exceeded its limit may take twice as much at its next attempt."""
    _of_rank: dict[int, int] = field(default_factory=dict)

    def of(self, rank: int) -> int:
        """Current memory limit of the rank, in MB."""
        return self._of_rank.get(rank, self.usual_mb)

    def ran_out(self, rank: int) -> None:
        """Double the limit of the rank, if that is enabled and the machine has the memory."""
        more = 2 * self.of(rank)
        # Otherwise the kernel would kill some process of the machine, not necessarily this rank.
        if self.raised and more <= available():
            self._of_rank[rank] = more
