"""The engine that submits runs to a user's Dask cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from perseid.engines.attached import AttachedRun
from perseid.engines.base import stated
from perseid.engines.block import attempts_before
from perseid.engines.cluster_engine import LIMITS, ClusterEngine
from perseid.engines.dask.dask_cluster import connected, refuse_other_versions
from perseid.engines.dask.dask_run import DaskRun
from perseid.pipeline.manifest import Manifest


class DaskEngine(ClusterEngine):
    """Runs ranks as tasks of the user's Dask cluster; perseid never starts a cluster itself.

    Each task works on one or more ranks in a separate process beside the Dask worker, so that a
    crash or a limit ends a rank but not the worker. The next task reuses that process with the
    model that it has loaded. Ranks merge through the store, since tasks start when there is room.
    The run ends with this process.

    Parameters
    ----------
    client
        A `distributed.Client`; by default, one is created for `scheduler`.
    scheduler
        Address of a scheduler, such as ``tcp://10.0.0.1:8786``.
    ranks_per_task
        Number of ranks that one task works on, one after the other (default 1).
    threads, memory_mb, timeout, retries
        Number of threads of a rank's process, memory (MB) and time (seconds) that a rank may take,
        and attempts after a failed one. By default, the run's request decides.
    resources
        Dask worker resources that a task needs, such as ``{"GPU": 1}``.
    environment
        Additional environment variables of the ranks' processes.
    command
        Command line of the worker program, for tests.

    Examples
    --------
    >>> from distributed import Client  # doctest: +SKIP
    >>> perseid.run("survey/", engine=DaskEngine(Client("tcp://10.0.0.1:8786")))  # doctest: +SKIP
    """

    name = "dask"
    scheduler = "Dask"
    detach = False
    no_gang = "Dask does not promise: use"

    def __init__(
        self,
        client: Any = None,
        *,
        scheduler: str | None = None,
        ranks_per_task: int = 1,
        threads: int | None = None,
        memory_mb: int | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        limits = dict(zip(LIMITS, (threads, memory_mb, timeout, retries), strict=True))
        super().__init__(ranks_per_task, limits, command)
        # Connected only when needed, so that an engine can be created without a cluster.
        self._given, self._address = client, scheduler
        self._environment = environment if environment is not None else {}
        self._resources = dict(resources or {})

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from those settings that are its keyword arguments."""
        return cls(**stated(settings, ("scheduler", "ranks_per_task", *LIMITS)))

    @property
    def client(self) -> Any:
        """The `distributed.Client`, which is created when it is first needed.

        Raises
        ------
        NotInstalledError
            Dask's `distributed` is missing.
        RunError
            No scheduler answers at the address.
        """
        if self._given is None:
            self._given = connected(self._address)
        return self._given

    def check(self, manifest: Manifest) -> None:
        """Refuse runs that no task can do, and workers with another version of perseid."""
        super().check(manifest)
        refuse_other_versions(self.client)

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> DaskRun:
        """Submit tasks to the cluster; each works on a block of the ranks."""
        wanted = list(range(manifest.world_size) if ranks is None else ranks)
        former = {} if ranks is None else attempts_before(manifest, wanted)
        options = replace(
            # Each task has one worker process; Dask runs as many tasks at once as it has threads.
            self._options_for(manifest),
            workers=1,
            environment=dict(self._environment),
        )
        # A block is one task; Dask decides how many of them a worker runs at once.
        step = self._ranks_per_task or 1
        blocks = [tuple(wanted[at : at + step]) for at in range(0, len(wanted), step)]
        return DaskRun(self.client, manifest, blocks, former, options, self._resources)

    def attach(self, manifest: Manifest) -> AttachedRun:
        """A handle of a run that another process works on, or worked on."""
        return AttachedRun(manifest)
