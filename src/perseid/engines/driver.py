"""Drive a whole run on any engine: initialize, submit, wait and publish; resume what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import cast

from perseid.compat.scripts.script_job import script_job
from perseid.engines.base import Engine, RunHandle
from perseid.engines.owner import Owner, refuse_if_owned
from perseid.errors import PerseidError, RunIncompleteError, RunInterruptedError
from perseid.jsontext import parse_json
from perseid.measure.cost import cost
from perseid.measure.sources.run_objects import read_stored
from perseid.pipeline import layout
from perseid.pipeline.attempts import EngineReport
from perseid.pipeline.claim import give_up
from perseid.pipeline.events import Report, StageEvent
from perseid.pipeline.initialize import initialize
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.run_state import (
    RunResult,
    finished,
    keep_report,
    missing_ranks,
    result_of,
)
from perseid.pipeline.run_summary import EngineSummary, RunSummary
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage

NOTHING_TO_DO = "the run is complete: nothing to do"


def begin(
    request: RunRequest, engine: Engine, report: Report, *, replace: bool = False
) -> tuple[Manifest, RunHandle]:
    """Claim the prefix of a run and begin to work on it.

    Raises
    ------
    BadInputError, StorageError, RunError
        As for `perseid.pipeline.initialize.initialize`; also if another process works on the run
        that would be replaced.
    """
    report(StageEvent("initialize"))
    # First, because the defaults of the engine are a part of what the manifest records.
    request = engine.prepare(request)
    if replace:
        # A run that is being worked on must not be removed under its workers.
        refuse_if_owned(Storage(request.results_url))
    with ExitStack() as owned:

        def check(manifest: Manifest) -> None:
            engine.check(manifest)
            # Ownership comes before the claim: of two processes at once, only one begins.
            owned.enter_context(Owner(Storage(manifest.results_url)))

        begun = initialize(request, script_job(request), replace=replace, check=check)
        for warning in begun.warnings:
            report(StageEvent("initialize", warning))
        try:
            handle = engine.submit(begun.manifest)
        except PerseidError:
            # Nothing has begun, so the prefix is left as it was found.
            give_up(Storage(begun.manifest.results_url))
            raise
        except KeyboardInterrupt:
            # Only the engine knows whether it had accepted the run by then.
            url = begun.manifest.results_url
            raise RunInterruptedError(
                f"stopped while the run was handed to {engine.name}: `perseid status {url}` says "
                f"whether it goes on, and `perseid resume {url}` does what is missing"
            ) from None
        owned.pop_all()  # from here on, the engine's own mark replaces this one
    return begun.manifest, handle


def begin_missing(
    manifest: Manifest, engine: Engine, report: Report, *, allow_model_change: bool = False
) -> RunHandle:
    """Begin to compute what is missing from a run.

    Raises
    ------
    BadModelError
        The model is missing, or is not the one that the run began with.
    RunError
        Another process on this machine is working on it.
    """
    store = Storage(manifest.results_url)
    ranks = missing_ranks(store, manifest)
    if ranks:
        manifest = with_current_model(
            manifest,
            allow_model_change=allow_model_change,
            own_default=engine.capabilities.own_default,
        )
    report(StageEvent("resume", f"{len(ranks)} of {manifest.world_size} ranks are missing"))
    # Submit first: if the engine refuses, the former merge stays valid.
    handle = engine.submit(manifest, ranks)
    store.delete([layout.MERGED])  # it lacks the ranks that are computed now
    return handle


def start(
    request: RunRequest, engine: Engine, report: Report, *, replace: bool = False
) -> RunResult:
    """Run a request from the beginning to its end.

    Parameters
    ----------
    request
        What to run; there must be no run at its ``results`` unless `replace` is given.
    engine
        Where the ranks work.
    report
        Called with each event.
    replace
        First remove the run that is at the prefix.

    Raises
    ------
    BadInputError, StorageError, RunError
        As for `begin`.
    RunInterruptedError
        The user stopped the run; `resume` continues it.
    """
    manifest, handle = begin(request, engine, report, replace=replace)
    with _stoppable(manifest, engine), handle:
        return follow(manifest, engine, handle, report)


def resume(
    url: str, engine: Engine, report: Report, *, allow_model_change: bool = False
) -> RunResult:
    """Work on the ranks that have no complete record, then summarize the run.

    A run that is complete and published is left as it is. If its catalogue was deleted or
    truncated afterwards, the catalogue is written again.

    Parameters
    ----------
    url
        The run's prefix.
    engine
        Where the missing ranks work.
    report
        Called with each event.
    allow_model_change
        Continue even if the model is not the one that the run began with; the run is then
        ``mixed``, never ``complete``.

    Raises
    ------
    BadModelError
        The model is missing, or is not the one that the run began with.
    NotFoundError
        There is no run at this prefix.
    RunError
        Another process on this machine is working on it.
    RunInterruptedError
        The user stopped the run again.
    """
    manifest = Manifest.load(Storage(url))
    done = finished(Storage(url), manifest)
    if done is not None:
        # Resuming twice does no harm, for example in a script that loops until a run is complete.
        report(StageEvent("resume", NOTHING_TO_DO))
        return done
    handle = begin_missing(manifest, engine, report, allow_model_change=allow_model_change)
    with _stoppable(manifest, engine), handle:
        return follow(manifest, engine, handle, report)


def follow(
    manifest: Manifest,
    engine: Engine,
    handle: RunHandle,
    report: Report,
    *,
    timeout: float | None = None,
) -> RunResult:
    """Wait for the submitted ranks, then publish the results of the run."""
    if not handle.ended:
        report(StageEvent("map"))
    handle.wait(report, timeout)
    mapped = handle.report()
    # The engine had it published meanwhile, for example by a job on the cluster.
    if mapped.published:
        return result_of(Storage(manifest.results_url), manifest, mapped)
    # Before anything can fail: attempts and costs are kept even if the run cannot be published.
    measured = keep_report(Storage(manifest.results_url), engine.name, mapped)
    if mapped.stopped:
        raise stopped(manifest, engine)
    report(StageEvent("summarize"))
    return _publish(manifest, mapped, measured)


def _publish(manifest: Manifest, mapped: EngineReport, measured: EngineSummary) -> RunResult:
    store, incomplete = Storage(manifest.results_url), None
    try:
        summary = summarize(
            store,
            map_seconds=measured["wall_seconds"],
            failures=mapped.failures,
            transport_note=mapped.transport_note,
            engine=measured,
        )
    except RunIncompleteError as error:  # raised after publishing what there is
        incomplete = str(error)
        # The error carries only a message; the summary was written before it was raised.
        summary = cast(RunSummary, parse_json(store.get(layout.SUMMARY)))
    # Added here, since summarize wrote the summary without it.
    summary["cost"] = bill(store)
    store.put(layout.SUMMARY, json.dumps(summary, indent=1, allow_nan=False).encode())
    return RunResult(manifest, mapped, summary, incomplete)


def bill(store: Storage) -> Mapping[str, object] | None:
    """The cost of a run, computed from its REPORT lines; None if there are none.

    This is not part of summarize, because a REPORT line is written after its worker has ended.
    """
    usage = read_stored(store, [entry.key for entry in store.list()]).usage
    return None if usage is None else cost(usage).to_json()


def stopped(manifest: Manifest, engine: Engine) -> RunInterruptedError:
    """The error of a run that the user stopped."""
    where = Storage(manifest.results_url).where()
    # The command line resumes on the local engine unless it is told otherwise.
    there = "" if engine.name == "local" else f" --engine {engine.name}"
    return RunInterruptedError(
        f"stopped; `perseid resume {where}{there}` goes on with what is missing"
    )


@contextmanager
def _stoppable(manifest: Manifest, engine: Engine) -> Iterator[None]:
    """Turn Ctrl-C outside the map into the error that tells the user how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise stopped(manifest, engine) from None
