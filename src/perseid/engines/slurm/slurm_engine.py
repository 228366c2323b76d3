"""Runs on a cluster: submit arrays with sbatch, look at the store and at squeue, collect."""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Self

from perseid.engines.base import stated
from perseid.engines.block import attempts_before
from perseid.engines.cluster_engine import LIMITS, ClusterEngine
from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.slurm_commands import Resources
from perseid.engines.slurm.slurm_run import PUBLISH_MB, SlurmRun, job_name, task_output
from perseid.engines.slurm.submission import Submission
from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

SETTINGS = ("partition", "account", "time", "ranks_per_task", "sbatch")
"""Keyword arguments of the engine that ``driver.json`` and the command line name."""
WANTED_TASKS = 128
"""Tasks that a run is packed into where nobody says how many ranks a task has: enough for a
cluster to spread, few enough for any limit of submitted jobs."""
BATCH = """#!/bin/bash
trap '' USR1  # until the program is ready for it
exec {python} -P -m perseid.engines.slurm.task {url} {submission}
"""


class SlurmEngine(ClusterEngine):
    """Runs ranks as tasks of Slurm's job arrays; the run goes on when this process ends.

    Results and data must be reachable from the nodes: a shared file system, or an object store.
    Ranks merge through the store, since tasks start when the cluster has room.

    Parameters
    ----------
    partition, account, time
        As for sbatch; otherwise the cluster's defaults.
    ranks_per_task
        Ranks that one task works on, one after the other; default: so many that there are at most
        128 tasks.
    sbatch
        Further options of sbatch, as one string; they count before ours.
    workers, threads, memory_mb, timeout, retries
        Processes at once in a task (default 1), threads of each, memory (MB) and seconds that a
        rank may take, and attempts after a failed one; default: as the run's request says.
    command
        The worker's program, for tests.

    Examples
    --------
    >>> perseid.run("survey/", engine=SlurmEngine(partition="short"))  # doctest: +SKIP
    """

    name = "slurm"
    scheduler = "Slurm"
    detach = True
    no_gang = "an array of Slurm does not promise: use `srun perseid comm run`, or --engine local"

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
            raise BadInputError(f"time {time!r} is not one: give it as sbatch takes it: 2:00:00")
        self._resources = partition or "", account or "", time or ""
        try:
            self._extra = tuple(shlex.split(sbatch or ""))
        except ValueError as error:
            raise BadInputError(f"--sbatch {sbatch!r} cannot be split: {error}") from None
        self._sbatch = sbatch or ""

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """With these of the keyword arguments."""
        return cls(**stated(settings, (*SETTINGS, "workers", *LIMITS)))

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> SlurmRun:
        """Submit an array whose tasks share the ranks."""
        store = Storage(manifest.results_url)
        _refuse_if_live(store)
        options = self._options_for(manifest)
        wanted = tuple(range(manifest.world_size) if ranks is None else ranks)
        workers = options.workers or 1
        submission = Submission(
            name=uuid.uuid4().hex[:12],
            ranks=wanted,
            ranks_per_task=pack(len(wanted), slurm_commands.largest_array(), self._ranks_per_task),
            workers=workers,
            threads=options.threads,
            memory_mb=options.memory_mb,
            timeout=options.timeout,
            retries=options.retry.retries,
            command=self._command,
            former={} if ranks is None else attempts_before(manifest, wanted),
            allow_model_change=manifest.allow_model_change,
        )
        jobs: list[str] = []
        if wanted:
            submission.put(store)
            memory = (options.memory_mb + OVERHEAD_MB) * workers
            cores = workers * options.threads
            resources = Resources(cores, memory, *self._named_resources(), self._extra)
            script = BATCH.format(
                python=shlex.quote(sys.executable),
                url=shlex.quote(manifest.results_url),
                submission=submission.name,
            )
            name, output = job_name(manifest), task_output(manifest)
            jobs.append(slurm_commands.submit(script, submission.tasks, name, output, resources))
        publishing = Resources(1, PUBLISH_MB, *self._named_resources(), self._extra)
        mark: dict[str, object] = {"engine": self.name, "submission": submission.name}
        mark |= {"jobs": jobs, "since": time.time(), "sbatch": self._sbatch, **self._named()}
        store.put(layout.DRIVER, json.dumps(mark).encode())
        return SlurmRun(manifest, submission, tuple(jobs), publishing=publishing)

    def attach(self, manifest: Manifest) -> SlurmRun:
        """The jobs that ``driver.json`` names."""
        store = Storage(manifest.results_url)
        try:
            mark = parse_json(store.get(layout.DRIVER))
            submission = Submission.get(store, str(mark["submission"]))
            return SlurmRun(manifest, submission, tuple(mark["jobs"]), mark.get("publisher"))
        except (NotFoundError, ValueError, KeyError, TypeError):
            nothing = Submission("none", (), 1, 1, 1, 1, 1.0, 0)
            return SlurmRun(manifest, nothing, ())

    def _named_resources(self) -> tuple[str, str, str]:
        """Time, partition and account, in the order of `Resources`."""
        partition, account, limit = self._resources
        return limit, partition, account

    def _named(self) -> dict[str, object]:
        """What a resumption finds in ``driver.json``."""
        named = dict(zip(("partition", "account", "time"), self._resources, strict=True))
        found: dict[str, object] = {name: value for name, value in named.items() if value}
        if self._ranks_per_task is not None:
            found["ranks_per_task"] = self._ranks_per_task
        return found


def pack(ranks: int, largest_array: int, asked: int | None = None) -> int:
    """Ranks of a task: as many as were asked for, or more where an array may have few tasks."""
    least = -(-ranks // max(1, largest_array - 1))
    return max(1, least, asked or -(-ranks // WANTED_TASKS))


OVERHEAD_MB = 100
"""What a task needs beside its ranks: its own process and a reaper."""


def _refuse_if_live(store: Storage) -> None:
    """Raise `RunError` if jobs of this run wait or run already."""
    try:
        mark = parse_json(store.get(layout.DRIVER))
        jobs = [str(job) for job in mark["jobs"]]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return
    live = [task for task in slurm_commands.states(jobs) or () if task.live] if jobs else []
    if live:
        raise RunError(
            f"jobs {', '.join(jobs)} of Slurm work on {store.where()}: wait for them "
            "(`perseid status --wait`), or stop them first (`perseid status --stop`)"
        )
