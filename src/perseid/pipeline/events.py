"""What the core reports instead of printing; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class RankState(StrEnum):
    """State of a rank."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class RankEvent:
    """A rank changed its state, or got on with its rows."""

    rank: int
    state: RankState
    attempt: int = 1
    rows: int = 0
    """Rows predicted so far by this attempt."""
    message: str = ""
    """One sentence where something went wrong."""
    record: bytes = field(default=b"", repr=False)
    """Of a rank that is done: its record as it lies in the store, where whoever reports it has
    read it anyway."""


@dataclass(frozen=True)
class StageEvent:
    """The run entered a step: initialize, map, summarize."""

    stage: str
    message: str = ""


@dataclass(frozen=True)
class CountEvent:
    """How many ranks stand where, from an engine that does not follow each of them."""

    stage: str
    """The run's step, or how it ended."""
    seconds: float
    """Since it began."""
    total: int = 0
    """Ranks; 0 before they are known."""
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    """For good."""
    retried: int = 0
    """Ranks that are done and took more than one attempt."""
    rows: int = 0
    """Predicted by ranks that are done."""
    usd: float = 0.0
    """About what the workers that are done cost."""
    ended: bool = False
    """Whether nothing works on the run any more."""


Event = RankEvent | StageEvent | CountEvent
Report = Callable[[Event], None]
