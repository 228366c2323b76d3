"""Runs on a cluster: submit arrays with sbatch, look at the store and at squeue, collect."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from perseid.engines.attached import AttachedRun
from perseid.engines.base import Capabilities, stated
from perseid.engines.block import attempts_before, merged_through_store
from perseid.engines.local import LocalEngine, options_of
from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.slurm_commands import ENDINGS, RUNNING, Resources, TaskState
from perseid.engines.slurm.submission import Submission, get_reports
from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.events import CountEvent, Event, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage

SETTINGS = ("partition", "account", "time", "ranks_per_task", "sbatch")
"""Keyword arguments of the engine that ``driver.json`` and the command line name."""
LIMITS = ("workers", "threads", "memory_mb", "timeout", "retries")
WANTED_TASKS = 128
"""Tasks that a run is packed into where nobody says how many ranks a task has: enough for a
cluster to spread, few enough for any limit of submitted jobs."""
FIRST_LOOK, LONGEST_LOOK, SLOWER = 0.5, 10.0, 1.3
"""Seconds between two looks at squeue: the first, the longest, and the factor in between."""
BATCH = """#!/bin/bash
trap '' USR1  # until the program is ready for it
exec {python} -P -m perseid.engines.slurm.task {url} {submission}
"""


class SlurmEngine:
    """Runs ranks as tasks of Slurm's job arrays; the run goes on when this process ends.

    Results and data must be reachable from the nodes: a shared file system, or an object store.
    Ranks merge through the store, since tasks start when the cluster has room.

    Parameters
    ----------
    partition, account, time
        As for sbatch; else the cluster's defaults.
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
        if ranks_per_task is not None and ranks_per_task < 1:
            raise BadInputError(f"ranks_per_task must be at least 1, not {ranks_per_task}")
        if time is not None and slurm_commands.time_limit(time) is None:
            raise BadInputError(f"time {time!r} is not one: give it as sbatch takes it: 2:00:00")
        self._resources = partition or "", account or "", time or ""
        try:
            self._extra = tuple(shlex.split(sbatch or ""))
        except ValueError as error:
            raise BadInputError(f"--sbatch {sbatch!r} cannot be split: {error}") from None
        self._sbatch = sbatch or ""
        self._ranks_per_task = ranks_per_task
        given = dict(zip(LIMITS, (workers, threads, memory_mb, timeout, retries), strict=True))
        self._limits = {name: value for name, value in given.items() if value is not None}
        self._command = tuple(command)

    @classmethod
    def configured(cls, settings: Mapping[str, object]) -> Self:
        """With these of the keyword arguments."""
        return cls(**stated(settings, (*SETTINGS, *LIMITS)))

    @property
    def capabilities(self) -> Capabilities:
        """No gang, since tasks start when there is room; a run outlives this process."""
        memory = self._limits.get("memory_mb")
        return Capabilities(
            gang=False,
            detach=True,
            device="cpu",
            memory_per_rank=None if memory is None else int(memory),
            max_parallel=None,
        )

    def default_results(self, data: str) -> str:
        """As on one machine: ``runs/<the data's name>-<now>`` in the current folder."""
        return LocalEngine().default_results(data)

    def prepare(self, request: RunRequest) -> RunRequest:
        """Ranks merge through the store; a request for another transport raises `BadInputError`."""
        return merged_through_store(request, "Slurm")

    def check(self, manifest: Manifest) -> None:
        """Refuse scripts whose ranks must run at once."""
        if manifest.talks:
            raise BadInputError(
                "the ranks of this script talk to each other and must run at once, which an array "
                "of Slurm does not promise: use `srun perseid comm run`, or --engine local"
            )

    def submit(self, manifest: Manifest, ranks: Sequence[int] | None = None) -> SlurmRun:
        """Submit an array whose tasks share the ranks."""
        store = Storage(manifest.results_url)
        _refuse_if_live(store)
        options = options_of(RunRequest.parse({**manifest.request, **self._limits}))
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
            partition, account, limit = self._resources
            memory = (options.memory_mb + OVERHEAD_MB) * workers
            resources = Resources(
                workers * options.threads, memory, limit, partition, account, self._extra
            )
            script = BATCH.format(
                python=shlex.quote(sys.executable),
                url=shlex.quote(manifest.results_url),
                submission=submission.name,
            )
            name = f"perseid-{manifest.run_id.rpartition('-')[2]}"
            jobs.append(
                slurm_commands.submit(script, submission.tasks, name, _output(manifest), resources)
            )
        mark: dict[str, object] = {"engine": self.name, "submission": submission.name}
        mark |= {"jobs": jobs, "since": time.time(), "sbatch": self._sbatch, **self._named()}
        store.put(layout.DRIVER, json.dumps(mark).encode())
        return SlurmRun(manifest, submission, tuple(jobs))

    def locate(self, name: str) -> str:
        """Runs on a cluster have no other name than their place."""
        return LocalEngine().locate(name)

    def attach(self, manifest: Manifest) -> SlurmRun:
        """The jobs that ``driver.json`` names."""
        store = Storage(manifest.results_url)
        try:
            mark = json.loads(store.get(layout.DRIVER))
            submission = Submission.get(store, str(mark["submission"]))
            return SlurmRun(manifest, submission, tuple(mark["jobs"]))
        except (NotFoundError, ValueError, KeyError, TypeError):
            nothing = Submission("none", (), 1, 1, 1, 1, 1.0, 0)
            return SlurmRun(manifest, nothing, ())

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


