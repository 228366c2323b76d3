"""Start, resume and reopen runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perseid.api.argument_checks import engine_of, place_of, places_of, request_keys
from perseid.api.reporting import reporting
from perseid.api.run import Run
from perseid.engines import driver
from perseid.engines.base import Engine
from perseid.engines.engine_names import engine_class, engine_of_run
from perseid.errors import BadInputError, NotFoundError, PerseidError
from perseid.pipeline import layout
from perseid.pipeline.events import Report, StageEvent
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_state import finished
from perseid.storage import Location, Storage

Data = str | Path | Sequence[str | Path] | RunRequest


def run(
    data: Data | None = None,
    *,
    engine: str | Engine = "local",
    replace: bool = False,
    detach: bool = False,
    progress: bool | Report = True,
    **keys: Any,
) -> Run:
    """Run a model over every partition of a survey.

    Parameters
    ----------
    data
        Folder of partitions (path or URL), a list of partitions, or a whole `RunRequest`.
    engine
        ``local``, ``slurm``, ``dask``, ``aws``, or an engine object.
    replace
        Remove an earlier run that is at the results' place.
    detach
        Return as soon as the run has started, if the engine supports that.
    progress
        True: a bar in a terminal or notebook; False: nothing; or a function that is called with
        each event.
    **keys
        The request's keys, such as ``model``, ``world_size``, ``precision``, ``results``; see
        ``docs/reference/request.md``. Without ``results`` the engine chooses a new place: on this
        machine, a folder below ``runs/``.

    Returns
    -------
    Run
        The run after it has ended, complete or not (`Run.incomplete`); with `detach`, still
        running.

    Raises
    ------
    BadInputError
        A key or its value is invalid, or the data has no partition.
    NotFoundError
        The data does not exist.
    RunError
        Another run is at the place for the results.
    RunInterruptedError
        The user stopped it.

    Examples
    --------
    >>> run = perseid.run("partitions/", model="mine.onnx", world_size=8)  # doctest: +SKIP
    >>> run.catalogue().to_pandas().head()  # doctest: +SKIP
    """
    engine = engine_of(engine)
    if detach and not engine.capabilities.detach:
        raise BadInputError(
            f"a run on the engine {engine.name} ends with this process, so it cannot be detached"
        )
    request = request_of(data, engine, keys)
    with reporting(progress) as report:
        begun = begin(request, engine, report, replace=replace)
        return _left(begun, report) if detach else begun.wait(progress=report)


def begin(request: RunRequest, engine: Engine, report: Report, *, replace: bool = False) -> Run:
    """Start a run and return immediately; call `Run.wait` or `Run.follow` next, unless the engine
    can detach."""
    manifest, handle = driver.begin(request, engine, report, replace=replace)
    return Run(manifest, engine, handle)


def begin_again(
    url: str, engine: Engine, report: Report, *, allow_model_change: bool = False
) -> Run:
    """Start to compute what is missing from a run; nothing happens if it is complete."""
    store = Storage(url)
    manifest = Manifest.load(store)
    done = finished(store, manifest)
    if done is not None:
        report(StageEvent("resume", driver.NOTHING_TO_DO))
        return Run(manifest, engine, result=done)
    handle = driver.begin_missing(manifest, engine, report, allow_model_change=allow_model_change)
    return Run(manifest, engine, handle)


def resume(
    run: str | Path | Run,
    *,
    engine: str | Engine = "local",
    detach: bool = False,
    allow_model_change: bool = False,
    progress: bool | Report = True,
) -> Run:
    """Compute what is missing from a run, then publish it again; a complete run is left as it is.

    Parameters
    ----------
    run
        A run, its folder or its URL.
    engine, detach, progress
        As for `run`; the engine may differ from the one before.
    allow_model_change
        Continue although the model is not the one that the run started with. The run then becomes
        ``mixed``, never ``complete``.

    Raises
    ------
    NotFoundError
        There is no run at this place.
    RunError
        Another process is working on it.
    BadModelError
        The model is not the one that the run started with, or no longer exists.

    Examples
    --------
    >>> perseid.resume("runs/survey-20261126T101500").incomplete is None  # doctest: +SKIP
    True
    """
    engine = engine_of(engine)
    url = run.url if isinstance(run, Run) else Location.parse(place_of(run, "run")).url
    with reporting(progress) as report:
        going_on = begin_again(url, engine, report, allow_model_change=allow_model_change)
        return _left(going_on, report) if detach else going_on.wait(progress=report)


def _left(run: Run, report: Report) -> Run:
    """Detach from the run, which continues by itself."""
    if said := run.leave():
        report(StageEvent("map", said))
    return run


def open_run(run: str | Path, *, engine: Engine | None = None) -> Run:
    """Open an existing run, finished or running, even if another process started it.

    Parameters
    ----------
    run
        The run's folder or URL; on AWS also its id, or the ARN of an execution.
    engine
        The engine on which it ran; by default read from the run itself.

    Raises
    ------
    NotFoundError
        The run does not exist.

    Examples
    --------
    >>> perseid.open_run("runs/first").status().done  # doctest: +SKIP
    8
    """
    text = place_of(run, "run")
    # A path or URL is tried first, so that only other names cost a request to AWS.
    if text.startswith("arn:") or not Storage(text).exists(layout.MANIFEST):
        text = _located(text, engine)
    store = Storage(text)
    return Run(Manifest.load(store), engine or engine_of_run(store))


def _located(name: str, engine: Engine | None) -> str:
    """Find the URL of a run that is named by id or ARN."""
    # With a slash it can only be a path or URL, so AWS need not be asked.
    if "/" in name and not name.startswith("arn:"):
        return name
    try:
        return (engine or engine_class("aws")()).locate(name)
    except PerseidError as error:
        if name.startswith("arn:"):
            raise
        raise NotFoundError(
            f"there is no run {name} on this machine (no {Storage(name).where(layout.MANIFEST)}), "
            f"and none with that id was found on AWS ({error}); name a run on AWS by its s3:// "
            "URL, its id or an execution's ARN"
        ) from error


def request_of(data: Data | None, engine: Engine, keys: Mapping[str, object]) -> RunRequest:
    """Build the request from the arguments of `run`, with a place for the results."""
    # Parsed again together with the keys, so that the same checks apply to all of them.
    plain = request_keys(keys)
    if isinstance(data, RunRequest):
        return RunRequest.parse({**data.given(), **plain}) if plain else data
    if data is not None:
        plain["data"] = places_of(data, "data")
    return RunRequest.parse(with_results(plain, engine))


def with_results(plain: Mapping[str, object], engine: Engine) -> dict[str, object]:
    """Add the engine's default place for results to a request that names none."""
    data = plain.get("data")
    # The request's checks refuse what is no text, so its truth is not asked here.
    placed = [plain[name] for name in ("results", "result_path") if plain.get(name) is not None]
    if any(not isinstance(place, str) or place for place in placed) or not data:
        return dict(plain)
    first = data[0] if isinstance(data, list) else data
    return {**plain, "results": engine.default_results(str(first))}
