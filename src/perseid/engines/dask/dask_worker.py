"""Code that runs in a Dask worker: the task, the processes that it keeps, and its stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import perseid
from perseid.engines.block import done_since, work_on_block
from perseid.engines.local.kept_workers import KeptWorkers
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.stopping import StopRequests
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.run_summary import EngineDocument
from perseid.storage import Storage

_kept: dict[str, KeptWorkers] = {}
"""By run id, processes with a loaded model; `ModelKeeper` adds them."""
_stops: dict[str, list[StopRequests]] = {}
"""By run id, the stop requests of the blocks at work, so that a stop reaches them."""


def work_on_ranks(
    url: str,
    ranks: Sequence[int],
    former: Mapping[int, int],
    options: LocalOptions,
    allow_model_change: bool,
) -> EngineDocument:
    """The task: work on some ranks of the run at this URL; return the report as JSON.

    If a worker is lost, Dask calls this again on another one; ranks that are done are skipped.
    """
    manifest = Manifest.load(Storage(url))
    manifest = with_current_model(manifest, allow_model_change=allow_model_change)
    # Compared with the attempt before the submission: an older record is to be replaced.
    left = [rank for rank in ranks if not done_since(manifest, rank, former[rank])]
    if not left:
        return EngineReport().to_json()
    stop = StopRequests()
    # Signals do not reach threads of a Dask worker, so a stop sets this count.
    _stops.setdefault(manifest.run_id, []).append(stop)
    try:
        items = [manifest.item(rank) for rank in left]
        kept = _kept.get(manifest.run_id)
        return work_on_block(items, options, lambda event: None, stop, kept=kept).to_json()
    finally:
        # A Dask worker lives longer than a run, so nothing of the run may remain.
        _stops[manifest.run_id].remove(stop)


class ModelKeeper:
    """A plugin of Dask workers that keeps the processes of a run alive between tasks.

    Workers that join during the run get it as well. The processes end with the run or with their
    Dask worker.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.name = f"perseid-{run_id}"

    def setup(self, worker: object) -> None:
        """Called by Dask before the worker's first task."""
        _kept[self._run_id] = KeptWorkers()

    def teardown(self, worker: object) -> None:
        """Called by Dask when the run or the worker ends."""
        kept = _kept.pop(self._run_id, None)
        if kept is not None:
            kept.close()


def stop_ranks(run_id: str) -> None:
    """Stop the ranks of a run that this Dask worker works on."""
    for stop in _stops.get(run_id, []):
        stop.count += 1


def version() -> str:
    """Major and minor version of perseid in the calling process."""
    return ".".join(perseid.__version__.split(".")[:2])
