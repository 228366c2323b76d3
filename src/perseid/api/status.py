"""Where a run and its ranks stand."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.api.progress_display import count_line
from perseid.pipeline.events import CountEvent


@dataclass(frozen=True)
class RankStatus:
    """One rank of a run, as far as its record says."""

    rank: int
    """0 <= rank < the run's world size."""
    partitions: tuple[str, ...]
    """Keys of its partitions; none for a surplus rank."""
    done: bool
    """Whether its record is there."""
    rows: int = 0
    """Objects that it predicted."""
    seconds: float = 0.0
    """Of its own work."""
    attempt: int = 0
    """Which attempt wrote the record, from 1."""
    error: str = ""
    """Why it, or one of its partitions, is missing; empty where nothing is."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands at one moment."""

    state: str
    """``running``, ``complete``, ``incomplete``, or ``not ended`` where no process works on it."""
    stage: str
    """The step that it is in, or ``ended``."""
    ranks: int
    """Its world size."""
    done: int
    """Ranks with a record."""
    running: int = 0
    waiting: int = 0
    failed: int = 0
    rows: int = 0
    """Objects predicted by ranks that are done, where the engine counts them."""
    seconds: float = 0.0
    """Since it began, where the engine says so."""
    usd: float = 0.0
    """About what its workers cost so far, where the engine says so."""

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.state}: {self.done} of {self.ranks} ranks have a record"
        return count_line(
            CountEvent(
                self.stage, self.seconds, self.ranks, self.waiting, self.running, self.done,
                self.failed, rows=self.rows, usd=self.usd,
            )
        )  # fmt: skip
