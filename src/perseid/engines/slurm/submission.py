"""What one submission gives its tasks, and what they leave: objects below ``slurm/`` of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from perseid.errors import NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.run_summary import EngineDocument
from perseid.storage import Storage


class TaskReport(EngineDocument):
    """What a task of a job array keeps: its own ``engine.json``."""

    stopped: bool


@dataclass(frozen=True)
class Submission:
    """Ranks that were handed to Slurm together, and how its tasks treat them."""

    name: str
    """Unique in the run."""
    ranks: tuple[int, ...]
    """Ascending; task i works on ``ranks[i * ranks_per_task : (i + 1) * ranks_per_task]``."""
    ranks_per_task: int
    workers: int
    """Processes at once in a task."""
    threads: int
    """Threads a process computes with."""
    memory_mb: int
    """Memory that a rank may take, MB."""
    timeout: float
    """Seconds that a rank may take."""
    retries: int
    """Attempts after a failed one, inside the task."""
    command: tuple[str, ...] = ()
    """The worker's program; empty: the engine's own."""
    former: Mapping[int, int] = field(default_factory=dict)
    """Attempt of the record that a rank had already: a task that is started again leaves out the
    ranks that have a newer one."""
    allow_model_change: bool = False

    @property
    def tasks(self) -> int:
        """Tasks of the array."""
        return -(-len(self.ranks) // self.ranks_per_task)

    def of_task(self, index: int) -> tuple[int, ...]:
        """The ranks of a task."""
        return self.ranks[index * self.ranks_per_task : (index + 1) * self.ranks_per_task]

    def task_of(self, rank: int) -> int:
        """The task of a rank."""
        return self.ranks.index(rank) // self.ranks_per_task

    def put(self, store: Storage) -> None:
        """Write it, for the tasks to read."""
        store.put(layout.slurm_submission(self.name), json.dumps(asdict(self)).encode())

    @classmethod
    def get(cls, store: Storage, name: str) -> Submission:
        """As it was written.

        Raises
        ------
        NotFoundError
            The run has no such submission.
        """
        plain = parse_json(store.get(layout.slurm_submission(name)))
        plain["former"] = {int(rank): attempt for rank, attempt in plain["former"].items()}
        for key in ("ranks", "command"):
            plain[key] = tuple(plain[key])
        return cls(**plain)


def put_report(store: Storage, submission: str, index: int, report: EngineReport) -> None:
    """Keep what a task did; one that is started again adds to it."""
    former = _report(store, submission, index)
    if former is not None:
        before = EngineReport.from_json(former)
        report = replace(
            report,
            attempts=(*before.attempts, *report.attempts),
            wall_seconds=before.wall_seconds + report.wall_seconds,
        )
    plain: TaskReport = {**report.to_json(), "stopped": report.stopped}
    store.put(layout.slurm_report(submission, index), json.dumps(plain).encode())


def get_reports(store: Storage, submission: str, tasks: Sequence[int]) -> dict[int, EngineReport]:
    """What tasks did, by task; those that left nothing are missing."""
    found = {}
    for index in tasks:
        plain = _report(store, submission, index)
        if plain is not None:
            report = EngineReport.from_json(plain)
            found[index] = replace(report, stopped=bool(plain["stopped"]))
    return found


def _report(store: Storage, submission: str, index: int) -> TaskReport | None:
    try:
        return cast(TaskReport, parse_json(store.get(layout.slurm_report(submission, index))))
    except (NotFoundError, ValueError):
        return None
