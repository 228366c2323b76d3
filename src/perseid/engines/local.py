"""The engine of one machine: ranks as processes, more ranks than cores allowed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perseid.engines.attached import AttachedRun
from perseid.engines.base import Capabilities
from perseid.engines.mapping import LocalMap
from perseid.engines.options import LocalOptions
from perseid.engines.owner import Owner
from perseid.engines.process import Guard
from perseid.engines.retry import RetryPolicy
from perseid.engines.stopping import StopRequests
from perseid.engines.talking import around_scripts, refuse_without_memory
from perseid.errors import NotFoundError, RunError
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import Event, Report
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.storage import Location, Storage

LIMITS = ("workers", "threads", "memory_mb", "timeout", "retries")
"""Keyword arguments of the engine that are keys of a request, too."""


class LocalEngine:
    """Runs ranks in worker processes of this machine.

    A worker is used again for later ranks (warm), as Lambda uses its environments. Workers end
    with this process, however that ends. Whatever is not given here is as a run's own request says.

    Parameters
    ----------
    options
        Everything about its workers, in place of the other arguments.
    workers
        Processes at once; default: as many as there are cores.
    threads
        Threads a worker computes with; default 1.
    memory_mb
        Memory that a rank may take, MB.
    timeout
        Seconds that a rank may take.
    retries
        Attempts after a failed one.

    Examples
    --------
    >>> from perseid import LocalEngine
    >>> LocalEngine(workers=4).capabilities.max_parallel
    4
    """

    name = "local"

    def __init__(
        self,
        options: LocalOptions | None = None,
        *,
        workers: int | None = None,
        threads: int | None = None,
        memory_mb: int | None = None,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> None:
        self._options = options
        given = dict(zip(LIMITS, (workers, threads, memory_mb, timeout, retries), strict=True))
        self._limits = {name: value for name, value in given.items() if value is not None}

    @classmethod
    def configured(cls, settings: Mapping[str, Any]) -> Self:
        """With these of the keyword arguments."""
        return cls(**{name: settings[name] for name in LIMITS if settings.get(name) is not None})

    @property
    def capabilities(self) -> Capabilities:
        """A gang, as its ranks meet when the last is done; the run ends with this process."""
        options = self._options or LocalOptions()
        memory = self._options.memory_mb if self._options else self._limits.get("memory_mb")
        return Capabilities(
            gang=True,
            detach=False,
            device="cpu",
            memory_per_rank=None if memory is None else int(memory),
            max_parallel=int(self._limits.get("workers", options.concurrency)),
        )

    def default_results(self, data: str) -> str:
        """``runs/<the data's name>-<now>`` in the current folder."""
        name = Location.parse(data).name or "run"
        return str(Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")

    def prepare(self, request: RunRequest) -> RunRequest:
        """Ranks talk to each other where they can, unless the request says otherwise."""
        if "transport" in request.model_fields_set:
            return request
        return request.model_copy(update={"transport": "auto"})

    def check(self, manifest: Manifest) -> None:
        """Refuse ranks that must run at once where the machine has no memory for that."""
        refuse_without_memory(manifest, self._options_for(manifest))

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> LocalRun:
        """Begin; the ranks get on while the handle is polled or waited for."""
        wanted = range(manifest.world_size) if ranks is None else ranks
        items = [manifest.item(rank) for rank in wanted]
        return LocalRun(items, self._options_for(manifest), manifest)

    def _options_for(self, manifest: Manifest) -> LocalOptions:
        if self._options is not None:
            return self._options
        return options_of(RunRequest.parse({**manifest.request, **self._limits}))

    def locate(self, name: str) -> str:
        """Runs of this machine have no other name than their place."""
        raise NotFoundError(
            f"there is no run {name} here: no {Storage(name).where(layout.MANIFEST)}"
        )

    def attach(self, manifest: Manifest) -> AttachedRun:
        """A run that another process of this machine works on, or worked on."""
        return AttachedRun(manifest)


class LocalRun:
    """The ranks of a run in worker processes; it gets on while it is polled or waited for.

    Parameters
    ----------
    items
        Of one run.
    options
        Limits, retries, the worker's program.
    manifest
        Of the run.
    """

    def __init__(
        self, items: Sequence[WorkItem], options: LocalOptions, manifest: Manifest
    ) -> None:
        self._stop = StopRequests()
        self._kept: list[Event] = []
        self._tell: Report = self._kept.append
        self._report: EngineReport | None = None
        self._attached = AttachedRun(manifest)
        with ExitStack() as resources:
            resources.enter_context(Owner(Storage(manifest.results_url)))
            guard = resources.enter_context(Guard())
            self._map: LocalMap | None = None
            if items:
                tell: Report = lambda event: self._tell(event)  # noqa: E731
                options = resources.enter_context(around_scripts(items, options, tell))
                self._map = LocalMap(items, options, guard, tell)
            else:
                note = "no rank was left to work, so none met"
                self._report = EngineReport(concurrency=options.concurrency, transport_note=note)
            self._resources = resources.pop_all()

    @property
    def ended(self) -> bool:
        """Whether all ranks are done or have failed, or the run was stopped."""
        return self._report is not None

    def poll(self) -> Sequence[Event]:
        """Let the ranks get on for a moment; at their end, until they have met."""
        if self._report is None and self._map is not None:
            if self._stop.count or self._map.finished:
                self._report = self._map.conclude(self._stop)
            else:
                self._map.turn()
        events = tuple(self._kept)
        self._kept.clear()
        return events

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Until the ranks have ended; SIGINT and SIGTERM stop them meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for event in self._kept:
            report(event)
        self._kept.clear()
        self._tell = report  # at once, also while `poll` waits for the ranks to meet
        try:
            with self._stop:
                while not self.ended:
                    if deadline is not None and time.monotonic() > deadline:
                        raise RunError(f"the run has not ended within {timeout:g} s")
                    self.poll()
        finally:
            self._tell = self._kept.append

    def stop(self) -> bool:
        """End the workers at the next poll; called twice, without giving them time."""
        self._stop.count += 1
        return not self.ended

    def report(self) -> EngineReport:
        """Every attempt, and the sentence of each rank that failed."""
        if self._report is None:
            raise RunError("the run has not ended: wait for it first")
        return self._report

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """What the ranks logged so far."""
        return self._attached.logs(rank, follow=follow)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._resources:
            if self._report is None and self._map is not None:
                self._map.close(self._stop)


def options_of(request: RunRequest) -> LocalOptions:
    """The local engine's options as a request says them."""
    return LocalOptions(
        workers=request.workers,
        threads=request.threads or 1,
        memory_mb=request.memory_mb,
        timeout=request.timeout,
        retry=RetryPolicy(request.retries),
    )
