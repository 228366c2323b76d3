"""The common part of engines whose ranks start when a scheduler has room for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perseid.engines.base import Capabilities
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import LocalOptions, options_of
from perseid.engines.worker_command import WORKER
from perseid.engines.worker_speed import refuse_small_memory
from perseid.errors import BadInputError
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.plaintext import html_table, option

LIMITS = ("threads", "memory_mb", "timeout", "retries")
"""Keyword arguments of these engines that are also keys of a request."""


class ClusterEngine:
    """The part of an engine that does not depend on its scheduler.

    Ranks merge through the store, since tasks start when there is room. To add an engine of this
    kind, write a subclass with the four attributes below and `configured`, `submit` and `attach`.

    Parameters
    ----------
    ranks_per_task
        Number of ranks that one task works on, one after the other; None lets the engine choose.
    limits
        Values that override the run's own request, by the request's keys; None if not given.
    command
        Command line of the worker program; empty for the standard one.
    """

    name: str
    on_aws = False
    scheduler: str
    """Name of the scheduler in messages, such as ``Slurm``."""
    detach: bool
    """Whether a run goes on when the process that submitted it ends."""
    no_gang: str
    """End of the message that refuses ranks that must run at once; it says what to use instead."""

    def __init__(
        self,
        ranks_per_task: int | None,
        limits: Mapping[str, float | None],
        command: Sequence[str],
    ) -> None:
        if ranks_per_task is not None and ranks_per_task < 1:
            raise BadInputError(f"ranks_per_task must be at least 1, not {ranks_per_task}")
        self._ranks_per_task = ranks_per_task
        # None is dropped, so that it does not override the request.
        self._limits = {name: value for name, value in limits.items() if value is not None}
        self._command = tuple(command)

    def _repr_html_(self) -> str:
        per_task = [("ranks_per_task", self._ranks_per_task)] if self._ranks_per_task else []
        return html_table(("engine", self.name), [*self._limits.items(), *per_task])

    @property
    def capabilities(self) -> Capabilities:
        """Without a gang: tasks start when there is room."""
        memory = self._limits.get("memory_mb")
        return Capabilities(
            gang=False,
            detach=self.detach,
            device="cpu",
            memory_per_rank=None if memory is None else int(memory),
            max_parallel=None,
        )

    def default_results(self, data: str) -> str:
        """As for the local engine: ``runs/<name of the data>-<time>`` in the current folder."""
        return LocalEngine().default_results(data)

    def prepare(self, request: RunRequest) -> RunRequest:
        """Ranks merge through the store; a request for another transport raises `BadInputError`."""
        # "auto" is accepted, since the store is one of its choices.
        if request.transport in ("direct", "relay"):
            raise BadInputError(
                f"transport {request.transport!r} needs all ranks at once, and tasks of "
                f"{self.scheduler} start when there is room: leave it out (they merge through the "
                "store)"
            )
        return request.model_copy(update={"transport": "store"})

    def check(self, manifest: Manifest) -> None:
        """Refuse scripts whose ranks must run at once, and memory that no rank can work with."""
        if manifest.talks:
            raise BadInputError(
                "the ranks of this script talk to each other and must run at once, which "
                f"{self.no_gang} {option('engine', 'local')}"
            )
        options = self._options_for(manifest)
        refuse_small_memory(manifest.item(0), options.threads, options.memory_mb)

    def locate(self, name: str) -> str:
        """A run on a cluster has no name other than its location."""
        return LocalEngine().locate(name)

    def _options_for(self, manifest: Manifest) -> LocalOptions:
        """The options of the worker processes of a task."""
        # Parsed, so that limits of the engine are checked like those of a request.
        options = options_of(RunRequest.parse({**manifest.request, **self._limits}))
        return replace(options, command=self._command or WORKER)
