"""The handle of a run on a Slurm cluster, which is followed in the store and squeue."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from perseid.engines.attached import AttachedRun
from perseid.engines.slurm import slurm_commands
from perseid.engines.slurm.slurm_commands import ENDINGS, RUNNING, Resources, TaskState
from perseid.engines.slurm.submission import Submission, get_reports
from perseid.errors import BadInputError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import Attempt, Ending, EngineReport
from perseid.pipeline.events import CountEvent, Event, RankEvent, RankState, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.run_state import published
from perseid.storage import Storage

FIRST_LOOK, LONGEST_LOOK, SLOWER = 0.5, 10.0, 1.3
"""First and longest interval between two calls of squeue, in seconds, and the growth factor."""
PUBLISH = """#!/bin/bash
exec {python} -P -m perseid.engines.slurm.publish_job {url}
"""
PUBLISH_MB = 2000
"""Memory of the job that publishes a run after its driver left, in MB: 8 bytes per row, and the
objects of some ranks."""


class SlurmRun(AttachedRun):
    """The job arrays of a run, which are followed in the store and squeue."""

    def __init__(
        self,
        manifest: Manifest,
        submission: Submission,
        jobs: tuple[str, ...],
        publisher: str | None = None,
        publishing: Resources | None = None,
    ) -> None:
        super().__init__(manifest)
        self._publisher, self._publishing = publisher, publishing
        self.submission = submission
        self.jobs = jobs
        self._began = time.time()
        self._tasks: dict[int, TaskState] = {}
        """For each task, by its index, the state that was seen last."""
        self._over = not jobs
        self._silent_since: float | None = None

    @property
    def ended(self) -> bool:
        """Whether no task waited or ran at the last call of squeue."""
        return self._over

    def poll(self) -> Sequence[Event]:
        """Events from the store about ranks and from squeue about tasks; one request to each."""
        self._look()
        told = (*super().poll(), *self._lost())
        live = [task for task in self._tasks.values() if task.live]
        running = sum(self._ranks(task) for task in live if task.state in RUNNING)
        waiting = sum(self._ranks(task) for task in live if task.state not in RUNNING)
        own = set(self.submission.ranks)
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

    def _lost(self) -> Sequence[Event]:
        """Fail the ranks whose task has ended and left neither a record nor a reason."""
        over = (RankState.DONE, RankState.FAILED)
        ended = [task.index for task in self._tasks.values() if not task.live]
        found = {
            rank: RankEvent(rank, RankState.FAILED, now.attempt, message=self._why(rank, {}))
            for index in ended
            for rank in self.submission.of_task(index)
            if (now := self._states[rank]).state not in over
        }
        self._states |= found
        return tuple(found.values())

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Poll at growing intervals until no task waits or runs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_LOOK
        for known in self.known:
            report(known)
        while True:
            for event in self.poll():
                report(event)
            if self.ended:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise RunError(f"the run has not ended within {timeout:g} s; it goes on")
            time.sleep(pause)
            # squeue loads the controller of a whole cluster, so it is asked rarely in long runs.
            pause = min(LONGEST_LOOK, pause * SLOWER)

    def stop(self) -> bool:
        """Cancel the arrays; finished work stays in the store."""
        self._look()
        if self.ended:
            return False
        # With the publisher: a stopped run is not published behind the user's back.
        slurm_commands.cancel([*self.jobs, *([self._publisher] if self._publisher else [])])
        return True

    def leave(self) -> str:
        """Submit a job that publishes the run after its arrays have ended."""
        url = self._manifest.results_url
        # A handle from `attach` does not know the resources; nothing is submitted for it.
        if self._publishing is None or not self.jobs:
            return f"`perseid status {url} --wait` publishes it"
        script = PUBLISH.format(python=shlex.quote(sys.executable), url=shlex.quote(url))
        name, output = job_name(self._manifest), task_output(self._manifest, "publish")
        try:
            self._publisher = slurm_commands.submit_after(
                self.jobs, script, name, output, self._publishing
            )
        except BadInputError as error:
            return f"`perseid status {url} --wait` publishes it; no job can do so ({error})"
        mark = parse_json(self._store.get(layout.DRIVER)) | {"publisher": self._publisher}
        self._store.put(layout.DRIVER, json.dumps(mark).encode())
        return ""

    def publishes(self) -> None:
        """Mark this process as the job that publishes the run: it must not wait for itself."""
        self._publisher = None

    def report(self) -> EngineReport:
        """The report of all tasks, with a reason for each rank that has no record."""
        if not self.ended:
            raise RunError(f"{self._store.where()} is still being worked on: wait for it first")
        if self._publisher and not self._store.exists(layout.DRIVER):
            done = published(self._store, self._manifest)
            if done is not None:
                return done.mapped
        tasks = range(self.submission.tasks)
        reports = get_reports(self._store, self.submission.name, tasks)
        records, missing = read_records(self._store, self._manifest)
        failures = {
            rank: self._why(rank, reports)
            for rank in self.submission.ranks
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
        stopped = canceled or any(reports[index].stopped for index in forgotten)
        # The run has ended, so no driver works on it any more.
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
            return  # the controller does not answer, so nothing is known to have ended
        self._tasks |= {task.index: task for task in found}
        waits = self._publisher and slurm_commands.is_live(self._publisher) is not False
        self._over = not waits and not any(task.live for task in found)

    def _ranks(self, task: TaskState) -> int:
        return len(self.submission.of_task(task.index))

    def _why(self, rank: int, reports: Mapping[int, EngineReport]) -> str:
        """One sentence that says why a rank has no record."""
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
        name = task_output(self._manifest).replace("%a", str(index))
        return name.replace("%A", ",".join(self.jobs))


def job_name(manifest: Manifest) -> str:
    """Name that squeue shows for the jobs of a run."""
    return f"perseid-{manifest.run_id.rpartition('-')[2]}"


def task_output(manifest: Manifest, name: str = "%A_%a") -> str:
    """Path of a task's own output: beside the results if those are files."""
    store = Storage(manifest.results_url)
    if store.location.scheme == "file":
        return os.path.join(store.where(), "slurm", f"{name}.out")  # noqa: PTH118
    return str(Path.cwd() / f"perseid-{manifest.run_id}-{name}.out")


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
