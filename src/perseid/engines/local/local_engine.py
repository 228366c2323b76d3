"""The engine for this machine: ranks run in worker processes, and may outnumber the cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from perseid.engines.attached import AttachedRun
from perseid.engines.base import Capabilities, RunHandle, stated
from perseid.engines.local.local_options import LocalOptions, options_of
from perseid.engines.worker_speed import refuse_small_memory
from perseid.errors import NotFoundError
from perseid.linux import need_linux
from perseid.model.identity import CPU
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.plaintext import html_table
from perseid.storage import Location, Storage

LIMITS = ("workers", "threads", "memory_mb", "timeout", "retries")
"""Keyword arguments of the engine that are also keys of a request."""


class LocalEngine:
    """Runs ranks in worker processes on this machine.

    A worker is reused for later ranks (warm), as Lambda reuses its environments. Workers end with
    this process, however it ends. Settings that are not given here come from the run's request.

    Parameters
    ----------
    options
        All options of the workers, in place of the other arguments.
    workers
        Number of processes at once; by default, the number of cores.
    threads
        Number of threads that each worker computes with; default 1.
    memory_mb
        Memory limit of a rank, in MB.
    timeout
        Time limit of a rank, in seconds.
    retries
        Number of further attempts after a failed one.

    Examples
    --------
    >>> from perseid import LocalEngine
    >>> LocalEngine(workers=4).capabilities.max_parallel
    4
    """

    name = "local"
    on_aws = False

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
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from those settings that are its keyword arguments."""
        return cls(**stated(settings, LIMITS))

    def _repr_html_(self) -> str:
        return html_table(("engine", self.name), list(self._limits.items()))

    @property
    def capabilities(self) -> Capabilities:
        """Capabilities: all ranks can run at once, and the run ends with this process."""
        options = self._options or LocalOptions()
        memory = self._options.memory_mb if self._options else self._limits.get("memory_mb")
        return Capabilities(
            gang=True,
            detach=False,
            device="cpu",
            memory_per_rank=None if memory is None else int(memory),
            max_parallel=int(self._limits.get("workers", options.concurrency)),
            more_memory=memory is None,
        )

    def default_results(self, data: str) -> str:
        """``runs/<name of the data>-<time>`` in the current folder."""
        name = Location.parse(data).name or "run"
        return str(Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")

    def prepare(self, request: RunRequest) -> RunRequest:
        """Set transport ``auto`` unless the request states one: ranks communicate if they can."""
        # Only a transport that was written down; the default of a request is for AWS.
        if "transport" in request.model_fields_set:
            return request
        return request.model_copy(update={"transport": "auto"})

    def check(self, manifest: Manifest) -> None:
        """Refuse a memory limit too small for any rank, or for ranks that must run at once."""
        need_linux("a run on this machine")
        from perseid.engines.local.script_gang import refuse_without_memory

        # Checked here, since each worker would otherwise fail to load the model.
        if manifest.model is not None and manifest.model.device != CPU:
            from perseid.model.loading import check_device

            check_device(manifest.model.device, manifest.settings.model_url)
        options = self._options_for(manifest)
        refuse_without_memory(manifest, options)
        # Before anything is written, since every attempt at every rank would fail.
        refuse_small_memory(manifest.item(0), options.threads, options.memory_mb)

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> RunHandle:
        """Begin; the ranks make progress while the handle is polled or waited for."""
        from perseid.engines.local.local_run import LocalRun

        wanted = range(manifest.world_size) if ranks is None else ranks
        items = [manifest.item(rank) for rank in wanted]
        return LocalRun(items, self._options_for(manifest), manifest)

    def _options_for(self, manifest: Manifest) -> LocalOptions:
        if self._options is not None:
            return self._options
        given = {**manifest.request, **self._limits}
        # A limit that the user chose is never raised.
        return replace(options_of(RunRequest.parse(given)), more_memory="memory_mb" not in given)

    def locate(self, name: str) -> str:
        """Always raises: a run on this machine has no name other than its location."""
        raise NotFoundError(
            f"there is no run {name} here: no {Storage(name).where(layout.MANIFEST)}"
        )

    def attach(self, manifest: Manifest) -> AttachedRun:
        """A handle of a run that another process works on, or worked on."""
        return AttachedRun(manifest)
