"""The job arrays of a run: how they are submitted, and how ``driver.json`` names them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.slurm_commands import Resources
from perseid.engines.slurm.submission import Submission
from perseid.errors import AlreadyExistsError, NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

BATCH = """#!/bin/bash
trap '' USR1  # until the program is ready for it
exec {python} -P -m perseid.engines.slurm.task {url} {submission}
"""
PUBLISH = """#!/bin/bash
exec {python} -P -m perseid.engines.slurm.publish_job {url}
"""
PUBLISH_MB = 2000
"""Memory of the job that publishes a run after its driver left, in MB: 8 bytes per row, and the
objects of some ranks."""
WANTED_TASKS = 128
"""Number of tasks of a run if nobody states the ranks per task: enough to spread over a cluster,
and few enough for any limit on submitted jobs."""
OVERHEAD_MB = 100
"""Memory that a task needs besides its ranks, in MB: its own process and a reaper."""


@dataclass(frozen=True)
class JobArray:
    """A submission that Slurm has accepted."""

    submission: Submission
    job: str
    """Slurm's number of the array."""


@dataclass(frozen=True)
class Launcher:
    """Submits job arrays of one run with the resources that the user chose."""

    manifest: Manifest
    time: str = ""
    partition: str = ""
    account: str = ""
    extra: tuple[str, ...] = ()
    """The user's own options of sbatch."""

    def launch(self, submission: Submission) -> JobArray:
        """Submit an array; raises the errors of `slurm_commands.submit`."""
        # Before the jobs: a task may start as soon as sbatch returns.
        submission.put(Storage(self.manifest.results_url))
        # Slurm limits the task as a whole, not each of its processes.
        memory = (submission.memory_mb + OVERHEAD_MB) * submission.workers
        cores = submission.workers * submission.threads
        script = BATCH.format(
            python=shlex.quote(sys.executable),
            url=shlex.quote(self.manifest.results_url),
            submission=submission.name,
        )
        job = slurm_commands.submit(
            script, submission.tasks, job_name(self.manifest), task_output(self.manifest),
            self._resources(cores, memory),
        )  # fmt: skip
        return JobArray(submission, job)

    def launch_publisher(self, jobs: Sequence[str]) -> str:
        """Submit the job that publishes the run after these have ended; return its number."""
        url = shlex.quote(self.manifest.results_url)
        return slurm_commands.submit_after(
            jobs, PUBLISH.format(python=shlex.quote(sys.executable), url=url),
            job_name(self.manifest), task_output(self.manifest, "publish"),
            self._resources(1, PUBLISH_MB),
        )  # fmt: skip

    def largest_memory(self) -> int:
        """Largest memory of a rank, in MB, that a node of the partition has; 0 if unknown."""
        return max(0, (slurm_commands.largest_node(self.partition) or 0) - OVERHEAD_MB)

    def _resources(self, cores: int, memory_mb: int) -> Resources:
        return Resources(cores, memory_mb, self.time, self.partition, self.account, self.extra)


def pack(ranks: int, largest_array: int, asked: int | None = None) -> int:
    """Number of ranks per task: as requested, or more if an array may have only few tasks."""
    # MaxArraySize is one above the largest index that Slurm allows.
    least = -(-ranks // max(1, largest_array - 1))
    return max(1, least, asked or -(-ranks // WANTED_TASKS))


def arrays_in(store: Storage, mark: Any) -> tuple[JobArray, ...]:
    """The arrays that a ``driver.json`` of this engine names.

    Raises
    ------
    NotFoundError, ValueError, KeyError, TypeError
        It names none, or is of another engine.
    """
    first = [(mark["submission"], job) for job in mark["jobs"]]
    # Marks of earlier versions have one array.
    further = [(entry["submission"], entry["job"]) for entry in mark.get("larger", ())]
    return tuple(
        JobArray(Submission.get(store, str(name)), str(job)) for name, job in (*first, *further)
    )


def add_array(
    store: Storage, launcher: Launcher, known: Sequence[JobArray], submission: Submission
) -> tuple[JobArray, ...]:
    """Submit one more array of a run, and add it to ``driver.json``.

    Returns
    -------
    All arrays of the run. If another process that waits for it was faster, these are its arrays.

    Raises
    ------
    NotFoundError
        Another process has published the run.
    BadInputError
        Slurm refused the array.
    """
    seen = store.info(layout.DRIVER)
    mark = parse_json(store.get(layout.DRIVER))
    array = launcher.launch(submission)
    arrays = (*known, array)
    try:
        store.swap(layout.DRIVER, json.dumps(mark | in_mark(arrays)).encode(), seen)
    except (AlreadyExistsError, NotFoundError):
        slurm_commands.cancel([array.job])
        return arrays_in(store, parse_json(store.get(layout.DRIVER)))
    return arrays


def in_mark(arrays: Sequence[JobArray]) -> dict[str, object]:
    """The keys of ``driver.json`` that name these arrays."""
    first, further = arrays[:1], arrays[1:]
    return {
        "submission": first[0].submission.name if first else "none",
        "jobs": [array.job for array in first],
        "larger": [{"submission": one.submission.name, "job": one.job} for one in further],
    }


def job_name(manifest: Manifest) -> str:
    """Name that squeue shows for the jobs of a run."""
    return f"perseid-{manifest.run_id.rpartition('-')[2]}"


def task_output(manifest: Manifest, name: str = "%A_%a") -> str:
    """Path of a task's own output: beside the results if those are files."""
    store = Storage(manifest.results_url)
    if store.location.scheme == "file":
        return os.path.join(store.where(), "slurm", f"{name}.out")  # noqa: PTH118
    return str(Path.cwd() / f"perseid-{manifest.run_id}-{name}.out")
