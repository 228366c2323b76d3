"""What an engine reports of the ranks it worked on: every attempt, as Lambda would measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, cast

from perseid.pipeline.run_summary import AttemptEntry, EngineDocument


class Ending(StrEnum):
    """How one attempt at a rank ended."""

    DONE = "done"
    RAISED = "raised"
    """The worker raised; the message is the error's."""
    BAD_INPUT = "bad input"
    """It raised an error that every attempt would raise again, so it is not retried."""
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    """The process was ended by a signal that the engine did not send."""
    NO_RESULT = "no result"
    """The worker exited or reported success, but left no record."""
    STOPPED = "stopped"
    """The engine ended it: the run was interrupted, or another attempt was faster."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a rank, measured as Lambda's REPORT line would have it."""

    rank: int
    attempt: int
    """1 for the rank's first, over all resumptions of the run."""
    request_id: str
    """Unique; the same as in the rank's log."""
    ending: Ending
    message: str
    """One sentence where something went wrong; otherwise empty."""
    started: float
    """When the process (cold) or the work (warm) began, seconds since the epoch, UTC."""
    duration_ms: float
    """From handing over the item to the worker's answer, ms; without init."""
    memory_mb: int
    """Configured memory, MB."""
    max_memory_mb: float
    """Peak resident memory of the worker and its children in this attempt, MiB."""
    init_ms: float | None = None
    """From the process' start to ready (interpreter, imports, model), ms; None when warm."""
    work_seconds: float = 0.0
    """The rank's own work as the worker saw it, s; 0 where it did not answer."""
    rows: int = 0
    """Rows predicted; 0 where it did not finish."""
    cores: int = 0
    """Cores that its process could use; 0 where the engine does not say, as on Lambda."""

    @property
    def billed_ms(self) -> int:
        """Whole ms, init included: Lambda bills it for every kind of package since August 2025."""
        total = round(self.duration_ms + (self.init_ms or 0.0), 3)
        return max(1, int(-(-total // 1)))

    @property
    def cold(self) -> bool:
        """Whether a process was started for it."""
        return self.init_ms is not None

    def to_json(self) -> AttemptEntry:
        """Plain JSON values, the billed duration included."""
        return cast(AttemptEntry, asdict(self) | {"billed_ms": self.billed_ms, "cold": self.cold})


@dataclass(frozen=True)
class EngineReport:
    """What an engine did with its ranks."""

    attempts: tuple[Attempt, ...] = ()
    """In the order in which they ended."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """One sentence for each rank without a result."""
    wall_seconds: float = 0.0
    concurrency: int = 1
    """Workers at once, at most."""
    done: tuple[int, ...] = ()
    """Ranks that now have a record, ascending."""
    stopped: bool = False
    """The user stopped it; ranks are neither done nor failed."""
    meeting_seconds: float = 0.0
    """Seconds of the collective merge, which follow `wall_seconds`; 0 if there was none."""
    transport_note: str = ""
    """Why the engine merged the statistics through the store; empty if it did not."""
    published: bool = False
    """Whether the engine summarized the run, too: its results are in the store already."""
    notes: tuple[str, ...] = ()
    """Further notes for the user, one sentence each."""

    @property
    def work_seconds(self) -> float:
        """The ranks' own work over all attempts, s."""
        return sum(attempt.work_seconds for attempt in self.attempts)

    @property
    def overhead_seconds(self) -> float:
        """Seconds that workers spent on anything but their ranks' work, such as starting or being
        idle."""
        busy = min(self.concurrency, len({attempt.rank for attempt in self.attempts}))
        return max(0.0, self.wall_seconds * busy - self.work_seconds)

    @property
    def overhead_per_rank(self) -> float:
        """`overhead_seconds` over the number of ranks, s."""
        ranks = len({attempt.rank for attempt in self.attempts})
        return self.overhead_seconds / ranks if ranks else 0.0

    def to_json(self) -> EngineDocument:
        """Plain JSON values, as ``engine.json`` holds them."""
        return {
            "wall_seconds": self.wall_seconds,
            "meeting_seconds": self.meeting_seconds,
            "concurrency": self.concurrency,
            "work_seconds": self.work_seconds,
            "overhead_seconds": self.overhead_seconds,
            "overhead_seconds_per_rank": self.overhead_per_rank,
            "cold_starts": sum(attempt.cold for attempt in self.attempts),
            "failures": {str(rank): text for rank, text in sorted(self.failures.items())},
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }

    @classmethod
    def from_json(cls, value: EngineDocument) -> EngineReport:
        """Read an ``engine.json``: the attempts of all its drivers, without their notes.

        Raises
        ------
        KeyError, TypeError, ValueError
            It holds something else.
        """
        names = {one.name for one in fields(Attempt)}
        attempts = tuple(
            Attempt(**{k: cast(Any, v) for k, v in entry.items() if k in names})
            for entry in value["attempts"]
        )
        attempts = tuple(replace(one, ending=Ending(one.ending)) for one in attempts)
        return cls(
            attempts,
            {int(rank): text for rank, text in value["failures"].items()},
            value["wall_seconds"],
            value["concurrency"],
            tuple(sorted({one.rank for one in attempts if one.ending is Ending.DONE})),
            meeting_seconds=value.get("meeting_seconds", 0.0),
        )
