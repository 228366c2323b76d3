"""Ranks that ran out of memory are submitted again, with twice as much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from perseid.engines.slurm.submission import Submission
from perseid.errors import NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import Ending, EngineReport
from perseid.storage import Storage

SLURM_ENDED = "OUT_OF_MEMORY"
"""Slurm's state of a task that used more memory than it had."""


def ran_out(rank: int, report: EngineReport | None, state: str) -> bool:
    """Whether a rank without a record ran out of memory.

    Parameters
    ----------
    rank
        The rank.
    report
        The report of its task; None if the task left none.
    state
        Slurm's state of the task; empty if Slurm has forgotten it.
    """
    endings = [one.ending for one in report.attempts if one.rank == rank] if report else []
    if not endings:
        # Slurm ended the whole task, so nobody knows which of its ranks took the memory.
        return state == SLURM_ENDED and report is None
    killed = state == SLURM_ENDED and endings[-1] is Ending.KILLED
    return killed or endings[-1] is Ending.OUT_OF_MEMORY


def with_more_memory(
    submission: Submission, before: Mapping[int, int], most_mb: int, ranks_per_task: int
) -> Submission | None:
    """The ranks that ran out of memory, as a submission with twice as much; None if there is none.

    Parameters
    ----------
    submission
        The submission that had these ranks, or has them now.
    before
        By rank, the memory that it ran out of, in MB.
    most_mb
        Largest memory that a rank may have, in MB; 0 if it is unknown.
    ranks_per_task
        Number of ranks per task.
    """
    memory = min(2 * max(before.values(), default=0), most_mb)
    ranks = tuple(sorted(rank for rank, had in before.items() if had < memory))
    if submission.raises is None or not ranks:
        return None
    return replace(
        submission,
        name=Submission.new_name(),
        ranks=ranks,
        ranks_per_task=ranks_per_task,
        workers=1,  # a node may have room for one such rank only
        memory_mb=memory,
        raises=max(0, submission.raises - 1),
    )


def remember(store: Storage, before: Mapping[int, int]) -> None:
    """Keep which ranks ran out of how much memory (MB), for a resumption."""
    if before:
        plain = {str(rank): memory for rank, memory in sorted(before.items())}
        store.put(layout.SLURM_OUT_OF_MEMORY, json.dumps(plain).encode())
    else:
        store.delete([layout.SLURM_OUT_OF_MEMORY])


def remembered(store: Storage) -> dict[int, int]:
    """By rank, the memory in MB that it ran out of when the run was last worked on."""
    try:
        plain = parse_json(store.get(layout.SLURM_OUT_OF_MEMORY))
        return {int(rank): int(memory) for rank, memory in plain.items()}
    except (NotFoundError, ValueError, TypeError, AttributeError):
        return {}
