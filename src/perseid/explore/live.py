"""The progress of a run: its events, kept as the state of each rank for all visitors.

One thread follows the run for any number of visitors, so that a store or service gets no more
requests than from the command line.
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
"""Number of records that are read concurrently."""
RECORDS_AT_ONCE = 64
"""Maximum number of records that are read for one view of the run."""
DEFAULT_MEMORY_MB = 1769
"""Memory of a worker if the request states none; see `perseid.engines.local.local_options`."""


@dataclass(frozen=True)
class RankView:
    """One rank as the page shows it."""

    rank: int
    state: RankState = RankState.WAITING
    attempt: int = 0
    rows: int = 0
    began: float | None = None
    """Start in seconds since the epoch; None until the rank was seen running."""
    ended: float | None = None
    message: str = ""
    """One sentence that says what went wrong; empty if nothing did."""
    record: RankMeasures | None = None
    """Content of its record; None until the rank is done and the record was read."""

    @property
    def retried(self) -> bool:
        """Whether the rank needed, or needs, more than one attempt."""
        return self.attempt > 1 or self.state is RankState.RETRYING

    @property
    def memory_mb(self) -> float | None:
        """Peak resident memory, in MiB; None if no record states it."""
        return self.record.peak_memory_mb if self.record else None


@dataclass(frozen=True)
class LiveView:
    """The state of the run at one moment."""

    version: int
    """Number that grows with each event."""
    going: bool
    """Whether the run is being worked on."""
    words: str
    """One sentence that says what the run is doing or how it ended."""
    ranks: tuple[RankView, ...]
    began: float
    """Creation of the run, in seconds since the epoch."""
    rows: int = 0
    rows_a_second: float = 0.0
    seconds_left: float | None = None
    fraction: float = 0.0
    """Fraction of the work that is done, 0 to 1."""
    usd: float | None = None
    """Cost of the ranks that are done, in US dollars; None if unknown."""
    counts: CountEvent | None = None
    """Numbers of ranks by state, during a run whose engine reports only numbers; otherwise None."""
    notes: tuple[str, ...] = ()

    def count(self, state: RankState) -> int:
        """Number of ranks in this state."""
        if self.counts is not None:
            of = {
                RankState.WAITING: self.counts.waiting, RankState.RUNNING: self.counts.running,
                RankState.DONE: self.counts.done, RankState.FAILED: self.counts.failed,
            }  # fmt: skip
            return of.get(state, 0)
        return sum(rank.state is state for rank in self.ranks)

    @property
    def retried(self) -> int:
        """Number of ranks with more than one attempt."""
        if self.counts is not None:
            return self.counts.retried
        return sum(rank.retried for rank in self.ranks)

    @property
    def memory_mb(self) -> float | None:
        """Highest peak memory of any rank so far, in MiB; None if unknown."""
        known = [rank.memory_mb for rank in self.ranks if rank.memory_mb is not None]
        return max(known, default=None)

    @property
    def left_words(self) -> str:
        """E.g. ``about 20 s``; empty while unknown."""
        return "" if self.seconds_left is None else f"about {duration(self.seconds_left)}"


@dataclass
class _State:
    """State of the run from its events; guarded by the lock of `LiveRun`."""

    going: bool = False
    words: str = ""
    version: int = 0
    tally: Tally = field(default_factory=Tally)
    counts: CountEvent | None = None
    follows: bool = False
    """Whether the engine reports each running rank, not only numbers of ranks."""
    notes: list[str] = field(default_factory=list)


class LiveRun:
    """Follows a run itself, or receives the events of a run that this process already follows."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._store = Storage(run.url)
        self._script = run.manifest.script is not None
        self._ranks = [RankView(rank) for rank in range(run.manifest.world_size)]
        self._unread: list[int] = []
        self._state = _State()
        # All ranks from the start, so that the fraction is one of the whole run.
        self._state.tally.states |= dict.fromkeys(range(len(self._ranks)), RankState.WAITING)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reading = threading.Lock()
        self._when_ended: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Check the state of the run, and follow it in a separate thread if it is going on."""
        if self._run.status().state == "running":
            ago = time.time() - self._since()
            with self._lock:
                self._state.going, self._state.words = True, stage_line("map")
                self._state.tally.begin(max(0.0, ago), time.monotonic())
            # A daemon: a run that another process works on does not end with this page.
            threading.Thread(target=self._follow, name="follow-run", daemon=True).start()
        else:
            self._take_records()
            self._finish(_ended_words(self._run))

    def _since(self) -> float:
        """Start of the present driver, in seconds since the epoch; otherwise of the run."""
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
        """Set a function to call once the run has ended, since its catalogue is then replaced."""
        self._when_ended = call

    def begun(self) -> None:
        """Note that the run is going on and this process calls `report` and `finish`."""
        with self._lock:
            self._state.going, self._state.words = True, stage_line("map")

    def finish(self) -> None:
        """Note that the run has ended."""
        self._finish(_ended_words(self._run))

    def report(self, event: Event) -> None:
        """Take in one event of the run; may be called from any thread."""
        with self._lock:
            # Late events after the server has stopped concern nobody.
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
        # A new attempt sets a new start; further events of the same attempt keep it.
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
            # Keep the last 50: thousands of failing ranks must not fill the page or the memory.
            self._state.notes = [*self._state.notes[-49:], words]

    def _finish(self, words: str) -> None:
        self._when_ended()
        try:
            # Read without the lock, since it comes from the store.
            result = self._run.result
        except PerseidError:
            result = None
        with self._lock:
            self._settle(result)
            self._state.going, self._state.words = False, words
            self._state.version += 1

    def _settle(self, result: RunResult | None) -> None:
        """Set the final state of each rank: done, failed, or still waiting for a resumption."""
        missing = result.summary["ranks"]["missing"] if result else ()
        lost = {entry["rank"]: str(entry["reason"]) for entry in missing}
        attempts = result.mapped.attempts if result else ()
        # A stopped attempt may have lost to a faster one, so its number says nothing.
        tried = {one.rank: one.attempt for one in attempts if one.ending is not Ending.STOPPED}
        for number, rank in enumerate(self._ranks):
            state, attempt = rank.state, max(rank.attempt, tried.get(number, 0))
            if state is not RankState.DONE:
                state = RankState.FAILED if number in lost else RankState.WAITING
            said = lost.get(number, rank.message)
            self._ranks[number] = replace(rank, state=state, attempt=attempt, message=said)

    def _take_records(self) -> None:
        """Mark the ranks of an ended run that left a record as done."""
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
        """Number that grows with each event."""
        return self._state.version

    @property
    def going(self) -> bool:
        """Whether the run is being worked on."""
        return self._state.going

    @property
    def closed(self) -> bool:
        """Whether the server is shutting down."""
        return self._closed.is_set()

    def view(self) -> LiveView:
        """The present state of the run, including records of ranks done since the last call."""
        self._read_records()
        with self._lock:
            state, ranks = self._state, tuple(self._ranks)
            tally, now = state.tally, time.monotonic()
            counts = state.counts
            # An engine that reports each rank is more precise than its numbers.
            told = counts if state.going and not state.follows else None
            done = sum(rank.state in (RankState.DONE, RankState.FAILED) for rank in ranks)
            # Either source may be behind the other.
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
        """Cost on Lambda of the work of all ranks that are done, in US dollars."""
        memory = self._run.manifest.settings.options.memory_mb or DEFAULT_MEMORY_MB
        seconds = [rank.record.stages.get("total", 0.0) for rank in ranks if rank.record]
        price = Prices().lambda_gb_second("x86").usd
        return sum(seconds) * memory / 1024 * price if seconds else None

    def _read_records(self) -> None:
        """Read the records of ranks that were done since the last call, each record once."""
        with self._reading:
            with self._lock:
                wanted, self._unread = (
                    self._unread[:RECORDS_AT_ONCE],
                    self._unread[RECORDS_AT_ONCE:],
                )
            # Without the lock: reading from a store must not hold up events.
            with ThreadPoolExecutor(READERS) as pool:
                found = list(pool.map(self._record, wanted))
            with self._lock:
                for number, record in zip(wanted, found, strict=True):
                    self._measured(number, record)

    def _measured(self, number: int, record: RankMeasures | None) -> None:
        """Take in the content of a rank's record; the caller holds the lock."""
        if record is None:
            return
        rank, bars = self._ranks[number], record.timeline
        self._ranks[number] = replace(
            rank, record=record, rows=max(rank.rows, record.rows),
            attempt=max(rank.attempt, record.attempt or 1),
            # The times of the rank itself are better than those at which events arrived.
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
        """Ignore further events, since the server is shutting down."""
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
    """One sentence that says how the run ended."""
    try:
        said = run.incomplete or "all ranks and partitions are complete"
    except PerseidError as error:
        said = str(error)
    said = said.partition(" is incomplete: ")[2] or said  # the page already says that
    return said[:1].upper() + said[1:]
