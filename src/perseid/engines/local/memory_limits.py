"""How much memory each rank may take: more, after it ran out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from perseid.engines.memory import available


@dataclass
class MemoryLimits:
    """The limits of one run's ranks."""

    usual_mb: int
    raised: bool
    """Whether a rank that took more may have twice as much at its next attempt."""
    _of_rank: dict[int, int] = field(default_factory=dict)

    def of(self, rank: int) -> int:
        """MB that the rank may take now."""
        return self._of_rank.get(rank, self.usual_mb)

    def ran_out(self, rank: int) -> None:
        """Let the rank have twice as much, where that is wanted and the machine has it."""
        more = 2 * self.of(rank)
        if self.raised and more <= available():
            self._of_rank[rank] = more
