"""The engine of one machine: ranks as processes, more ranks than cores allowed."""

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
        """With these of the keyword arguments."""
        return cls(**stated(settings, LIMITS))

    @property
    def capabilities(self) -> Capabilities:
        """Gang scheduling, since all ranks merge together; the run ends with this process."""
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
        """``runs/<the data's name>-<now>`` in the current folder."""
        name = Location.parse(data).name or "run"
        return str(Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")

    def prepare(self, request: RunRequest) -> RunRequest:
        """Ranks talk to each other where they can, unless the request says otherwise."""
        if "transport" in request.model_fields_set:
            return request
        return request.model_copy(update={"transport": "auto"})

    def check(self, manifest: Manifest) -> None:
        """Refuse memory that no rank can work with, and ranks that must run at once and cannot."""
        need_linux("a run on this machine")
        from perseid.engines.local.script_gang import refuse_without_memory

        if manifest.model is not None and manifest.model.device != CPU:
            from perseid.model.loading import check_device

            check_device(manifest.model.device, manifest.settings.model_url)
        options = self._options_for(manifest)
        refuse_without_memory(manifest, options)
        refuse_small_memory(manifest.item(0), options.threads, options.memory_mb)

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> RunHandle:
        """Begin; the ranks get on while the handle is polled or waited for."""
        from perseid.engines.local.local_run import LocalRun

        wanted = range(manifest.world_size) if ranks is None else ranks
        items = [manifest.item(rank) for rank in wanted]
        return LocalRun(items, self._options_for(manifest), manifest)

    def _options_for(self, manifest: Manifest) -> LocalOptions:
        if self._options is not None:
            return self._options
        given = {**manifest.request, **self._limits}
        # A limit that somebody chose is kept.
        return replace(options_of(RunRequest.parse(given)), more_memory="memory_mb" not in given)

    def locate(self, name: str) -> str:
        """Runs of this machine have no other name than their place."""
        raise NotFoundError(
            f"there is no run {name} here: no {Storage(name).where(layout.MANIFEST)}"
        )

    def attach(self, manifest: Manifest) -> AttachedRun:
        """A run that another process of this machine works on, or worked on."""
        return AttachedRun(manifest)
