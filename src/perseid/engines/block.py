"""A block of ranks in worker processes of one machine, on behalf of a scheduler's task.

Slurm and Dask decide when and where a task runs. Inside the task, ranks are processed as by the
local engine, with the same processes, limits, retries, logs and measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from perseid.engines.local.kept_workers import KeptWorkers
from perseid.engines.local.local_map import LocalMap
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.local.process import Reaper
from perseid.engines.local.script_gang import around_scripts
from perseid.engines.stopping import StopRequests
from perseid.errors import NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.events import Report
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import read_records
from perseid.storage import Storage


def work_on_block(
    items: Sequence[WorkItem],
    options: LocalOptions,
    report: Report,
    stop: StopRequests,
    leave: Callable[[], str] = str,
    kept: KeptWorkers | None = None,
) -> EngineReport:
    """Work on some ranks of a run until all are done, have failed, or were given up.

    Parameters
    ----------
    items
        Work items of the ranks, at least one.
    options
        Options as for the local engine.
    report
        Called with each event.
    stop
        Requests to stop; one that is counted ends the ranks.
    leave
        Called repeatedly. Once it returns a sentence, no further rank is started, and the ranks
        that still wait fail with that sentence as their message.
    kept
        Worker processes that stay alive between blocks; None if each block starts its own.
    """
    with ExitStack() as stack:
        reaper = kept.reaper if kept else stack.enter_context(Reaper())
        options = stack.enter_context(around_scripts(items, options, report))
        ranks = LocalMap(items, options, reaper, report, kept)
        try:
            while not (stop.count or ranks.finished):
                ranks.turn()
                # The scheduler may end the task soon: running ranks go on, none is started.
                if said := leave():
                    ranks.leave_waiting(said)
        except BaseException:
            # An exception in between must not leave workers running in the task.
            ranks.close(stop)
            raise
        return ranks.conclude(stop)


def attempts_before(manifest: Manifest, ranks: Sequence[int]) -> dict[int, int]:
    """By rank, the attempt whose record it already has; ranks without a record are left out."""
    records, _ = read_records(Storage(manifest.results_url), manifest)
    return {rank: records[rank].attempt for rank in ranks if rank in records}


def done_since(manifest: Manifest, rank: int, before: int) -> bool:
    """Whether the rank has a record of a newer attempt than `before` (0 if it had none)."""
    store = Storage(manifest.results_url)
    try:
        # Read again here, not taken from a listing: the task may start hours after its submission.
        key = layout.done_record(rank, script=manifest.script is not None)
        record = parse_json(store.get(key))
        return bool(record["run_id"] == manifest.run_id and int(record["attempt"]) > before)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return False
