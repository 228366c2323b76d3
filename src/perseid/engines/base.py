"""The interface of all engines: submit a run's ranks, or find them again, and follow them.

The pipeline begins and publishes a run; an engine turns its work items into records in the store.
A further engine is one module with these two classes, one line in `engine_names`, and one
fixture of the conformance suite (``tests/conformance``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import Event, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do, declared so that no code depends on its name."""

    gang: bool
    """Whether all ranks can run at the same time, so that they can exchange messages."""
    detach: bool
    """Whether a run goes on when the process that submitted it ends."""
    device: str
    """What the model computes on: ``cpu``."""
    memory_per_rank: int | None
    """MB that each rank has; None if the request says it."""
    max_parallel: int | None
    """Ranks at once, at most; None if only the engine's own limits hold."""
    more_memory: bool = False
    """Whether a rank that ran out of memory is tried again with more."""
    own_default: bool = True
    """Whether the model ``default`` is that of the installation which submits the run."""


class RunHandle(Protocol):
    """The ranks of a run that an engine works on; a context manager that releases its resources."""

    @property
    def ended(self) -> bool:
        """Whether nothing works on the run any more, as far as `poll` has seen."""

    def poll(self) -> Sequence[Event]:
        """The events since the last call. Returns soon, also when there are none."""

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Until the ranks have ended or `timeout` seconds have passed; each event is reported.

        Raises
        ------
        RunError
            The time is over; the run goes on where the engine can detach.
        """

    def stop(self) -> bool:
        """Ask the ranks to stop; finished work stays in the store. Return whether anything was
        running.

        It returns soon; `wait` returns when they have ended.
        """

    def leave(self) -> str:
        """The process that began the run leaves it: have it published without one, if possible.

        Returns
        -------
        A sentence that says how it gets published where nothing does it by itself; otherwise empty.
        """

    def report(self) -> EngineReport:
        """The engine's report on the ranks, once they have ended.

        Raises
        ------
        PerseidError
            They could not be run at all, or still run.
        """

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """(rank, line) of what the ranks logged; `follow`: as lines come, until the run ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def stated(settings: Mapping[str, object], names: Sequence[str]) -> Any:
    """The given settings among these names, as keyword arguments."""
    return {name: settings[name] for name in names if settings.get(name) is not None}


class Engine(Protocol):
    """A place where the ranks of a run can work."""

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from settings of ``driver.json`` or the command line; ignore unknown
        ones."""

    @property
    def name(self) -> str:
        """E.g. ``local``; stated in the results."""

    @property
    def on_aws(self) -> bool:
        """Whether AWS bills the ranks, and a run can be examined there before it begins."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do, declared."""

    def default_results(self, data: str) -> str:
        """A fresh prefix for the results of a run that names none."""

    def prepare(self, request: RunRequest) -> RunRequest:
        """The request, with this engine's defaults filled in.

        Raises
        ------
        BadInputError
            It asks for something that the engine cannot do.
        """

    def check(self, manifest: Manifest) -> None:
        """Raise `BadInputError` if this engine cannot do the run. Called before anything is
        written."""

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> RunHandle:
        """Begin to work on an initialized run, and return at once.

        `ranks` are those that are missing of a run that is resumed; None stands for all.
        A failing rank never stops the others.

        Raises
        ------
        RunError
            Another process works on the run.
        """

    def locate(self, name: str) -> str:
        """The URL of a run that is given by another name, such as its id.

        Raises
        ------
        NotFoundError
            This engine knows no such run.
        """

    def attach(self, manifest: Manifest) -> RunHandle:
        """Find a run again that was submitted, by this process or another; it may have ended.

        Raises
        ------
        NotFoundError
            This engine knows nothing of it.
        """
