"""Status of a run and its ranks."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.api.progress_display import count_line
from perseid.pipeline.events import CountEvent


@dataclass(frozen=True)
class RankStatus:
    """Status of one rank of a run, according to its record."""

    rank: int
    """0 <= rank < the run's world size."""
    partitions: tuple[str, ...]
    """Keys of its partitions; empty if there are more ranks than partitions."""
    done: bool
    """Whether it has left a record."""
    rows: int = 0
    """Objects with a prediction."""
    seconds: float = 0.0
    """Duration of the rank's own work."""
    attempt: int = 0
    """The attempt that wrote the record, counted from 1."""
    error: str = ""
    """Why it, or one of its partitions, is missing; empty if nothing is missing."""


@dataclass(frozen=True)
class RunStatus:
    """Status of a run at one moment."""

    state: str
    """``running``, ``complete``, ``incomplete``, or ``not ended`` if no process is working on
    it."""
    stage: str
    """Its current stage, or ``ended``."""
    ranks: int
    """The world size."""
    done: int
    """Ranks with a record."""
    running: int = 0
    waiting: int = 0
    failed: int = 0
    rows: int = 0
    """Objects predicted by finished ranks, if the engine counts them."""
    seconds: float = 0.0
    """Time since the start, if the engine reports it."""
    usd: float = 0.0
    """Approximate cost of the workers so far, if the engine reports it."""

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.state}: {self.done} of {self.ranks} ranks have a record"
        return count_line(
            CountEvent(
                self.stage, self.seconds, self.ranks, self.waiting, self.running, self.done,
                self.failed, rows=self.rows, usd=self.usd,
            )
        )  # fmt: skip
