"""Runs on a Slurm cluster: submit arrays with sbatch, and follow them in the store and squeue."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from perseid.engines.base import Capabilities, stated
from perseid.engines.block import attempts_before
from perseid.engines.cluster_engine import LIMITS, ClusterEngine
from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.job_arrays import JobArray, Launcher, arrays_in, in_mark, pack
from perseid.engines.slurm.more_memory import remembered, with_more_memory
from perseid.engines.slurm.slurm_run import SlurmRun
from perseid.engines.slurm.submission import Submission
from perseid.errors import BadInputError, NotFoundError, PerseidError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.plaintext import option
from perseid.storage import Storage

SETTINGS = ("partition", "account", "time", "ranks_per_task", "sbatch")
"""Keyword arguments of the engine that ``driver.json`` and the command line may state."""


class SlurmEngine(ClusterEngine):
    """Runs ranks as tasks of Slurm job arrays; the run continues when this process ends.

    Data and results must be reachable from the nodes, on a shared file system or an object store.
    Ranks merge through the store, since tasks start when the cluster has room.

    Parameters
    ----------
    partition, account, time
        As for sbatch; by default, the cluster decides.
    ranks_per_task
        Number of ranks that one task works on, one after the other; by default, as few as give at
        most 128 tasks.
    sbatch
        Further options of sbatch as one string; they override ours.
    workers, threads, memory_mb, timeout, retries
        Number of processes at once in a task (default 1), threads of each, memory (MB) and time
        (seconds) that a rank may take, and attempts after a failed one. By default, the run's
        request decides.
    command
        Command line of the worker program, for tests.

    Examples
    --------
    >>> perseid.run("survey/", engine=SlurmEngine(partition="short"))  # doctest: +SKIP
    """

    name = "slurm"
    scheduler = "Slurm"
    detach = True
    no_gang = "an array of Slurm does not promise: use `srun perseid comm run`, or"

    def __init__(
        self,
        *,
        partition: str | None = None,
        account: str | None = None,
        time: str | None = None,
        ranks_per_task: int | None = None,
        sbatch: str | None = None,
        workers: int | None = None,
        threads: int | None = None,
        memory_mb: int | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        command: Sequence[str] = (),
    ) -> None:
        limits = dict(zip(LIMITS, (threads, memory_mb, timeout, retries), strict=True))
        super().__init__(ranks_per_task, {"workers": workers} | limits, command)
        if time is not None and slurm_commands.time_limit(time) is None:
            raise BadInputError(f"time {time!r} is not a limit of sbatch: give one such as 2:00:00")
        self._resources = partition or "", account or "", time or ""
        try:
            self._extra = tuple(shlex.split(sbatch or ""))
        except ValueError as error:
            raise BadInputError(f"{option('sbatch', sbatch)} cannot be split: {error}") from None
        self._sbatch = sbatch or ""

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from those settings that are its keyword arguments."""
        return cls(**stated(settings, (*SETTINGS, "workers", *LIMITS)))

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of all schedulers, and more memory unless the user chose how much."""
        found = super().capabilities
        return replace(found, more_memory=self._may_raise and found.memory_per_rank is None)

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> SlurmRun:
        """Submit a job array whose tasks share the ranks, and one for those that need more
        memory."""
        store = Storage(manifest.results_url)
        _refuse_if_live(store)
        wanted = tuple(range(manifest.world_size) if ranks is None else ranks)
        launcher = self._launcher(manifest)
        parts = self._parts(manifest, wanted, resumed=ranks is not None)
        arrays: list[JobArray] = []
        try:
            arrays += (launcher.launch(part) for part in parts)
        except PerseidError:
            if arrays:
                slurm_commands.cancel([array.job for array in arrays])
            raise
        mark: dict[str, object] = {"engine": self.name, **in_mark(arrays), "since": time.time()}
        mark |= {"sbatch": self._sbatch, **self._named()}
        # After the jobs, because it names them; `submit` of a second process then refuses.
        store.put(layout.DRIVER, json.dumps(mark).encode())
        return SlurmRun(manifest, arrays, launcher, submitted=True)

    def attach(self, manifest: Manifest) -> SlurmRun:
        """A handle of the jobs that ``driver.json`` names."""
        store = Storage(manifest.results_url)
        launcher = self._launcher(manifest)
        try:
            mark = parse_json(store.get(layout.DRIVER))
            return SlurmRun(manifest, arrays_in(store, mark), launcher, mark.get("publisher"))
        except (NotFoundError, ValueError, KeyError, TypeError):
            # No driver.json: the run was published, or its driver died before it submitted.
            return SlurmRun(manifest, (), launcher)

    def _parts(
        self, manifest: Manifest, wanted: tuple[int, ...], *, resumed: bool
    ) -> list[Submission]:
        """The submissions of these ranks; those that ran out of memory are a part of their own."""
        if not wanted:
            return []
        whole, largest = self._whole(manifest, wanted), slurm_commands.largest_array()
        rest, larger = wanted, None
        if resumed:
            whole = replace(whole, former=attempts_before(manifest, wanted))
            found = remembered(Storage(manifest.results_url))
            # A rank that had less than all have now gets more anyway.
            enough = {rank for rank in wanted if found.get(rank, 0) >= whole.memory_mb}
            before = {rank: found[rank] for rank in enough}
            most = self._launcher(manifest).largest_memory() if before else 0
            larger = with_more_memory(whole, before, most, pack(len(before), largest, 1))
            rest = tuple(rank for rank in wanted if larger is None or rank not in larger.ranks)
        per_task = pack(len(rest), largest, self._ranks_per_task)
        usual = replace(whole, ranks=rest, ranks_per_task=per_task)
        return [part for part in (usual, larger) if part is not None and part.ranks]

    def _whole(self, manifest: Manifest, wanted: tuple[int, ...]) -> Submission:
        """The submission of all these ranks with the memory that the request states."""
        options = self._options_for(manifest)
        chosen = "memory_mb" in {**manifest.request, **self._limits} or not self._may_raise
        return Submission(
            # Each resumption is a submission of its own, beside the objects of earlier ones.
            name=Submission.new_name(),
            ranks=wanted,
            ranks_per_task=1,
            workers=options.workers or 1,
            threads=options.threads,
            memory_mb=options.memory_mb,
            timeout=options.timeout,
            retries=options.retry.retries,
            command=self._command,
            allow_model_change=manifest.allow_model_change,
            raises=None if chosen else options.retry.retries,
        )

    def _launcher(self, manifest: Manifest) -> Launcher:
        partition, account, limit = self._resources
        return Launcher(manifest, limit, partition, account, self._extra)

    @property
    def _may_raise(self) -> bool:
        """Whether the user leaves the memory of a task to us."""
        return not any(option.startswith("--mem") for option in self._extra)

    def _named(self) -> dict[str, object]:
        """The settings that ``driver.json`` keeps for a resumption."""
        named = dict(zip(("partition", "account", "time"), self._resources, strict=True))
        found: dict[str, object] = {name: value for name, value in named.items() if value}
        if self._ranks_per_task is not None:
            found["ranks_per_task"] = self._ranks_per_task
        return found


def _refuse_if_live(store: Storage) -> None:
    """Raise `RunError` if jobs of this run already wait or run."""
    try:
        mark = parse_json(store.get(layout.DRIVER))
        jobs = [array.job for array in arrays_in(store, mark)]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return
    live = [task for task in slurm_commands.states(jobs) or () if task.live] if jobs else []
    if live:
        raise RunError(
            f"jobs {', '.join(jobs)} of Slurm work on {store.where()}: wait for them "
            "(`perseid status --wait`), or stop them first (`perseid status --stop`)"
        )
