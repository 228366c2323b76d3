"""The objects below ``slurm/`` of a run: what a submission tells its tasks, and their reports."""

from __future__ import annotations

import json
import uuid
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from perseid.errors import NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.run_summary import EngineDocument
from perseid.storage import Storage


class TaskReport(EngineDocument):
    """The report of one task of a job array, in the format of ``engine.json``."""

    stopped: bool


@dataclass(frozen=True)
class Submission:
    """Ranks that were submitted to Slurm together, and the options of its tasks."""

    name: str
    """Name that is unique within the run."""
    ranks: tuple[int, ...]
    """Ranks in ascending order; task i works on
    ``ranks[i * ranks_per_task : (i + 1) * ranks_per_task]``."""
    ranks_per_task: int
    workers: int
    """Number of processes at once in a task."""
    threads: int
    """Number of threads that each process computes with."""
    memory_mb: int
    """Memory limit of a rank, in MB."""
    timeout: float
    """Time limit of a rank, in seconds."""
    retries: int
    """Number of attempts after a failed one, within the task."""
    command: tuple[str, ...] = ()
    """Command line of the worker program; empty for the standard one."""
    former: Mapping[int, int] = field(default_factory=dict)
    """By rank, the attempt of the record that it already had. A task that is started again skips
    the ranks that have a newer record."""
    allow_model_change: bool = False
    raises: int | None = None
    """How many times ranks that run out of memory are submitted again with twice as much; None if
    the user chose the memory, which is then never raised."""

    @staticmethod
    def new_name() -> str:
        """A name that no other submission has."""
        return uuid.uuid4().hex[:12]

    @property
    def tasks(self) -> int:
        """Number of tasks of the array."""
        # Rounded up: the last task may have fewer ranks.
        return -(-len(self.ranks) // self.ranks_per_task)

    def of_task(self, index: int) -> tuple[int, ...]:
        """The ranks of a task."""
        return self.ranks[index * self.ranks_per_task : (index + 1) * self.ranks_per_task]

    def task_of(self, rank: int) -> int:
        """The task of a rank."""
        return bisect_left(self.ranks, rank) // self.ranks_per_task

    def put(self, store: Storage) -> None:
        """Write the submission to the store, where the tasks read it."""
        store.put(layout.slurm_submission(self.name), json.dumps(asdict(self)).encode())

    @classmethod
    def get(cls, store: Storage, name: str) -> Submission:
        """Read a submission from the store.

        Raises
        ------
        NotFoundError
            The run has no such submission.
        """
        plain = parse_json(store.get(layout.slurm_submission(name)))
        # JSON has only strings as keys.
        plain["former"] = {int(rank): attempt for rank, attempt in plain["former"].items()}
        for key in ("ranks", "command"):
            plain[key] = tuple(plain[key])
        return cls(**plain)


def put_report(store: Storage, submission: str, index: int, report: EngineReport) -> None:
    """Write the report of a task; a task that was started again adds to its former report."""
    former = _report(store, submission, index)
    # Slurm may start a task again on another node; attempts before that were billed as well.
    if former is not None:
        before = EngineReport.from_json(former)
        report = replace(
            report,
            attempts=(*before.attempts, *report.attempts),
            wall_seconds=before.wall_seconds + report.wall_seconds,
        )
    plain: TaskReport = {**report.to_json(), "stopped": report.stopped}
    store.put(layout.slurm_report(submission, index), json.dumps(plain).encode())


def get_reports(store: Storage, submission: Submission) -> dict[int, EngineReport]:
    """The reports by task; tasks that left none are missing."""
    found = {}
    for index in range(submission.tasks):
        plain = _report(store, submission.name, index)
        if plain is not None:
            report = EngineReport.from_json(plain)
            found[index] = replace(report, stopped=bool(plain["stopped"]))
    return found


def _report(store: Storage, submission: str, index: int) -> TaskReport | None:
    try:
        return cast(TaskReport, parse_json(store.get(layout.slurm_report(submission, index))))
    except (NotFoundError, ValueError):
        return None
