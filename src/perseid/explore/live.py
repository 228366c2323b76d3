"""A run as it goes on: its events, kept as the state of each rank for everyone who looks.

One thread follows the run, whoever and how many are looking, so that a store or a service is asked
no more often than by the command line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from perseid.api.progress_display import Tally, duration, stage_line
from perseid.api.run import Run
from perseid.errors import PerseidError, RunInterruptedError
from perseid.jsontext import parse_json
from perseid.measure.folder import RankMeasures
from perseid.measure.prices import Prices
from perseid.measure.sources.rank_measures import read_record
from perseid.pipeline import layout
from perseid.pipeline.attempts import Ending
from perseid.pipeline.events import CountEvent, Event, RankEvent, RankState, StageEvent
from perseid.pipeline.run_state import RunResult
from perseid.storage import Storage

READERS = 16
RECORDS_AT_ONCE = 64
"""Records that are read between two pictures of a run."""
DEFAULT_MEMORY_MB = 1769
"""Of a worker where the request says nothing: see `perseid.engines.local.local_options`."""


@dataclass(frozen=True)
class RankView:
    """One rank as the page shows it."""

    rank: int
    state: RankState = RankState.WAITING
    attempt: int = 0
    rows: int = 0
    began: float | None = None
    """Seconds since the epoch; None before it was seen at work."""
    ended: float | None = None
    message: str = ""
    """One sentence where something went wrong."""
    record: RankMeasures | None = None
    """What it left, once it is done and its record was read."""

    @property
    def retried(self) -> bool:
        """Whether it took, or takes, more than one attempt."""
        return self.attempt > 1 or self.state is RankState.RETRYING

    @property
    def memory_mb(self) -> float | None:
        """Highest resident memory, MiB, where its record says so."""
        return self.record.peak_memory_mb if self.record else None


@dataclass(frozen=True)
class LiveView:
    """A picture of the run at one moment."""

    version: int
    """Grows with each event."""
    going: bool
    """Whether something works on the run."""
    words: str
    """What the run is doing, or how it ended."""
    ranks: tuple[RankView, ...]
    began: float
    """Seconds since the epoch."""
    rows: int = 0
    rows_a_second: float = 0.0
    seconds_left: float | None = None
    fraction: float = 0.0
    """Part of the work that is over, 0 to 1."""
    usd: float | None = None
    """Cost of the ranks that are done."""
    counts: CountEvent | None = None
    """While the run goes on, from an engine that tells how many ranks are at work, not which."""
    notes: tuple[str, ...] = ()

    def count(self, state: RankState) -> int:
        """How many ranks stand there."""
        if self.counts is not None:
            of = {
                RankState.WAITING: self.counts.waiting, RankState.RUNNING: self.counts.running,
                RankState.DONE: self.counts.done, RankState.FAILED: self.counts.failed,
            }  # fmt: skip
            return of.get(state, 0)
        return sum(rank.state is state for rank in self.ranks)

    @property
    def retried(self) -> int:
        """Ranks of more than one attempt."""
        if self.counts is not None:
            return self.counts.retried
        return sum(rank.retried for rank in self.ranks)

    @property
    def memory_mb(self) -> float | None:
        """The highest memory of any rank so far, MiB."""
        known = [rank.memory_mb for rank in self.ranks if rank.memory_mb is not None]
        return max(known, default=None)

    @property
    def left_words(self) -> str:
        """E.g. ``about 20 s``; empty while unknown."""
        return "" if self.seconds_left is None else f"about {duration(self.seconds_left)}"


@dataclass
class _State:
    """What the events have said so far; guarded by the lock of `LiveRun`."""

    going: bool = False
    words: str = ""
    version: int = 0
    tally: Tally = field(default_factory=Tally)
    counts: CountEvent | None = None
    follows: bool = False
    """Whether the engine tells of each rank at work."""
    notes: list[str] = field(default_factory=list)


class LiveRun:
    """Follows a run, or is told of one that this process follows anyway.

    Parameters
    ----------
    run
        The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._store = Storage(run.url)
        self._script = run.manifest.script is not None
        self._ranks = [RankView(rank) for rank in range(run.manifest.world_size)]
        self._unread: list[int] = []
        self._state = _State()
        self._state.tally.states |= dict.fromkeys(range(len(self._ranks)), RankState.WAITING)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reading = threading.Lock()
        self._when_ended: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Look where the run stands, and follow it in a thread of its own if it is going on."""
        if self._run.status().state == "running":
            ago = time.time() - self._since()
            with self._lock:
                self._state.going, self._state.words = True, stage_line("map")
                self._state.tally.begin(max(0.0, ago), time.monotonic())
            threading.Thread(target=self._follow, name="follow-run", daemon=True).start()
        else:
            self._take_records()
            self._finish(_ended_words(self._run))

    def _since(self) -> float:
        """When who works on the run began, seconds since the epoch."""
        try:
            return float(parse_json(self._store.get(layout.DRIVER))["since"])
        except (PerseidError, ValueError, KeyError, TypeError):
            return self._run.manifest.created

    def _follow(self) -> None:
        try:
            self._run.follow(self.report)
        except (PerseidError, RunInterruptedError) as error:
            self._finish(str(error))
        else:
            self._finish(_ended_words(self._run))

    def when_ended(self, call: Callable[[], None]) -> None:
        """What is to be called once the run has ended: its catalogue is another one then."""
        self._when_ended = call

    def begun(self) -> None:
        """The run is going on; this process follows it and calls `report` and `finish`."""
        with self._lock:
            self._state.going, self._state.words = True, stage_line("map")

    def finish(self) -> None:
        """The run has ended."""
        self._finish(_ended_words(self._run))

    def report(self, event: Event) -> None:
        """One event of the run; from any thread."""
        with self._lock:
            if self._closed.is_set():
                return
            if isinstance(event, RankEvent):
                self._of_rank(event)
            elif isinstance(event, CountEvent):
                self._state.counts = event
                self._state.words = stage_line(event.stage)
            elif isinstance(event, StageEvent):
                self._state.words = stage_line(event.stage)
                self._note(event.message)
            self._state.version += 1

    def _of_rank(self, event: RankEvent) -> None:
        now, old = time.time(), self._ranks[event.rank]
        self._state.tally.add(event, time.monotonic())
        self._state.follows |= event.state not in (RankState.WAITING, RankState.DONE)
        working = event.state is RankState.RUNNING
        began = old.began or (now if working else None)
        # Another attempt begins at zero; events within one attempt do not move its beginning.
        if working and event.attempt != old.attempt:
            began = now
        done = event.state in (RankState.DONE, RankState.FAILED)
        self._ranks[event.rank] = replace(
            old, state=event.state, attempt=event.attempt, rows=event.rows, began=began,
            ended=now if done else None, message=event.message or old.message,
        )  # fmt: skip
        if event.state is RankState.DONE and event.record:
            self._measured(event.rank, _read(event.record, event.rank))
        elif event.state is RankState.DONE:
            self._unread.append(event.rank)
        if event.message:
            self._note(f"rank {event.rank}, attempt {event.attempt}: {event.message}")

    def _note(self, words: str) -> None:
        if words:
            # A run of thousands of failing ranks must not fill the page or the memory.
            self._state.notes = [*self._state.notes[-49:], words]

    def _finish(self, words: str) -> None:
        self._when_ended()
        try:
            result = self._run.result
        except PerseidError:
            result = None
        with self._lock:
            self._settle(result)
            self._state.going, self._state.words = False, words
            self._state.version += 1

    def _settle(self, result: RunResult | None) -> None:
        """Nothing works on the run any more: a rank is done, has failed, or is to come."""
        missing = result.summary["ranks"]["missing"] if result else ()
        lost = {entry["rank"]: str(entry["reason"]) for entry in missing}
        attempts = result.mapped.attempts if result else ()
        # One that was stopped may have run beside a faster one.
        tried = {one.rank: one.attempt for one in attempts if one.ending is not Ending.STOPPED}
        for number, rank in enumerate(self._ranks):
            state, attempt = rank.state, max(rank.attempt, tried.get(number, 0))
            if state is not RankState.DONE:
                state = RankState.FAILED if number in lost else RankState.WAITING
            said = lost.get(number, rank.message)
            self._ranks[number] = replace(rank, state=state, attempt=attempt, message=said)

    def _take_records(self) -> None:
        """Which ranks have left a record, of a run that has ended."""
        try:
            names = {info.key for info in self._store.list()}
        except PerseidError:
            return
        with self._lock:
            for number, rank in enumerate(self._ranks):
                key = layout.done_record(number, script=self._script)
                if key in names:
                    self._ranks[number] = replace(rank, state=RankState.DONE, attempt=1)
                    self._unread.append(number)
                self._state.tally.states[number] = self._ranks[number].state

    @property
    def version(self) -> int:
        """Grows with each event."""
        return self._state.version

    @property
    def going(self) -> bool:
        """Whether something works on the run."""
        return self._state.going

    @property
    def closed(self) -> bool:
        """Whether the server is going away."""
        return self._closed.is_set()

    def view(self) -> LiveView:
        """The run as it stands now."""
        self._read_records()
        with self._lock:
            state, ranks = self._state, tuple(self._ranks)
            tally, now = state.tally, time.monotonic()
            counts = state.counts
            told = counts if state.going and not state.follows else None
            done = sum(rank.state in (RankState.DONE, RankState.FAILED) for rank in ranks)
            rows = max(sum(rank.rows for rank in ranks), counts.rows if counts else 0)
            return LiveView(
                version=state.version,
                going=state.going,
                words=state.words,
                ranks=ranks,
                began=self._run.manifest.created,
                rows=rows,
                rows_a_second=tally.rate(),
                seconds_left=tally.seconds_left(now) if state.going else None,
                fraction=_fraction(told, max(tally.fraction(), done / max(1, len(ranks)))),
                usd=counts.usd if counts and counts.usd else self._cost(ranks),
                counts=told,
                notes=tuple(state.notes),
            )

    def _cost(self, ranks: Sequence[RankView]) -> float | None:
        """What the seconds of the ranks that are done would cost on Lambda."""
        memory = self._run.manifest.settings.options.memory_mb or DEFAULT_MEMORY_MB
        seconds = [rank.record.stages.get("total", 0.0) for rank in ranks if rank.record]
        price = Prices().lambda_gb_second("x86").usd
        return sum(seconds) * memory / 1024 * price if seconds else None

    def _read_records(self) -> None:
        """Read what ranks have left that got done since the last look, each record once."""
        with self._reading:
            with self._lock:
                wanted, self._unread = (
                    self._unread[:RECORDS_AT_ONCE],
                    self._unread[RECORDS_AT_ONCE:],
                )
            with ThreadPoolExecutor(READERS) as pool:
                found = list(pool.map(self._record, wanted))
            with self._lock:
                for number, record in zip(wanted, found, strict=True):
                    self._measured(number, record)

    def _measured(self, number: int, record: RankMeasures | None) -> None:
        """Take in what a rank's record says; called with the lock."""
        if record is None:
            return
        rank, bars = self._ranks[number], record.timeline
        self._ranks[number] = replace(
            rank, record=record, rows=max(rank.rows, record.rows),
            attempt=max(rank.attempt, record.attempt or 1),
            began=min((b[1] for b in bars), default=rank.began),
            ended=max((b[2] for b in bars), default=rank.ended),
        )  # fmt: skip

    def _record(self, rank: int) -> RankMeasures | None:
        try:
            data = self._store.get(layout.done_record(rank, script=self._script))
        except PerseidError:
            return None
        return _read(data, rank)

    def close(self) -> None:
        """Stop following the run: nobody is looking any more."""
        with self._lock:
            self._closed.set()


def _read(record: bytes, rank: int) -> RankMeasures | None:
    """The content of a rank's record; None if it cannot be read."""
    try:
        return read_record(parse_json(record), rank)
    except (ValueError, PerseidError):
        return None


def _fraction(counts: CountEvent | None, by_rank: float) -> float:
    if counts is None or not counts.total:
        return min(1.0, by_rank)
    return min(1.0, (counts.done + counts.failed) / counts.total)


def _ended_words(run: Run) -> str:
    """How the run ended, in one sentence."""
    try:
        said = run.incomplete or "every rank and every partition is there"
    except PerseidError as error:
        said = str(error)
    said = said.partition(" is incomplete: ")[2] or said  # the page says so before it
    return said[:1].upper() + said[1:]
