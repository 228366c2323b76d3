"""The handle of a run on a Dask cluster, which is followed by its futures and in the store."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from perseid.engines.attached import AttachedRun
from perseid.engines.dask.dask_cluster import kept_models
from perseid.engines.dask.dask_worker import stop_ranks, work_on_ranks
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.owner import Owner
from perseid.engines.stopping import StopRequests
from perseid.errors import RunError
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import CountEvent, Event, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records

STOP_SECONDS = 30.0
"""Seconds that tasks may take to end their ranks when the run is stopped."""
RESULT_SECONDS = 10
"""Seconds that the report of an ended task may take to arrive."""


class DaskRun(AttachedRun):
    """The futures of a run, and the records that its ranks write to the store."""

    first_look = longest_look = 0.2
    too_late = "the run has not ended within {:g} s"

    def __init__(
        self,
        client: Any,
        manifest: Manifest,
        blocks: Sequence[tuple[int, ...]],
        former: Mapping[int, int],
        options: LocalOptions,
        needed: Mapping[str, float],
    ) -> None:
        super().__init__(manifest)
        self._client = client
        self._began = time.time()
        self._stopped_at: float | None = None
        self._requests = StopRequests()
        with ExitStack() as resources:
            resources.enter_context(Owner(self._store))
            resources.enter_context(kept_models(client, manifest.run_id))
            # A random part in each key: Dask would answer a known key with the former result. No
            # retries by Dask, since the ranks are retried within the task.
            self._futures = {
                client.submit(
                    work_on_ranks, manifest.results_url, block,
                    {rank: former.get(rank, 0) for rank in block}, options,
                    manifest.allow_model_change,
                    key=f"perseid-{manifest.run_id}-{block[0]}-{uuid.uuid4().hex[:8]}",
                    pure=False, retries=0, resources=dict(needed) or None,
                ): block
                for block in blocks
            }  # fmt: skip
            self._resources = resources.pop_all()

    @property
    def futures(self) -> Sequence[Any]:
        """One future per task, for use with `distributed.progress` and similar functions."""
        return list(self._futures)

    def _has_ended(self) -> bool:
        """Whether no task waits or runs, or the time for tasks of a stopped run to end is over."""
        # A worker that hangs or is gone must not make a stopped run wait forever.
        if self._stopped_at is not None and time.time() - self._stopped_at > STOP_SECONDS:
            return True
        return all(future.done() for future in self._futures)

    def poll(self) -> Sequence[Event]:
        """Events for new records in the store, and the number of ranks in each state."""
        if self._requests.count and self._stopped_at is None:
            self.stop()
        events = super().poll()
        ranks = self._ranks()
        done = len(ranks & self.seen)
        count = CountEvent(
            "map", time.time() - self._began, len(ranks), len(ranks) - done, 0, done,
            ended=self._over,
        )  # fmt: skip
        return (*events, count)

    def wait(self, report: Report, timeout: float | None = None) -> None:
        """Wait until all tasks have ended; meanwhile, SIGINT and SIGTERM stop them."""
        with self._requests:  # each poll checks the count
            super().wait(report, timeout)

    def stop(self) -> bool:
        """End the running ranks and cancel the waiting tasks."""
        if self.ended:
            return False
        self._stopped_at = time.time()
        # Running tasks are not canceled: their reports say what was done and what it cost.
        waiting = [future for future in self._futures if future.status == "pending"]
        # Dask cannot interrupt a running task, so the workers are told.
        self._client.run(stop_ranks, self._manifest.run_id)
        self._client.cancel(waiting)
        return True

    def leave(self) -> str:
        """Do nothing: a run of this engine ends with its process."""
        return ""

    def report(self) -> EngineReport:
        """The report of all tasks, with a reason for each rank that has no record."""
        if not self.ended:
            raise RunError("the run has not ended: wait for it first")
        reports, lost = self._task_reports()
        records, _ = read_records(self._store, self._manifest)
        failures = {rank: text for one in reports for rank, text in one.failures.items()}
        # A task that was lost may have completed some of its ranks first.
        failures = {r: text for r, text in {**lost, **failures}.items() if r not in records}
        ranks = self._ranks()
        stopped = self._stopped_at is not None
        missing = ranks - set(records)
        if not stopped:
            failures |= dict.fromkeys(missing - set(failures), "its task left no record")
        attempts = [attempt for one in reports for attempt in one.attempts]
        return EngineReport(
            tuple(sorted(attempts, key=lambda one: one.started + one.duration_ms / 1000)),
            # After a stop, missing ranks have not failed; a resumption computes them.
            {} if stopped else failures,
            time.time() - self._began,
            max(1, sum(self._client.nthreads().values())),
            tuple(sorted(ranks & set(records))),
            stopped=stopped and bool(missing),
        )

    def __exit__(self, *_: object) -> None:
        """Stop the tasks that still run, since the futures end with this process."""
        with self._resources:
            if not self.ended:
                with suppress(Exception):  # the cluster may be gone already
                    self.stop()

    def _ranks(self) -> set[int]:
        """All ranks that were submitted."""
        return {rank for block in self._futures.values() for rank in block}

    def _task_reports(self) -> tuple[list[EngineReport], dict[int, str]]:
        """The reports of the tasks and, by rank, why its task has no report."""
        reports: list[EngineReport] = []
        lost: dict[int, str] = {}
        for future, block in self._futures.items():
            try:
                reports.append(EngineReport.from_json(future.result(timeout=RESULT_SECONDS)))
            # Errors of Dask or of the task itself, which may be of any class.
            except Exception as error:
                lost |= dict.fromkeys(block, _why(error))
        return reports, lost


def _why(error: Exception) -> str:
    name = type(error).__name__
    if name == "KilledWorker":
        return f"its Dask worker was lost each time that it was tried: {error}"
    if name == "CancelledError":
        return "its Dask task was canceled"
    return f"its Dask task failed: {name}: {error}"
