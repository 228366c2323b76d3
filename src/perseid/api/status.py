"""Status of a run and its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from perseid.api.progress_display import count_line, duration
from perseid.measure.fields import Fields
from perseid.pipeline.events import CountEvent
from perseid.plaintext import html_table


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
    rows: int | None = None
    """Objects predicted by finished ranks; None if nobody counted them."""
    seconds: float | None = None
    """Time since the start, or of the whole run once it has ended; None if not known."""
    usd: float | None = None
    """Approximate cost of the workers so far, or of the whole ended run; None if not known."""

    @classmethod
    def ended(cls, ranks: int, done: int, summary: Mapping[str, object] | None) -> Self:
        """The status of a run that no process works on; `summary` None: nothing is published."""
        if summary is None:
            return cls("not ended", "ended", ranks, done)
        rows, timing, cost = (Fields(summary.get(key)) for key in ("rows", "timing", "cost"))
        return cls(
            str(summary["status"]), "ended", ranks, done,
            rows=rows.count("received"), seconds=timing.number("total"),
            usd=cost.number("total_usd"),
        )  # fmt: skip

    def _repr_html_(self) -> str:
        counts = ("running", self.running), ("waiting", self.waiting), ("failed", self.failed)
        shown = [("ranks done", f"{self.done:,} of {self.ranks:,}")]
        shown += [(f"ranks {name}", f"{count:,}") for name, count in counts if count]
        shown += [("objects", f"{self.rows:,}")] if self.rows is not None else []
        shown += [("time", duration(self.seconds))] if self.seconds is not None else []
        return html_table(("state", self.state), shown)

    def __str__(self) -> str:
        if self.stage == "ended" or self.seconds is None:
            numbers = ((self.running, "running"), (self.failed, "failed"))
            more = "".join(f", {number} {name}" for number, name in numbers if number)
            return f"{self.state}: {self.done} of {self.ranks} ranks have a record{more}"
        return count_line(
            CountEvent(
                self.stage, self.seconds, self.ranks, self.waiting, self.running, self.done,
                self.failed, rows=self.rows or 0, usd=self.usd or 0.0,
            )
        )  # fmt: skip
