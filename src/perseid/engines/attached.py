"""Follow a run that another process drives, through the objects that it writes to the store."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Self

from perseid.engines.log_lines import state_in
from perseid.engines.owner import read_mark
from perseid.errors import NotFoundError, RunError, RunInterruptedError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import Event, RankEvent, RankState, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.run_state import published, stored_logs
from perseid.storage import ObjectInfo, Storage

LOOK_SECONDS = 0.5
"""Interval between two listings of the store, in seconds."""
SLOWER = 1.3
"""Growth factor of the interval of a handle whose `longest_look` is above its `first_look`."""
READERS = 16
"""Number of objects that are read concurrently."""


class AttachedRun:
    """A handle of a run whose driver is another process or has ended.

    It is also the base of handles of schedulers, which have `_has_ended` and what follows from it.
    """

    first_look = longest_look = LOOK_SECONDS
    """First and longest interval between two polls of `wait`, in seconds."""
    too_late = "the run has not ended within {:g} s; it goes on"
    """Message when the time limit of `wait`, in seconds, has passed."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._store = Storage(manifest.results_url)
        self._read: dict[int, ObjectInfo] = {}
        """For each rank, the listing entry of the record or log that was read last."""
        self._states: dict[int, RankEvent] = {}
        self._over = False
        """Whether the run had ended when the last poll began."""

    @property
    def seen(self) -> frozenset[int]:
        """Ranks whose record has been read."""
        states = self._states.values()
        return frozenset(event.rank for event in states if event.state is RankState.DONE)

    @property
    def known(self) -> tuple[RankEvent, ...]:
        """The latest event of each rank, as of the last `poll`."""
        return tuple(self._states.values())

    @property
    def ended(self) -> bool:
        """Whether the driver has ended; if it is on another machine, whether its mark is gone."""
        return self._has_ended()

    def _has_ended(self) -> bool:
        """Find out whether anything works on the run; called once at the start of each poll."""
        mark = read_mark(self._store)
        # A process on another machine cannot be checked; the mark's removal shows that it ended.
        return mark is None or (mark.here and not mark.is_alive)

    def poll(self) -> Sequence[Event]:
        """Events for what has changed since the last call, according to records and logs.

        Each call lists the store once. A record is read once; the log of a rank without a record
        is read again whenever it has grown.
        """
        # Before the listing, so that the last poll sees everything that was written.
        self._over = self._has_ended()
        listed = {info.key: info for info in self._store.list()}
        changed: dict[int, ObjectInfo] = {}
        for rank in range(self._manifest.world_size):
            # The record if there is one: the log of a rank that is done says no more.
            found = listed.get(self._key(rank)) or listed.get(layout.log(rank))
            if found is not None and self._read.get(rank) != found:
                changed[rank] = found
        # Before reading, so that a record which cannot be read is not read again at every poll.
        self._read |= changed
        # Requests to an object store take tens of milliseconds each, mostly waiting.
        with ThreadPoolExecutor(READERS) as pool:
            told = pool.map(self._look_at, changed, changed.values())
            events = {rank: event for rank, event in zip(changed, told, strict=True) if event}
        for rank in range(self._manifest.world_size):
            # A rank that left nothing has not begun; reported once, so that a display lists it.
            if rank not in self._states and rank not in events:
                events[rank] = RankEvent(rank, RankState.WAITING, 0)
        self._states |= events
        return tuple(events.values())

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Wait until the run has ended. The events of earlier polls are reported first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for known in self.known:
            report(known)
        pause = self.first_look
        while True:
            for event in self.poll():
                report(event)
            if self._over and not self._goes_on(report):
                return
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(self.too_late.format(timeout))
            time.sleep(pause)
            pause = min(self.longest_look, pause * SLOWER)

    def _goes_on(self, report: Report) -> bool:
        """Whether a run that has ended was begun again; called by `wait`."""
        return False

    def stop(self) -> bool:
        """Interrupt the driver as Ctrl-C does."""
        mark = read_mark(self._store)
        if mark is None or self.ended:
            return False
        if not mark.here:
            raise RunError(
                f"{self._store.where()} is worked on by process {mark.pid} on {mark.host}: "
                "stop it there"
            )
        with suppress(ProcessLookupError):
            # SIGINT, since the driver ends its workers and writes the logs when it gets one.
            os.kill(mark.pid, signal.SIGINT)
        return True

    def leave(self) -> str:
        """Do nothing: the driver publishes the run."""
        return ""

    def report(self) -> EngineReport:
        """The report on every attempt of the run, once it has been published."""
        if not self.ended:
            raise RunError(f"{self._store.where()} is still being worked on: wait for it first")
        # Attempts and their costs are only in the objects that the driver publishes at the end.
        done = published(self._store, self._manifest)
        if done is None:
            raise RunInterruptedError(
                f"the run at {self._store.where()} was stopped before its results were published; "
                f"`perseid resume {self._store.where()}` goes on with what is missing"
            )
        return done.mapped

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (rank, line) from the logs in the store; with `follow`, also lines added later."""
        said: dict[int, int] = {}  # number of lines already yielded, by rank
        while True:
            ended = self.ended
            for number, text in stored_logs(self._store, rank):
                lines = text.splitlines()
                # A log is written again as a whole, so lines that were already yielded are skipped.
                yield from ((number, line) for line in lines[said.get(number, 0) :])
                said[number] = len(lines)
            if ended or not follow:
                return
            time.sleep(LOOK_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release nothing: the handle only reads the store."""

    def _key(self, rank: int) -> str:
        """Key of our own record, since a script's record does not say whether the rank is done."""
        return layout.done_record(rank, script=self._manifest.script is not None)

    def _look_at(self, rank: int, found: ObjectInfo) -> RankEvent | None:
        """The event that a record or log describes; None if it is missing or of another run."""
        try:
            data = self._store.get(found.key)
            if found.key == layout.log(rank):
                return state_in(rank, data.decode("utf-8", "replace"))
            record = parse_json(data)
            if record["run_id"] != self._manifest.run_id:
                return None
            attempt, rows = int(record["attempt"]), int(record["rows"])
        # A record may be replaced while it is read, or be left by another run or a script.
        except (NotFoundError, ValueError, KeyError, TypeError):
            return None
        return RankEvent(rank, RankState.DONE, attempt, rows, record=data)
