"""What the core reports instead of printing; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class RankState(StrEnum):
    """Where a rank stands."""

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


@dataclass(frozen=True)
class StageEvent:
    """The run entered a step: initialize, map, summarize."""

    stage: str
    message: str = ""


Event = RankEvent | StageEvent
Report = Callable[[Event], None]