class SlurmRun(AttachedRun):
    """Arrays of a run, seen through the store and squeue."""

    def __init__(self, manifest: Manifest, submission: Submission, jobs: tuple[str, ...]) -> None:
        super().__init__(manifest)
        self.submission = submission
        self.jobs = jobs
        self._began = time.time()
        self._tasks: dict[int, TaskState] = {}
        """The last that was seen of each task."""
        self._over = not jobs
        self._silent_since: float | None = None

    @property
    def ended(self) -> bool:
        """Whether no task waits or runs, as far as was looked."""
        return self._over

    def poll(self) -> Sequence[Event]:
        """New records in the store, and how many tasks wait: one request of each."""
        self._look()
        done = super().poll()
        live = [task for task in self._tasks.values() if task.live]
        running = sum(self._ranks(task) for task in live if task.state in RUNNING)
        waiting = sum(self._ranks(task) for task in live if task.state not in RUNNING)
        total = len(self.submission.ranks)
        finished = len(self._seen & set(self.submission.ranks))
        count = CountEvent(
            "map", time.time() - self._began, total, min(waiting, total - finished),
            min(running, total - finished), finished, ended=self.ended,
        )  # fmt: skip
        return (*done, count)

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Look ever less often, until no task waits or runs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK
        while True:
            for event in self.poll():
                report(event)
            if self.ended:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"the run has not ended within {timeout:g} s; it goes on")
            time.sleep(pause)
            pause = min(LONGEST_LOOK, pause * SLOWER)

    def stop(self) -> bool:
        """Cancel the arrays; what is done stays in the store."""
        self._look()
        if self.ended:
            return False
        slurm_commands.cancel(self.jobs)
        return True

    def report(self) -> EngineReport:
        """What all tasks did, and why ranks have no record."""
        if not self.ended:
            raise RunError(f"{self._store.where()} is still being worked on: wait for it first")
        tasks = range(self.submission.tasks)
        reports = get_reports(self._store, self.submission.name, tasks)
        records, missing = read_records(self._store, self._manifest)
        failures = {
            rank: self._why(rank, reports)
            for rank in self.submission.ranks
            if rank in missing and rank not in records
        }
        attempts = sorted(
            (one for report in reports.values() for one in report.attempts),
            key=lambda one: one.started + one.duration_ms / 1000,
        )
        canceled = any(task.state == "CANCELLED" for task in self._tasks.values())
        stopped = canceled or any(report.stopped for report in reports.values())
        self._store.delete([layout.DRIVER])
        began = min((one.started for one in attempts), default=0.0)
        ended = max((one.started + one.duration_ms / 1000 for one in attempts), default=0.0)
        return EngineReport(
            tuple(attempts), failures, ended - began, _at_once(attempts),
            tuple(sorted(set(self.submission.ranks) - set(failures))),
            stopped=stopped and bool(failures),
            notes=(f"jobs       {', '.join(self.jobs)}",),
        )  # fmt: skip

    def _look(self) -> None:
        if self._over:
            return
        found = slurm_commands.states(self.jobs)
        if found is None:
            return  # the controller does not answer: nothing is known, so nothing has ended
        self._tasks |= {task.index: task for task in found}
        self._over = not any(task.live for task in found)

    def _ranks(self, task: TaskState) -> int:
        return len(self.submission.of_task(task.index))

    def _why(self, rank: int, reports: Mapping[int, EngineReport]) -> str:
        """One sentence for a rank without a record."""
        index = self.submission.task_of(rank)
        report, task = reports.get(index), self._tasks.get(index)
        if report is not None and rank in report.failures:
            return report.failures[rank]
        name = f"its Slurm task {','.join(self.jobs)}_{index}"
        if task is None:
            return (
                f"{name} is gone and Slurm no longer says why; its output is in {self._out(index)}"
            )
        said = ENDINGS.get(task.state, f"it ended as {task.state}")
        where = f" on node {task.node}" if task.node else ""
        return f"{name}{where} left no record of it: {said} (output: {self._out(index)})"

    def _out(self, index: int) -> str:
        name = _output(self._manifest).replace("%a", str(index))
        return name.replace("%A", ",".join(self.jobs))


def _refuse_if_live(store: Storage) -> None:
    """Raise `RunError` where jobs of this run wait or run already."""
    try:
        mark = json.loads(store.get(layout.DRIVER))
        jobs = [str(job) for job in mark["jobs"]]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return
    live = [task for task in slurm_commands.states(jobs) or () if task.live] if jobs else []
    if live:
        raise RunError(
            f"jobs {', '.join(jobs)} of Slurm work on {store.where()}: wait for them "
            "(`perseid status --wait`), or stop them first (`perseid status --stop`)"
        )


def _output(manifest: Manifest) -> str:
    """Where a task's own output goes: beside the results where those are files."""
    store = Storage(manifest.results_url)
    if store.location.scheme == "file":
        return os.path.join(store.where(), "slurm", "%A_%a.out")  # noqa: PTH118
    return str(Path.cwd() / f"perseid-{manifest.run_id}-%A_%a.out")


def _at_once(attempts: Sequence[Attempt]) -> int:
    """Attempts that ran at the same time, at most."""
    changes = [(one.started, 1) for one in attempts if one.ending is not Ending.STOPPED]
    changes += [(one.started + one.duration_ms / 1000, -1) for one in attempts
                if one.ending is not Ending.STOPPED]  # fmt: skip
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return max(1, most)
