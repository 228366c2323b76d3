"""Runs on a Slurm cluster: submit arrays with sbatch, and follow them in the store and squeue."""

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
"""Keyword arguments of the engine that ``driver.json`` and the command line may state."""
WANTED_TASKS = 128
"""Number of tasks of a run if nobody states the ranks per task: enough to spread over a cluster,
and few enough for any limit on submitted jobs."""
BATCH = """#!/bin/bash
trap '' USR1  # until the program is ready for it
exec {python} -P -m perseid.engines.slurm.task {url} {submission}
"""


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
            raise BadInputError(f"time {time!r} is not a limit of sbatch: give one such as 2:00:00")
        self._resources = partition or "", account or "", time or ""
        try:
            self._extra = tuple(shlex.split(sbatch or ""))
        except ValueError as error:
            raise BadInputError(f"--sbatch {sbatch!r} cannot be split: {error}") from None
        self._sbatch = sbatch or ""

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """Create the engine from those settings that are its keyword arguments."""
        return cls(**stated(settings, (*SETTINGS, "workers", *LIMITS)))

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> SlurmRun:
        """Submit a job array whose tasks share the ranks."""
        store = Storage(manifest.results_url)
        _refuse_if_live(store)
        options = self._options_for(manifest)
        wanted = tuple(range(manifest.world_size) if ranks is None else ranks)
        workers = options.workers or 1
        submission = Submission(
            # Each resumption is a submission of its own, beside the objects of earlier ones.
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
            # Before the jobs: a task may start as soon as sbatch returns.
            submission.put(store)
            # Slurm limits the task as a whole, not each of its processes.
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
        # After the jobs, because it names them; `submit` of a second process then refuses.
        store.put(layout.DRIVER, json.dumps(mark).encode())
        return SlurmRun(manifest, submission, tuple(jobs), publishing=publishing)

    def attach(self, manifest: Manifest) -> SlurmRun:
        """A handle of the jobs that ``driver.json`` names."""
        store = Storage(manifest.results_url)
        try:
            mark = parse_json(store.get(layout.DRIVER))
            submission = Submission.get(store, str(mark["submission"]))
            return SlurmRun(manifest, submission, tuple(mark["jobs"]), mark.get("publisher"))
        except (NotFoundError, ValueError, KeyError, TypeError):
            # No driver.json: the run was published, or its driver died before it submitted.
            nothing = Submission("none", (), 1, 1, 1, 1, 1.0, 0)
            return SlurmRun(manifest, nothing, ())

    def _named_resources(self) -> tuple[str, str, str]:
        """Time, partition and account, in the order of the fields of `Resources`."""
        partition, account, limit = self._resources
        return limit, partition, account

    def _named(self) -> dict[str, object]:
        """The settings that ``driver.json`` keeps for a resumption."""
        named = dict(zip(("partition", "account", "time"), self._resources, strict=True))
        found: dict[str, object] = {name: value for name, value in named.items() if value}
        if self._ranks_per_task is not None:
            found["ranks_per_task"] = self._ranks_per_task
        return found


def pack(ranks: int, largest_array: int, asked: int | None = None) -> int:
    """Number of ranks per task: as requested, or more if an array may have only few tasks."""
    # MaxArraySize is one above the largest index that Slurm allows.
    least = -(-ranks // max(1, largest_array - 1))
    return max(1, least, asked or -(-ranks // WANTED_TASKS))


OVERHEAD_MB = 100
"""Memory that a task needs besides its ranks, in MB: its own process and a reaper."""


def _refuse_if_live(store: Storage) -> None:
    """Raise `RunError` if jobs of this run already wait or run."""
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
