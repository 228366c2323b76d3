"""The second step, run once per rank: fetch, decode and infer, write the rank's objects with its
record last, then join the collective merge if there is a rendezvous.

Imports only what the small worker package contains: numpy, onnxruntime, obstore.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perseid.errors import BadModelError, NotFoundError
from perseid.jsontext import json_bytes, parse_json
from perseid.libraries import no_room_for_a_thread
from perseid.linux import map_large_blocks
from perseid.model.identity import CPU
from perseid.pipeline import layout
from perseid.pipeline.cold_start import load_runtime
from perseid.pipeline.environment import RankEnvironment
from perseid.pipeline.events import RankEvent, RankState, Report
from perseid.pipeline.inference import Inference
from perseid.pipeline.items import WorkItem, data_path
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.rankfiles import RankFiles, temporary_folder
from perseid.pipeline.records import STORE, RankRecord
from perseid.pipeline.timeline import Timeline, peak_memory_mb
from perseid.storage import Storage

if TYPE_CHECKING:
    from perseid.model.runtime import Predictor

MEGABYTE = 1e6


def work(
    item: WorkItem,
    storage: Storage | None = None,
    *,
    runtime: Predictor | None = None,
    attempt: int = 1,
    report: Report | None = None,
    cold: bool = True,
    init_seconds: float = 0.0,
    defer_merge: bool = False,
    keep_dir: Path | None = None,
) -> RankRecord:
    """Do one rank's work. Repeating an item writes the same predictions and features again.

    Parameters
    ----------
    item
        The rank's work item.
    storage
        Storage of ``item.results_url``, if the caller has it already.
    runtime
        The model, if the process has loaded it already; otherwise it is loaded here.
    attempt
        Number of the attempt, from 1; the record of a newer attempt is never replaced.
    report
        Called with events about the rank's progress.
    cold, init_seconds
        Whether the process was started for this rank, and how many seconds its start took.
    defer_merge
        The ranks merge later, by `merge_collectively`, whatever the item says; otherwise this rank
        joins the others as soon as its inference is done and its objects are in the store.
    keep_dir
        An empty folder in which the rank's statistics and features stay for the merge.

    Returns
    -------
    The record, as written to ``<rank>.json``. Its `failed_partitions` names those that could not be
    read; all others were processed.

    Raises
    ------
    StorageError
        The store or this machine's disk failed; another attempt may succeed.
    BadModelError
        The model cannot be loaded, or is not the one that the run began with.
    BadInputError
        The model has no features of the kind that the item scores by.
    MemoryError
        The process may not take as much memory as it needs.
    """
    map_large_blocks()
    storage = storage or Storage(item.results_url)
    tell = report or _silent
    tell(RankEvent(item.rank, RankState.RUNNING, attempt))
    with temporary_folder(f"rank {item.rank}", keep_dir) as folder:
        try:
            record, newest = _infer(
                item, storage, runtime, attempt, tell, cold, init_seconds, folder
            )
        except RuntimeError as error:
            if no_room_for_a_thread(error):
                raise MemoryError(str(error)) from error
            raise
        runtime = None  # free the model's memory while ranks wait for each other
        settings = None if defer_merge else JoinSettings.of_item(item)
        if settings is not None and newest:
            record = _merge(item, storage, settings, record, folder)
    tell(RankEvent(item.rank, RankState.DONE, attempt, record.rows))
    return record


def _silent(event: object) -> None:
    """Discard events."""


def _infer(
    item: WorkItem,
    storage: Storage,
    runtime: Predictor | None,
    attempt: int,
    tell: Report,
    cold: bool,
    init_seconds: float,
    folder: Path,
) -> tuple[RankRecord, bool]:
    """Predict and publish; returns the record, and whether it counts: False if a newer attempt was
    faster."""
    clock = Timeline()
    clock.add("init", [(clock.began - init_seconds, clock.began)] if init_seconds else [])
    if runtime is None and item.partitions:
        with clock.stage("init"):
            runtime = load_runtime(item)

    def progress(rows: int) -> None:
        tell(RankEvent(item.rank, RankState.RUNNING, attempt, rows))

    # Checked before any work, because results of another model would have to be discarded.
    if runtime is not None:
        _check_model(item, runtime)
    inference, files = _predict(item, runtime, clock, folder, progress)
    if runtime is not None:
        # If the model file was replaced during the work, the record would name the wrong model.
        runtime.check_unchanged()
    # A slow first attempt must not overwrite what a faster second one has already left.
    superseded = _superseded(storage, item, attempt)
    if not superseded:
        with clock.stage("publish"):
            files.publish(storage)
    record = _record(item, runtime, inference, clock, attempt, cold, init_seconds)
    if not superseded:
        # The record is written after all other objects, because it marks them as complete.
        storage.put(layout.record(item.rank), json_bytes(record.to_json()))
    return record, not superseded


def _check_model(item: WorkItem, runtime: Predictor) -> None:
    """Refuse another model than the run's: a catalogue must not mix two models."""
    difference = item.model.difference(runtime.identity) if item.model else ""
    if difference:
        raise BadModelError(
            f"the model {item.model_url} is not the one that the run began with ({difference}): "
            "put that one back and resume the run, or start a new run"
        )


