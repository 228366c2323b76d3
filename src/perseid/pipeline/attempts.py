"""What an engine reports about its ranks: every attempt, measured as Lambda would measure it."""

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
    """The worker raised an error; the attempt's message is that of the error."""
    BAD_INPUT = "bad input"
    """The worker raised an error that every further attempt would raise too, so it is not
    retried."""
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    """The process was ended by a signal that the engine did not send."""
    NO_RESULT = "no result"
    """The worker exited or reported success, but left no record."""
    STOPPED = "stopped"
    """The engine ended the attempt: the run was interrupted, or another attempt was faster."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a rank, measured as Lambda's REPORT line would have it."""

    rank: int
    attempt: int
    """Number of the attempt at its rank, starting at 1 and counted over all resumptions of the
    run."""
    request_id: str
    """Unique id of the attempt, also written to the rank's log."""
    ending: Ending
    message: str
    """One sentence that says what went wrong; empty if nothing did."""
    started: float
    """When the process (cold) or the work (warm) began, in seconds since the epoch, UTC."""
    duration_ms: float
    """Milliseconds from handing the item to the worker until its answer, without init."""
    memory_mb: int
    """Configured memory, in MB."""
    max_memory_mb: float
    """Peak resident memory of the worker and its children during this attempt, in MiB."""
    init_ms: float | None = None
    """Milliseconds from the start of the process until it was ready (interpreter, imports, model);
    None for a warm attempt."""
    work_seconds: float = 0.0
    """Seconds of the rank's own work as measured by the worker; 0 if it did not answer."""
    rows: int = 0
    """Number of rows predicted; 0 if the attempt did not finish."""
    cores: int = 0
    """Number of cores that the process could use; 0 if the engine does not know, as on Lambda."""

    @property
    def billed_ms(self) -> int:
        """Billed duration in whole milliseconds. It includes init, which Lambda has billed for
        every kind of package since August 2025."""
        total = round(self.duration_ms + (self.init_ms or 0.0), 3)
        return max(1, int(-(-total // 1)))

    @property
    def cold(self) -> bool:
        """Whether a new process was started for this attempt."""
        return self.init_ms is not None

    def to_json(self) -> AttemptEntry:
        """The attempt as plain JSON values, including the billed duration."""
        return cast(AttemptEntry, asdict(self) | {"billed_ms": self.billed_ms, "cold": self.cold})


@dataclass(frozen=True)
class EngineReport:
    """What an engine did with its ranks."""

    attempts: tuple[Attempt, ...] = ()
    """All attempts, in the order in which they ended."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """One sentence for each rank that has no result."""
    wall_seconds: float = 0.0
    concurrency: int = 1
    """Highest number of workers that ran at once."""
    done: tuple[int, ...] = ()
    """Ranks that now have a record, in ascending order."""
    stopped: bool = False
    """Whether the user stopped the run, so that some ranks are neither done nor failed."""
    meeting_seconds: float = 0.0
    """Seconds of the collective merge, which follow `wall_seconds`; 0 if there was none."""
    transport_note: str = ""
    """Why the engine merged the statistics through the store; empty if it did not have to."""
    published: bool = False
    """Whether the engine also summarized the run, so that its results are already in the store."""
    notes: tuple[str, ...] = ()
    """Further notes for the user, one sentence each."""

    @property
    def work_seconds(self) -> float:
        """Seconds that the ranks themselves worked, summed over all attempts."""
        return sum(attempt.work_seconds for attempt in self.attempts)

    @property
    def overhead_seconds(self) -> float:
        """Seconds that workers spent on anything else, such as starting up or being idle."""
        busy = min(self.concurrency, len({attempt.rank for attempt in self.attempts}))
        return max(0.0, self.wall_seconds * busy - self.work_seconds)

    @property
    def overhead_per_rank(self) -> float:
        """`overhead_seconds` divided by the number of ranks, in seconds."""
        ranks = len({attempt.rank for attempt in self.attempts})
        return self.overhead_seconds / ranks if ranks else 0.0

    def to_json(self) -> EngineDocument:
        """The report as plain JSON values, as stored in ``engine.json``."""
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
        """Read an ``engine.json``: the attempts of all drivers of the run, without their notes.

        Raises
        ------
        KeyError, TypeError, ValueError
            The JSON does not have this form.
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
