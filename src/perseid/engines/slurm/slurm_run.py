"""The handle of a run on a Slurm cluster, which is followed in the store and squeue."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from perseid.engines.attached import AttachedRun
from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.job_arrays import (
    JobArray,
    Launcher,
    add_array,
    arrays_in,
    pack,
    task_output,
)
from perseid.engines.slurm.more_memory import ran_out, remember, with_more_memory
from perseid.engines.slurm.slurm_commands import RUNNING, TaskState, ending
from perseid.engines.slurm.submission import Submission, get_reports
from perseid.errors import BadInputError, NotFoundError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.events import (
    CountEvent,
    Event,
    RankEvent,
    RankState,
    Report,
    StageEvent,
)
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.run_state import published

Task = tuple[str, int]
"""A task: Slurm's number of its array, and its index."""


class SlurmRun(AttachedRun):
    """The job arrays of a run, which are followed in the store and squeue.

    Parameters
    ----------
    manifest
        The manifest of the run.
    arrays
        Its arrays; a rank that ran out of memory is in several, and the last one decides.
    launcher
        Submits further arrays.
    publisher
        Number of the Slurm job that publishes the run; None if there is none.
    submitted
        Whether this process submitted the arrays.
    """

    # squeue loads the controller of a whole cluster, so it is asked rarely in long runs.
    longest_look = 10.0

    def __init__(
        self,
        manifest: Manifest,
        arrays: Sequence[JobArray],
        launcher: Launcher,
        publisher: str | None = None,
        *,
        submitted: bool = False,
    ) -> None:
        super().__init__(manifest)
        self._set_arrays(arrays)
        self._launcher, self._publisher, self._submitted = launcher, publisher, submitted
        self._began = time.time()
        self._tasks: dict[Task, TaskState] = {}
        """For each task, the state that was seen last."""
        self._over = not arrays
        self._adds = True
        """Whether this process may submit further arrays."""

    @property
    def jobs(self) -> tuple[str, ...]:
        """Slurm's numbers of the arrays."""
        return tuple(array.job for array in self.arrays)

    @property
    def ended(self) -> bool:
        """Whether no task waited or ran at the last call of squeue."""
        return self._over

    def poll(self) -> Sequence[Event]:
        """Events from the store about ranks and from squeue about tasks; one request to each."""
        told = (*super().poll(), *self._lost())
        live = [task for task in self._tasks.values() if task.live]
        running = sum(self._ranks_of(task) for task in live if task.state in RUNNING)
        waiting = sum(self._ranks_of(task) for task in live if task.state not in RUNNING)
        own = self._array_of.keys()
        known = [event for event in self.known if event.rank in own]
        total, finished = len(own), len(self.seen & own)
        # The numbers of two sources may disagree for a moment: no more ranks run than are
        # unfinished.
        count = CountEvent(
            "map", time.time() - self._began, total, min(waiting, total - finished),
            min(running, total - finished), finished,
            failed=sum(event.state is RankState.FAILED for event in known),
            retried=sum(event.state is RankState.DONE and event.attempt > 1 for event in known),
            ended=self.ended,
        )  # fmt: skip
        return (*told, count)

    def _has_ended(self) -> bool:
        """Ask squeue for the tasks; the last answer stands if it gives none."""
        if self._over:
            return True
        found = slurm_commands.states(self.jobs)
        if found is None:
            return False  # the controller does not answer, so nothing is known to have ended
        self._tasks |= {(task.job, task.index): task for task in found}
        waits = self._publisher and slurm_commands.is_live(self._publisher) is not False
        return not waits and not any(task.live for task in found)

    def _lost(self) -> Sequence[Event]:
        """Fail the ranks whose task has ended and left neither a record nor a reason."""
        over = (RankState.DONE, RankState.FAILED)
        found = {
            rank: RankEvent(rank, RankState.FAILED, now.attempt, message=self._why(rank, {}))
            for rank, array in self._array_of.items()
            if (task := self._tasks.get(task_of(rank, array))) and not task.live
            if (now := self._states[rank]).state not in over
        }
        self._states |= found
        return tuple(found.values())

    def _goes_on(self, report: Report) -> bool:
        """Submit ranks that ran out of memory again, unless another process has done so."""
        canceled = any(task.state == "CANCELLED" for task in self._tasks.values())
        if self._publisher or canceled or not self._adds or not self.arrays:
            return False
        try:
            # First, since this process may not have seen what another one submitted.
            arrays = arrays_in(self._store, parse_json(self._store.get(layout.DRIVER)))
            if len(arrays) == len(self.arrays) and (larger := self._larger()) is not None:
                arrays = add_array(self._store, self._launcher, self.arrays, larger)
        except (NotFoundError, ValueError, KeyError, TypeError):
            return False  # another process has published the run
        except (BadInputError, RunError) as error:
            report(StageEvent("map", f"ranks that ran out of memory are not tried again: {error}"))
            return False
        if len(arrays) == len(self.arrays):
            return False
        self._take_up(arrays, report)
        return True

    def _larger(self) -> Submission | None:
        """The submission of the ranks that ran out of memory and may have more."""
        before = {
            rank: memory
            for rank, memory in self._out_of_memory(self._reports()).items()
            if self._array_of[rank].submission.raises
        }
        if not before:
            return None
        per_task = pack(len(before), slurm_commands.largest_array(), 1)
        # The last array has the fewest raises left.
        last = self.arrays[-1].submission
        return with_more_memory(last, before, self._launcher.largest_memory(), per_task)

    def _take_up(self, arrays: Sequence[JobArray], report: Report) -> None:
        """Follow these arrays, of which the last ones are new."""
        for array in arrays[len(self.arrays) :]:
            ranks, memory = array.submission.ranks, array.submission.memory_mb
            for rank in ranks:
                said = f"it ran out of memory and may take {memory:,} MB in Slurm job {array.job}"
                attempt = self._states[rank].attempt if rank in self._states else 0
                self._states[rank] = RankEvent(rank, RankState.RETRYING, attempt, message=said)
                report(self._states[rank])
        self._set_arrays(arrays)
        self._over = False

    def _set_arrays(self, arrays: Sequence[JobArray]) -> None:
        self.arrays = tuple(arrays)
        self._array_of = {rank: array for array in arrays for rank in array.submission.ranks}
        """By rank, the last array that works or worked on it."""

    def _out_of_memory(self, reports: Mapping[Task, EngineReport]) -> dict[int, int]:
        """By rank, the memory in MB that it ran out of in its last array."""
        found = {}
        for rank, array in self._array_of.items():
            key = task_of(rank, array)
            state = self._tasks[key].state if key in self._tasks else ""
            report = reports.get(key)
            missing = rank not in self.seen if report is None else rank in report.failures
            if missing and ran_out(rank, report, state):
                found[rank] = array.submission.memory_mb
        return found

    def _reports(self) -> dict[Task, EngineReport]:
        """The reports of all tasks that left one."""
        return {
            (array.job, index): report
            for array in self.arrays
            for index, report in get_reports(self._store, array.submission).items()
        }

    def stop(self) -> bool:
        """Cancel the arrays; finished work stays in the store."""
        self._over = self._has_ended()
        if self.ended:
            return False
        # With the publisher: a stopped run is not published behind the user's back.
        slurm_commands.cancel([*self.jobs, *([self._publisher] if self._publisher else [])])
        return True

    def leave(self) -> str:
        """Submit a job that publishes the run after its arrays have ended."""
        url = self._manifest.results_url
        if not self._submitted or not self.jobs:
            return f"`perseid status {url} --wait` publishes it"
        try:
            self._publisher = self._launcher.launch_publisher(self.jobs)
        except BadInputError as error:
            return f"`perseid status {url} --wait` publishes it; no job can do so ({error})"
        mark = parse_json(self._store.get(layout.DRIVER)) | {"publisher": self._publisher}
        self._store.put(layout.DRIVER, json.dumps(mark).encode())
        return ""

    def publishes(self) -> None:
        """Mark this process as the job that publishes the run."""
        self._publisher = None  # it must not wait for itself
        self._adds = False  # nor hold its node while further arrays wait for theirs

    def report(self) -> EngineReport:
        """The report of all tasks, with a reason for each rank that has no record."""
        if not self.ended:
            raise RunError(f"{self._store.where()} is still being worked on: wait for it first")
        if self._publisher and not self._store.exists(layout.DRIVER):
            done = published(self._store, self._manifest)
            if done is not None:
                return done.mapped
        reports = self._reports()
        # For a resumption, which gives these ranks more.
        remember(self._store, self._out_of_memory(reports))
        records, missing = read_records(self._store, self._manifest)
        failures = {
            rank: self._why(rank, reports)
            for rank in self._array_of
            # Records decide, since a task may have been killed after its last rank was done.
            if rank in missing and rank not in records
        }
        attempts = sorted(
            (one for report in reports.values() for one in report.attempts),
            key=lambda one: one.started + one.duration_ms / 1000,
        )
        canceled = any(task.state == "CANCELLED" for task in self._tasks.values())
        # A task at its time limit gets the same signal as a canceled one; Slurm's state of the task
        # tells them apart, so the task's own word counts only if Slurm has forgotten it.
        forgotten = set(reports) - set(self._tasks)
        stopped = canceled or any(reports[task].stopped for task in forgotten)
        # The run has ended, so no driver works on it any more.
        self._store.delete([layout.DRIVER])
        began = min((one.started for one in attempts), default=0.0)
        ended = max((one.started + one.duration_ms / 1000 for one in attempts), default=0.0)
        return EngineReport(
            tuple(attempts), failures, ended - began, _at_once(attempts),
            tuple(sorted(set(self._array_of) - set(failures))),
            stopped=stopped and bool(failures),
            notes=(f"jobs       {', '.join(self.jobs)}",),
        )  # fmt: skip

    def _ranks_of(self, task: TaskState) -> int:
        """Number of ranks of a task."""
        found = next(array for array in self.arrays if array.job == task.job)
        return len(found.submission.of_task(task.index))

    def _why(self, rank: int, reports: Mapping[Task, EngineReport]) -> str:
        """One sentence that says why a rank has no record."""
        job, index = key = task_of(rank, self._array_of[rank])
        report, task = reports.get(key), self._tasks.get(key)
        if report is not None and rank in report.failures:
            return report.failures[rank]
        output = task_output(self._manifest).replace("%a", str(index)).replace("%A", job)
        name = f"its Slurm task {job}_{index}"
        if task is None:
            return f"{name} is gone and Slurm no longer says why; its output is in {output}"
        said = ending(task.state)
        where = f" on node {task.node}" if task.node else ""
        return f"{name}{where} left no record of it: {said} (output: {output})"


def task_of(rank: int, array: JobArray) -> Task:
    """The task of an array that works on a rank."""
    return array.job, array.submission.task_of(rank)


def _at_once(attempts: Sequence[Attempt]) -> int:
    """Maximum number of attempts that ran at the same time."""
    # Ends sort before starts at the same moment, so back-to-back attempts count once.
    changes = [(one.started, 1) for one in attempts if one.ending is not Ending.STOPPED]
    changes += [(one.started + one.duration_ms / 1000, -1) for one in attempts
                if one.ending is not Ending.STOPPED]  # fmt: skip
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return max(1, most)
