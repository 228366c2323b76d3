"""Begin a run, go on with one, find one again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        ``local``, ``aws``, or an engine object.
    replace
        Remove a former run that is at the place for the results.
    detach
        Return as soon as the run has begun; only where the engine can.
    progress
        True: a bar in a terminal or notebook; False: nothing; or a function that is called with
        each event.
    **keys
        The request's keys, such as ``model``, ``world_size``, ``precision``, ``results``; see
        ``docs/reference/request.md``. Without ``results`` the engine chooses a fresh place: here,
        a folder below ``runs/``.

    Returns
    -------
    Run
        Ended, complete or not (`Run.incomplete`), unless `detach` is given.

    Raises
    ------
    BadInputError
        A key or its value cannot be used, or the data holds no partition.
    NotFoundError
        There is no such data.
    RunError
        Another run is at the place for the results.
    RunInterruptedError
        The user stopped it.

    Examples
    --------
    >>> run = perseid.run("partitions/", model="mine.onnx", world_size=8)  # doctest: +SKIP
    >>> run.catalogue().to_pandas().head()  # doctest: +SKIP
    """
    engine = engine_class(engine)() if isinstance(engine, str) else engine
    if detach and not engine.capabilities.detach:
        raise BadInputError(
            f"a run of the engine {engine.name} ends with this process: it cannot be detached"
        )
    request = _request(data, engine, keys)
    with reporting(progress) as report:
        begun = begin(request, engine, report, replace=replace)
        return _left(begun, report) if detach else begun.wait(progress=report)


def begin(request: RunRequest, engine: Engine, report: Report, *, replace: bool = False) -> Run:
    """Begin a run and return at once; `Run.wait` or `Run.follow` must come next, unless the engine
    can detach."""
    manifest, handle = driver.begin(request, engine, report, replace=replace)
    return Run(manifest, engine, handle)


def begin_again(
    url: str, engine: Engine, report: Report, *, allow_model_change: bool = False
) -> Run:
    """Begin to work on what is missing of a run; of a complete one nothing is."""
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
    """Work on what is missing of a run, then publish it again; a complete one is left as it is.

    Parameters
    ----------
    run
        A run, its folder or its URL.
    engine, detach, progress
        As for `run`; the engine may be another one than before.
    allow_model_change
        Go on where the model is not the one that the run began with; the run is ``mixed`` then,
        never ``complete``.

    Raises
    ------
    NotFoundError
        There is no run.
    RunError
        Another process works on it.
    BadModelError
        The model is not the one that the run began with, or is gone.

    Examples
    --------
    >>> perseid.resume("runs/survey-20261126T101500").incomplete is None  # doctest: +SKIP
    True
    """
    engine = engine_class(engine)() if isinstance(engine, str) else engine
    url = run.url if isinstance(run, Run) else Location.parse(str(run)).url
    with reporting(progress) as report:
        going_on = begin_again(url, engine, report, allow_model_change=allow_model_change)
        return _left(going_on, report) if detach else going_on.wait(progress=report)


def _left(run: Run, report: Report) -> Run:
    """The run, which goes on by itself."""
    if said := run.leave():
        report(StageEvent("map", said))
    return run


def open_run(run: str | Path, *, engine: Engine | None = None) -> Run:
    """Find a run again, finished or running, also one that another process began.

    Parameters
    ----------
    run
        Its folder or URL; on AWS also its id, or the ARN of an execution.
    engine
        Where it ran; found out from the run itself where it is not given.

    Raises
    ------
    NotFoundError
        There is no such run.

    Examples
    --------
    >>> perseid.open_run("runs/first").status().done  # doctest: +SKIP
    8
    """
    text = str(run)
    # A path or URL is tried first: only what is none of them costs a request to AWS.
    if text.startswith("arn:") or not Storage(text).exists(layout.MANIFEST):
        text = _located(text, engine)
    store = Storage(text)
    return Run(Manifest.load(store), engine or engine_of_run(store))


def _located(name: str, engine: Engine | None) -> str:
    """The URL of a run that has another name."""
    if "/" in name and not name.startswith("arn:"):
        return name
    try:
        return (engine or engine_class("aws")()).locate(name)
    except PerseidError as error:
        if name.startswith("arn:"):
            raise
        raise NotFoundError(
            f"there is no run {name} here (no {Storage(name).where(layout.MANIFEST)}), nor can one "
            f"of that id be found on AWS ({error}); name a run on AWS by its s3:// URL, its id or "
            "an execution's ARN"
        ) from error


def _request(data: Data | None, engine: Engine, keys: Mapping[str, object]) -> RunRequest:
    """The request of `run`'s arguments, with a place for the results."""
    # Parsed again with the further keys, so that the same checks hold for all of them.
    if isinstance(data, RunRequest):
        return RunRequest.parse({**data.given(), **keys}) if keys else data
    plain = dict(keys)
    if data is not None:
        plain["data"] = str(data) if isinstance(data, str | Path) else [str(one) for one in data]
    return RunRequest.parse(with_results(plain, engine))


def with_results(plain: Mapping[str, object], engine: Engine) -> dict[str, object]:
    """A request's keys, with the engine's own place for results where they name none."""
    data = plain.get("data")
    if plain.get("results") or plain.get("result_path") or not data:
        return dict(plain)
    first = data[0] if isinstance(data, list) else data
    return {**plain, "results": engine.default_results(str(first))}
