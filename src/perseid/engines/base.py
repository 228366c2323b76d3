"""The one interface of all engines: submit a run's ranks, or find them again, and look on.

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
    """Whether all ranks can be there at once, so that they can talk to each other."""
    detach: bool
    """Whether a run goes on when the process that submitted it ends."""
    device: str
    """What the model computes on: ``cpu``."""
    memory_per_rank: int | None
    """MB that each rank has; None where the request says it."""
    max_parallel: int | None
    """Ranks at once, at most; None where only the engine's own limits hold."""
    own_default: bool = True
    """Whether the model ``default`` is that of the installation which submits the run."""


class RunHandle(Protocol):
    """The ranks that an engine was given; a context manager that gives up what it holds."""

    @property
    def ended(self) -> bool:
        """Whether nothing works on the run any more, as far as `poll` has seen."""

    def poll(self) -> Sequence[Event]:
        """What has happened since the last call; soon, and with nothing where nothing has."""

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Until the ranks have ended or `timeout` seconds have passed; each event is reported.

        Raises
        ------
        RunError
            The time is over; the run goes on where the engine can detach.
        """

    def stop(self) -> bool:
        """Let the ranks end; what is done stays in the store. Whether there was anything to stop.

        It returns soon; `wait` returns when they have ended.
        """

    def report(self) -> EngineReport:
        """What was done with the ranks, once they have ended.

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


class Engine(Protocol):
    """Where the ranks of a run work."""

    @classmethod
    def configured(cls, settings: Mapping[str, Any]) -> Self:
        """With those that it knows of these, from ``driver.json`` or the command line."""

    @property
    def name(self) -> str:
        """E.g. ``local``; stated in the results."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do, declared."""

    def default_results(self, data: str) -> str:
        """Where a run of this data goes that names no place for its results: a fresh prefix."""

    def prepare(self, request: RunRequest) -> RunRequest:
        """The request with what this engine sets where it says nothing.

        Raises
        ------
        BadInputError
            It asks for something that the engine cannot do.
        """

    def check(self, manifest: Manifest) -> None:
        """Raise `BadInputError` where the run cannot work here; nothing of it is written yet."""

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> RunHandle:
        """Begin to work on a run that was initialized; returns at once.

        `ranks` are those that are missing of a run that is resumed; None stands for all.
        A failing rank never stops the others.

        Raises
        ------
        RunError
            Another process works on the run.
        """

    def locate(self, name: str) -> str:
        """The URL of a run that is named otherwise than by it, such as by its id.

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
