"""A run's progress: a live line in a terminal or notebook, otherwise plain lines."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self, TextIO

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from perseid.api.terminal import console
from perseid.pipeline.events import CountEvent, Event, RankEvent, RankState, StageEvent
from perseid.plaintext import counted, printable

RATE_SECONDS = 10.0
"""Window over which the rate of rows is averaged."""
TOGETHER_SECONDS = 0.2
"""Events that come closer are one point of the pace."""
LINE_SECONDS = 5.0
"""Shortest time between plain lines."""
REFRESH_SECONDS = 0.2


@dataclass
class Tally:
    """State of a run's ranks, collected from its events; independent of any terminal and clock."""

    states: dict[int, RankState] = field(default_factory=dict)
    """By rank."""
    _finished_rows: dict[int, int] = field(default_factory=dict)
    _running_rows: dict[int, int] = field(default_factory=dict)
    _history: deque[tuple[float, int]] = field(default_factory=deque)
    _began: float | None = None

    def add(self, event: RankEvent, now: float) -> None:
        """Process an event; `now` is in seconds of any monotonic clock."""
        if self._began is None and event.state is not RankState.WAITING:
            self._began = now
        self.states[event.rank] = event.state
        if event.state is RankState.DONE:
            self._running_rows.pop(event.rank, None)
            self._finished_rows[event.rank] = event.rows
        elif event.state is RankState.RUNNING:
            self._running_rows[event.rank] = event.rows
        else:
            self._running_rows.pop(event.rank, None)
        if self._history and now - self._history[-1][0] < TOGETHER_SECONDS:
            # What was seen at one look did not happen at that moment.
            now = self._history.pop()[0]
        self._history.append((now, self.rows))
        # Keep at least two, because a rate needs two points, however old they are.
        while len(self._history) > 2 and self._history[0][0] < now - RATE_SECONDS:
            self._history.popleft()

    def begin(self, seconds_ago: float, now: float) -> None:
        """Set when the run began, for a run that is looked at only later."""
        self._began = now - seconds_ago

    def count(self, state: RankState) -> int:
        """Ranks in this state."""
        return sum(s is state for s in self.states.values())

    @property
    def rows(self) -> int:
        """Rows predicted so far, those of unfinished ranks included."""
        return sum(self._finished_rows.values()) + sum(self._running_rows.values())

    @property
    def over(self) -> int:
        """Number of ranks that are done or have finally failed."""
        return self.count(RankState.DONE) + self.count(RankState.FAILED)

    def rate(self) -> float:
        """Recent rows per second; 0 while unknown."""
        if len(self._history) < 2:
            return 0.0
        (start, before), (end, after) = self._history[0], self._history[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0

    def fraction(self) -> float:
        """Finished fraction of the work, 0 to 1; running ranks count by their rows."""
        if not self.states:
            return 0.0
        # A rank's number of rows is unknown until it is done, so finished ranks serve as an
        # estimate.
        typical = sum(self._finished_rows.values()) / max(1, len(self._finished_rows))
        running = sum(min(1.0, r / typical) for r in self._running_rows.values()) if typical else 0
        return min(1.0, (self.over + running) / len(self.states))

    def seconds_left(self, now: float) -> float | None:
        """Estimate from the pace so far; None while unknown."""
        fraction = self.fraction()
        if self._began is None or fraction <= 0:
            return None
        return (now - self._began) * (1 - fraction) / fraction

    def line(self, now: float) -> str:
        """E.g. ``12/41 ranks done · 2 running · 27 waiting · 812 rows/s · about 20 s left``."""
        words = [f"{self.count(RankState.DONE)}/{len(self.states)} ranks done"]
        for state in (RankState.RUNNING, RankState.WAITING, RankState.RETRYING, RankState.FAILED):
            if self.count(state):
                words.append(f"{self.count(state)} {state.value}")
        words.append(counted(self.rows, "row"))
        if self.rate() >= 0.5:
            words.append(f"{self.rate():.0f} rows/s")
        left = self.seconds_left(now)
        if left is not None and self.over < len(self.states):
            words.append(f"about {duration(left)} left")
        return " · ".join(words)


class RunProgress:
    """Displays a run's events as they arrive; a context manager.

    Parameters
    ----------
    stream
        Usually stderr, so that stdout contains results only. A terminal gets a live bar.
    quiet
        Report only problems and notes.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._console = console(stream)
        self._quiet = quiet
        self._tally = Tally()
        self._counts: CountEvent | None = None
        self._stage = ""
        self._next = 0.0
        live = self._console.is_terminal and not quiet
        # Drawn only when an event arrives: there is no drawing thread that a signal could leave
        # behind.
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self._console, auto_refresh=False) if live else None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Process one event of the run and update the display."""
        now = time.monotonic()
        if isinstance(event, StageEvent):
            self._begin_stage(event, now)
            return
        if isinstance(event, CountEvent):
            self._count(event, now)
            return
        self._tally.add(event, now)
        if event.message:
            self._say(f"rank {event.rank}, attempt {event.attempt}: {_verdict(event)}")
        # Of an engine that counts, the counts are drawn: it may not tell of every rank.
        drawn = self._counts is None and not self._quiet and event.state is not RankState.WAITING
        if drawn and now >= self._next:
            self._draw(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Print a line of text, unless quiet."""
        if not self._quiet:
            self._say(text)

    def close(self) -> None:
        """Remove the live line, which would otherwise hide a prompt that does not end a line."""
        self._end_map(time.monotonic())
        self._end_live()

    def _count(self, event: CountEvent, now: float) -> None:
        fresh = self._counts is None or event.stage != self._counts.stage
        self._counts = event
        if self._quiet:
            return
        if event.ended:
            self._end_live()
            self._say(count_line(event))
        elif self._bar is not None or fresh or now >= self._next:
            over = (event.done + event.failed) / event.total if event.total else 0.0
            self._show(count_line(event), over, now)

    def _begin_stage(self, event: StageEvent, now: float) -> None:
        if event.stage != self._stage:
            self._end_map(now)
            self._stage = event.stage
            if not event.message and not self._quiet:
                self._say(stage_line(event.stage))
        if event.message:
            self._say(event.message)

    def _end_map(self, now: float) -> None:
        if self._stage != "map":
            return
        self._stage = ""
        self._end_live()
        if self._tally.states and self._counts is None and not self._quiet:
            self._say(self._tally.line(now))

    def _end_live(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, visible=False)
            self._bar.stop()
            self._task = None

    def _draw(self, now: float) -> None:
        if self._bar is None and self._next == 0.0:
            self._next = now + LINE_SECONDS  # nothing is known yet
            return
        self._show(self._tally.line(now), self._tally.fraction(), now)

    def _show(self, line: str, fraction: float, now: float) -> None:
        """Update the live line, or print a plain one."""
        if self._bar is None:
            self._next = now + LINE_SECONDS
            self._say(line)
            return
        self._next = now + REFRESH_SECONDS
        if self._task is None:
            self._task = self._bar.add_task(line, total=1.0)
            self._bar.start()
        self._bar.update(self._task, completed=fraction, description=line, refresh=True)

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)


_STAGES = {
    "initialize": "listing the partitions",
    "map": "running the ranks",
    "collectives": "the ranks merge their results",
    "summarize": "merging and writing the catalogue",
    "collect": "fetching logs and times",
}


def stage_line(stage: str) -> str:
    """A stage in words."""
    return _STAGES.get(stage, stage)


def count_line(now: CountEvent) -> str:
    """E.g. ``map · 12/41 ranks done · 29 running · 15336 rows · about 0.0123 USD · 14 s``."""
    words = [now.stage]
    if now.total:
        words.append(f"{now.done}/{now.total} ranks done")
    numbers = (
        ("running", now.running), ("waiting", now.waiting), ("failed", now.failed),
        ("tried again", now.retried),
    )  # fmt: skip
    words += [f"{number} {name}" for name, number in numbers if number]
    if now.rows:
        words.append(f"{counted(now.rows, 'row')}")
    if now.usd:
        words.append(f"workers so far about {now.usd:.6f} USD")
    return " · ".join([*words, duration(now.seconds)])


def _verdict(event: RankEvent) -> str:
    if event.state is RankState.RETRYING:
        return f"{event.message}; it is tried again"
    if event.state is RankState.FAILED:
        return f"{event.message}; it has failed"
    return event.message


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
