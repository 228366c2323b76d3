"""The handle of a run whose ranks work in processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Self

from perseid.engines.attached import AttachedRun
from perseid.engines.local.local_map import LocalMap
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.local.process import Reaper
from perseid.engines.local.script_gang import around_scripts
from perseid.engines.owner import Owner
from perseid.engines.stopping import StopRequests
from perseid.errors import RunError
from perseid.linux import need_linux
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import Event, Report
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage


class LocalRun:
    """A run in local worker processes. It only makes progress while it is polled or waited for.

    Parameters
    ----------
    items
        Work items of one run; empty if no rank is missing.
    options
        Limits, retries and the program of the workers.
    manifest
        The manifest of the run.
    """

    def __init__(
        self, items: Sequence[WorkItem], options: LocalOptions, manifest: Manifest
    ) -> None:
        need_linux("a run on this machine")
        self._stop = StopRequests()
        self._kept: list[Event] = []
        self._tell: Report = self._kept.append
        self._report: EngineReport | None = None
        self._attached = AttachedRun(manifest)
        with ExitStack() as resources:
            resources.enter_context(Owner(Storage(manifest.results_url)))
            reaper = resources.enter_context(Reaper())
            self._map: LocalMap | None = None
            if items:
                # Looked up at each event, since `wait` replaces `_tell` for its duration.
                tell: Report = lambda event: self._tell(event)  # noqa: E731
                options = resources.enter_context(around_scripts(items, options, tell))
                self._map = LocalMap(items, options, reaper, tell)
            else:
                note = "no rank was missing, so there was no collective merge"
                self._report = EngineReport(concurrency=options.concurrency, transport_note=note)
            self._resources = resources.pop_all()

    @property
    def ended(self) -> bool:
        """Whether all ranks are done or have failed, or the run was stopped."""
        return self._report is not None

    def poll(self) -> Sequence[Event]:
        """Advance the run briefly; once no rank is left, run the collective merge to its end."""
        if self._report is None and self._map is not None:
            if self._stop.count or self._map.finished:
                self._report = self._map.conclude(self._stop)
            else:
                self._map.turn()
        events = tuple(self._kept)
        self._kept.clear()
        return events

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Wait until the ranks have ended; meanwhile, SIGINT and SIGTERM stop them."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for event in self._kept:
            report(event)
        self._kept.clear()
        self._tell = report  # events are reported immediately, even during the collective merge
        try:
            # Signals are only counted here. The loop checks the count between two steps, so that
            # no step is interrupted halfway.
            with self._stop:
                while not self.ended:
                    if deadline is not None and time.monotonic() > deadline:
                        raise RunError(f"the run has not ended within {timeout:g} s")
                    self.poll()
        finally:
            self._tell = self._kept.append

    def stop(self) -> bool:
        """End the workers at the next poll; a second call ends them without a grace period."""
        self._stop.count += 1
        return not self.ended

    def leave(self) -> str:
        """Do nothing: a run of this engine ends with its process."""
        return ""

    def report(self) -> EngineReport:
        """The report on every attempt, with a message for each failed rank."""
        if self._report is None:
            raise RunError("the run has not ended: wait for it first")
        return self._report

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (rank, line) of what the ranks have logged."""
        return self._attached.logs(rank, follow=follow)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._resources:
            if self._report is None and self._map is not None:
                self._map.close(self._stop)