def _merge(
    item: WorkItem, storage: Storage, settings: JoinSettings, record: RankRecord, folder: Path
) -> RankRecord:
    from perseid.pipeline.collective_merge import (  # most local ranks do not need it
        RankOutputs,
        merge_collectively,
    )

    return replace(
        record,
        **vars(merge_collectively(RankOutputs(item, record.stored(), storage, folder), settings)),
    )


def _predict(
    item: WorkItem,
    runtime: Predictor | None,
    clock: Timeline,
    folder: Path,
    progress: Callable[[int], None],
) -> tuple[Inference, RankFiles]:
    inference = Inference(item, runtime, clock)
    with RankFiles(folder, inference.stamp) as files:
        for result in inference.results(progress):
            files.add(result)
            del result  # its arrays are not needed beside the next partition's
    return inference, files


def _superseded(storage: Storage, item: WorkItem, attempt: int) -> bool:
    """Whether a newer attempt of this run has already left its record."""
    try:
        record = parse_json(storage.get(layout.record(item.rank)))
        # Records of former runs at this prefix do not count, whatever their attempt.
        return bool(record["run_id"] == item.run_id and record["attempt"] > attempt)
    except (NotFoundError, ValueError, KeyError, TypeError):
        return False


def _stages(done: Inference, clock: Timeline, init_seconds: float) -> dict[str, float]:
    return {
        "init": clock.seconds("init"),
        "rendezvous": 0.0,
        "fetch": done.fetched.fetch_seconds,
        "decode": done.fetched.decode_seconds,
        "inference": done.model_seconds,
        "collectives": 0.0,
        "publish": clock.seconds("publish"),
        "total": init_seconds + clock.elapsed(),
    }


def _record(
    item: WorkItem,
    runtime: Predictor | None,
    done: Inference,
    clock: Timeline,
    attempt: int,
    cold: bool,
    init_seconds: float,
) -> RankRecord:
    signature = runtime.signature if runtime else None
    return RankRecord(
        run_id=item.run_id,
        rank=item.rank,
        world_size=item.world_size,
        attempt=attempt,
        rows=done.rows,
        rows_flagged=done.flagged,
        rows_missing=done.missing,
        partitions=tuple(done.partitions),
        failed_partitions=tuple(done.failed),
        result_path=item.options.result_path or item.results_url,
        data_path=data_path(item.partitions),
        batch_size=item.batch_size,
        micro_batch=runtime.micro_batch if runtime else 0,
        num_batches=done.batches,
        device=runtime.identity.device if runtime else CPU,
        precision=signature.precision if signature else item.precision,
        bands=signature.band_names if signature else (),
        transport=STORE,
        stages=_stages(done, clock, init_seconds),
        timeline=clock.joined(),
        model_seconds=done.model_seconds,
        allocated_mb=done.rows * (signature.allocated_bytes_per_row if signature else 0) / MEGABYTE,
        peak_memory_mb=peak_memory_mb(),
        cold_start=cold,
        pixel_bits=done.bits,
        environment=RankEnvironment.here().to_json(),
        model=runtime.identity if runtime else item.model,
        model_change=item.model_change,
        settings=item.result_settings(),
        s3={name.removeprefix("s3_"): value for name, value in done.fetched.as_record().items()},
    )
