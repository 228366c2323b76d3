"""A whole run on any engine: initialize, map, summarize; and what is missing of one, again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from perseid.engines.base import Engine, MapResult, Selective
from perseid.engines.owner import Owner, refuse_if_owned
from perseid.errors import NotFoundError, RunIncompleteError, RunInterruptedError
from perseid.measure.cost import cost
from perseid.measure.sources.stored import read_stored
from perseid.pipeline import layout
from perseid.pipeline.collect import read_records
from perseid.pipeline.events import Report, StageEvent
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import has_catalogue, with_current_model
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage

NOTHING_TO_DO = "the run is complete: nothing to do"


@dataclass(frozen=True)
class RunResult:
    """What came of a run."""

    manifest: Manifest
    mapped: MapResult
    """This driver's attempts; on a resumption only the ranks that were missing."""
    summary: dict[str, Any]
    """What ``summary.json`` holds."""
    incomplete: str | None
    """One sentence that names what is missing; None where nothing is."""


def start(
    request: RunRequest, engine: Engine, report: Report, *, replace: bool = False
) -> RunResult:
    """Run a request from the beginning.

    Parameters
    ----------
    request
        What to run; its ``results`` must be a prefix without a run.
    engine
        Where the ranks work; open.
    report
        Called with each event.
    replace
        Remove the run that is at the prefix first.

    Raises
    ------
    BadInputError, StorageError, RunError
        As `perseid.pipeline.initialize.initialize`; also where another process works on the run
        that is to be replaced.
    RunInterruptedError
        The user stopped it; `resume` goes on.
    """
    report(StageEvent("initialize"))
    if "transport" not in request.model_fields_set:
        request = request.model_copy(update={"transport": engine.transport})
    if replace:
        refuse_if_owned(Storage(request.results_url))
    with ExitStack() as stack:

        def check(manifest: Manifest) -> None:
            if isinstance(engine, Selective):
                engine.check(manifest)
            # Who works on a place owns it before it is claimed: of two at once one does not begin.
            stack.enter_context(Owner(Storage(manifest.results_url)))

        begun = initialize(request, replace=replace, check=check)
        for warning in begun.warnings:
            report(StageEvent("initialize", warning))
        return _go_on(begun.manifest, begun.items, engine, report)


def resume(
    url: str, engine: Engine, report: Report, *, allow_model_change: bool = False
) -> RunResult:
    """Work on the ranks of a run that have no whole record of it, then summarize.

    A run that is complete and published is left as it is; a catalogue that was deleted or
    shortened afterwards is made again.

    Parameters
    ----------
    url
        The run's prefix.
    engine
        Where the missing ranks work; open.
    report
        Called with each event.
    allow_model_change
        Go on where the model is not the one that the run began with; the run is ``mixed`` then,
        never ``complete``.

    Raises
    ------
    BadModelError
        The model is not the one that the run began with, or is gone.
    NotFoundError
        There is no run at this prefix.
    RunError
        Another process of this machine works on it.
    RunInterruptedError
        The user stopped it again.
    """
    store = Storage(url)
    manifest = Manifest.load(store)
    done = finished(store, manifest)
    if done is not None:
        report(StageEvent("resume", NOTHING_TO_DO))
        return done
    ranks = missing_ranks(store, manifest)
    if ranks:
        manifest = with_current_model(manifest, allow_model_change=allow_model_change)
    store.delete([layout.MERGED])  # what was merged is not what there will be
    report(StageEvent("resume", f"{len(ranks)} of {manifest.world_size} ranks are missing"))
    return _go_on(manifest, [manifest.item(rank) for rank in ranks], engine, report)


def finished(store: Storage, manifest: Manifest) -> RunResult | None:
    """What there is of a run that is complete and published; None where something is missing."""
    last = _last_summary(store)
    if last.get("status") != "complete" or last.get("run_id") != manifest.run_id:
        return None
    if missing_ranks(store, manifest):
        return None
    if not has_catalogue(store, manifest, last.get("catalogue_bytes")):
        return None
    return RunResult(manifest, MapResult(), last, None)


def missing_ranks(store: Storage, manifest: Manifest) -> list[int]:
    """Ranks to work on again, ascending.

    Those without a record of this run, those whose record names partitions it could not read, and
    those that the last summary found broken; all of them where one is missing and the ranks of a
    script talk to each other.
    """
    records, missing = read_records(store, manifest)
    partly = {rank for rank, record in records.items() if record.get("failed_partitions")}
    broken = {int(entry["rank"]) for entry in _last_summary(store)["ranks"]["missing"]}
    found = {*missing, *partly, *broken}
    return list(range(manifest.world_size)) if found and manifest.talks else sorted(found)


def _last_summary(store: Storage) -> dict[str, Any]:
    try:
        summary = json.loads(store.get(layout.SUMMARY))
        summary["ranks"]["missing"]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return {"ranks": {"missing": []}}
    return dict(summary)


def _go_on(
    manifest: Manifest, items: Sequence[WorkItem], engine: Engine, report: Report
) -> RunResult:
    store = Storage(manifest.results_url)
    with Owner(store), _resumable(store):
        report(StageEvent("map"))
        mapped = engine.map(items, report)
        measured = _keep(store, engine.name, mapped)
        if mapped.stopped:
            raise KeyboardInterrupt
        report(StageEvent("summarize"))
        incomplete = None
        try:
            summary = summarize(
                store,
                map_seconds=measured["wall_seconds"],
                failures=mapped.failures,
                transport_note=mapped.transport_note,
                extra={"engine": {k: v for k, v in measured.items() if k != "attempts"}},
            )
        except RunIncompleteError as error:  # after publishing what there is
            incomplete = str(error)
            summary = json.loads(store.get(layout.SUMMARY))
        summary["cost"] = bill(store)
        store.put(layout.SUMMARY, json.dumps(summary, indent=1, allow_nan=False).encode())
    return RunResult(manifest, mapped, summary, incomplete)


def bill(store: Storage) -> dict[str, Any] | None:
    """What a run costs, from its REPORT lines; None where there are none.

    Not summarize's work: a worker's REPORT line is written after the worker has ended.
    """
    usage = read_stored(store, [entry.key for entry in store.list()]).usage
    return None if usage is None else cost(usage).to_json()


@contextmanager
def _resumable(store: Storage) -> Iterator[None]:
    """Say how to go on where the user stops the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterruptedError(
            f"stopped; `perseid resume {store.where()}` goes on with what is missing"
        ) from None


def _keep(store: Storage, name: str, mapped: MapResult) -> dict[str, Any]:
    """Write ``engine.json``; after a resumption it holds the attempts of all drivers."""
    plain = mapped.to_json() | {"engine": name, "drivers": 1}
    former = _former(store)
    if former is not None:
        plain["attempts"] = [*former["attempts"], *plain["attempts"]]
        plain["drivers"] = former.get("drivers", 1) + 1
        for key in ("wall_seconds", "work_seconds", "overhead_seconds", "cold_starts"):
            plain[key] += former.get(key, 0)
        ranks = {entry["rank"] for entry in plain["attempts"]}
        plain["overhead_seconds_per_rank"] = plain["overhead_seconds"] / max(1, len(ranks))
    store.put(layout.ENGINE, json.dumps(plain, indent=1).encode())
    return plain


def _former(store: Storage) -> dict[str, Any] | None:
    try:
        former = json.loads(store.get(layout.ENGINE))
    except (NotFoundError, ValueError):
        return None
    return former if isinstance(former, dict) and "attempts" in former else None
