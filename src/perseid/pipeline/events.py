"""Events that the core reports instead of printing; the command line displays them."""

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
    """A rank changed its state, or predicted more rows."""

    rank: int
    state: RankState
    attempt: int = 1
    rows: int = 0
    """Number of rows predicted so far by this attempt."""
    message: str = ""
    """One sentence saying what went wrong; empty if nothing did."""
    record: bytes = field(default=b"", repr=False)
    """Stored record of a rank that is done, if the sender of the event has read it; otherwise
    empty."""


@dataclass(frozen=True)
class StageEvent:
    """The run entered one of its steps: initialize, map or summarize."""

    stage: str
    message: str = ""


@dataclass(frozen=True)
class CountEvent:
    """Number of ranks in each state, from an engine that does not follow ranks one by one."""

    stage: str
    """Current step of the run, or how the run ended."""
    seconds: float
    """Seconds since the run began."""
    total: int = 0
    """Number of ranks; 0 before it is known."""
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    """Number of ranks that failed for good."""
    retried: int = 0
    """Number of ranks that are done and took more than one attempt."""
    rows: int = 0
    """Number of rows predicted by the ranks that are done."""
    usd: float = 0.0
    """Approximate cost of the workers that are done, in USD."""
    ended: bool = False
    """Whether nothing works on the run any more."""


Event = RankEvent | StageEvent | CountEvent
Report = Callable[[Event], None]
