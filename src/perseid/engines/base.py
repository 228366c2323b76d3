"""The interface of all engines: submit the ranks of a run, or find them again, and follow them.

The pipeline begins and publishes a run; an engine turns its work items into records in the store.
To add an engine, write one module with these two classes, one line in `engine_names`, and one
fixture for the conformance suite (``tests/conformance``).
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
    """Kind of device that the model computes on: ``cpu``."""
    memory_per_rank: int | None
    """Memory of each rank, in MB; None if the request states it."""
    max_parallel: int | None
    """Maximum number of ranks at once; None if only the engine's own limits apply."""
    more_memory: bool = False
    """Whether a rank that ran out of memory is tried again with more memory."""
    own_default: bool = True
    """Whether the model ``default`` is the one installed where the run is submitted."""


# A protocol, so that an engine outside this package needs no base class of ours.
class RunHandle(Protocol):
    """The ranks of a run that an engine works on; a context manager that releases its resources."""

    @property
    def ended(self) -> bool:
        """Whether nothing works on the run any more, as far as `poll` has seen."""

    def poll(self) -> Sequence[Event]:
        """The events since the last call. Returns promptly, even if there are none."""

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Wait until the ranks have ended or `timeout` seconds have passed; report each event.

        Raises
        ------
        RunError
            The time is up; the run continues if the engine can detach.
        """

    def stop(self) -> bool:
        """Ask the ranks to stop; finished work stays in the store. Return whether anything was
        running.

        This returns promptly; `wait` returns when the ranks have ended.
        """

    def leave(self) -> str:
        """Prepare for the end of this process: have the run published without it, if possible.

        Returns
        -------
        A sentence that tells the user how to publish the run, if that does not happen by itself;
        otherwise an empty string.
        """

    def report(self) -> EngineReport:
        """The engine's report on the ranks, once they have ended.

        Raises
        ------
        PerseidError
            The ranks could not be run at all, or are still running.
        """

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (rank, line) of the logs; with `follow`, new lines as well until the run ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def stated(settings: Mapping[str, object], names: Sequence[str]) -> Any:
    """The settings with one of these names and a value other than None, as keyword arguments."""
    # None counts as not given, since options of the command line default to None.
    return {name: settings[name] for name in names if settings.get(name) is not None}


class Engine(Protocol):
    """A place where the ranks of a run can work."""

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from settings of ``driver.json`` or the command line; ignore unknown
        ones."""

    @property
    def name(self) -> str:
        """Name of the engine, such as ``local``; it is recorded in the results."""

    @property
    def on_aws(self) -> bool:
        """Whether AWS bills the ranks, so that a run can be examined there before it begins."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do."""

    def default_results(self, data: str) -> str:
        """A fresh prefix for the results of a run that names none."""

    def prepare(self, request: RunRequest) -> RunRequest:
        """The request, with this engine's defaults filled in.

        Raises
        ------
        BadInputError
            The request asks for something that the engine cannot do.
        """

    def check(self, manifest: Manifest) -> None:
        """Raise `BadInputError` if this engine cannot do the run. Called before anything is
        written."""

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> RunHandle:
        """Begin to work on an initialized run, and return at once.

        For a run that is resumed, `ranks` are the missing ones; None means all ranks. A failing
        rank never stops the others.

        Raises
        ------
        RunError
            Another process is working on the run.
        """

    def locate(self, name: str) -> str:
        """The URL of a run that was given by another name, such as its id.

        Raises
        ------
        NotFoundError
            This engine knows no such run.
        """

    def attach(self, manifest: Manifest) -> RunHandle:
        """Find a run that this or another process submitted; it may have ended.

        Raises
        ------
        NotFoundError
            This engine does not know the run.
        """
