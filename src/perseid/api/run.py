"""Runs as Python objects: begin one, find one again, and read what it found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from perseid.api.catalogue import Catalogue
from perseid.api.notebook import NotebookProgress, in_notebook
from perseid.api.outcome import outcome_lines
from perseid.api.progress import RunProgress, count_line
from perseid.api.show import Page, TableView, html_table
from perseid.engines import driver
from perseid.engines.base import Engine, RunHandle
from perseid.engines.names import engine_class, engine_of_run
from perseid.errors import (
    BadInputError,
    NotFoundError,
    PerseidError,
    RunError,
    RunInterruptedError,
)
from perseid.measure.prices import Prices
from perseid.pipeline import layout
from perseid.pipeline.events import CountEvent, Event, Report, StageEvent
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.run_state import RunResult, finished, published, stored_logs
from perseid.storage import Location, Storage

Data = str | Path | Sequence[str | Path] | RunRequest


@dataclass(frozen=True)
class RankStatus:
    """One rank of a run, as far as its record says."""

    rank: int
    """0 <= rank < the run's world size."""
    partitions: tuple[str, ...]
    """Keys of its partitions; none for a surplus rank."""
    done: bool
    """Whether its record is there."""
    rows: int = 0
    """Objects that it predicted."""
    seconds: float = 0.0
    """Of its own work."""
    attempt: int = 0
    """Which attempt wrote the record, from 1."""
    error: str = ""
    """Why it, or one of its partitions, is missing; empty where nothing is."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands at one moment."""

    state: str
    """``running``, ``complete``, ``incomplete``, or ``not ended`` where nobody works on it."""
    stage: str
    """The step that it is in, or ``ended``."""
    ranks: int
    """Its world size."""
    done: int
    """Ranks with a record."""
    running: int = 0
    waiting: int = 0
    failed: int = 0
    rows: int = 0
    """Objects predicted by ranks that are done, where the engine counts them."""
    seconds: float = 0.0
    """Since it began, where the engine says so."""
    usd: float = 0.0
    """About what its workers cost so far, where the engine says so."""

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.state}: {self.done} of {self.ranks} ranks have a record"
        return count_line(
            CountEvent(
                self.stage, self.seconds, self.ranks, self.waiting, self.running, self.done,
                self.failed, rows=self.rows, usd=self.usd,
            )
        )  # fmt: skip


class Run:
    """A run, finished or going on. Made by `run`, `resume` and `open_run`.

    Examples
    --------
    >>> run = perseid.open_run("s3://bucket/runs/first")  # doctest: +SKIP
    >>> run.status().state  # doctest: +SKIP
    'running'
    >>> run.wait().summary["redshift"]["nmad"]  # doctest: +SKIP
    0.021
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        handle: RunHandle | None = None,
        result: RunResult | None = None,
    ) -> None:
        self._manifest = manifest
        self._engine = engine
        self._given = handle
        self._store = Storage(manifest.results_url)
        self._result = result

    @property
    def url(self) -> str:
        """The run's own prefix: everything that it wrote lies below it."""
        return self._manifest.results_url

    @property
    def id(self) -> str:
        """The unique name that every record of the run bears."""
        return self._manifest.run_id

    @property
    def manifest(self) -> Manifest:
        """What the run was told to do."""
        return self._manifest

    @property
    def engine(self) -> Engine:
        """Where its ranks work, or worked."""
        return self._engine

    @cached_property
    def handle(self) -> RunHandle:
        """The engine's own view of the run."""
        return self._given or self._engine.attach(self._manifest)

    @property
    def result(self) -> RunResult:
        """Everything that came of the run.

        Raises
        ------
        RunError
            Its results are not published yet.
        """
        found = self._result or published(self._store, self._manifest)
        if found is None:
            raise RunError(
                f"the run at {self._store.where()} has published nothing yet: wait for it, or go "
                "on with it by `perseid.resume`"
            )
        self._result = found
        return found

    @property
    def summary(self) -> dict[str, Any]:
        """``summary.json``: completeness, redshift and anomaly scores, times, cost."""
        return self.result.summary

    @property
    def incomplete(self) -> str | None:
        """One sentence that names what is missing of a published run; None where nothing is."""
        return self.result.incomplete

    @property
    def ranks(self) -> tuple[RankStatus, ...]:
        """Every rank, with its partitions and what its record says."""
        done = self._with_record()
        return tuple(self._rank(rank, rank in done) for rank in range(self._manifest.world_size))

    def status(self) -> RunStatus:
        """Where it stands now; asks the engine where it may still be running."""
        if self._store.exists(layout.DRIVER) or self._given is not None:
            now = self._running()
            if now is not None:
                return now
        done = published(self._store, self._manifest)
        state = "not ended" if done is None else str(done.summary["status"])
        return RunStatus(state, "ended", self._manifest.world_size, len(self._with_record()))

    def wait(self, timeout: float | None = None, *, progress: bool | Report = True) -> Run:
        """Until it has ended and its results are published.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.
        progress
            True: a bar in a terminal or notebook; False: nothing; or a function that is called
            with each event.

        Raises
        ------
        RunError
            The time is over, or the run failed as a whole.
        RunInterruptedError
            It was stopped; `resume` goes on with what is missing.
        """
        with _reporting(progress) as report:
            try:
                self.follow(report, timeout)
            except KeyboardInterrupt:
                raise self.left() from None
        return self

    def follow(self, report: Report, timeout: float | None = None) -> None:
        """As `wait`, for a caller that draws the events and handles Ctrl-C itself."""
        if self._settled():
            return
        with self.handle as handle:
            self._result = driver.follow(
                self._manifest, self._engine, handle, report, timeout=timeout
            )
        self._given = None

    def stop(self) -> bool:
        """Stop it; what is done stays and `resume` goes on. Whether there was anything to stop."""
        return self.handle.stop()

    def catalogue(self) -> Catalogue:
        """One row an object.

        Raises
        ------
        NotFoundError
            The run has published none.
        """
        return Catalogue(self._store)

    def table(self, prices: Prices | None = None) -> TableView:
        """Memory, duration and cost of the run, as ``perseid table`` prints them."""
        from perseid.measure.present.table import run_table
        from perseid.measure.sources.load import load_runs

        return TableView([run_table(load_runs([self.url]), prices or Prices())])

    def report(self, prices: Prices | None = None) -> Page:
        """The page of ``perseid report``: pictures, figures, times and cost.

        Examples
        --------
        >>> run.report().save("report.html")  # doctest: +SKIP
        """
        from perseid.measure.present.report import render_report
        from perseid.measure.sources.load import load_runs

        (measured,) = load_runs([self.url])
        return Page(str(self), render_report(measured, prices))

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """(rank, line) of what the ranks logged; `follow`: as lines come, until the run ends."""
        if rank is not None and not 0 <= rank < self._manifest.world_size:
            last = self._manifest.world_size - 1
            raise BadInputError(f"the run has no rank {rank}: it has the ranks 0 to {last}")
        if not follow:
            kept = list(stored_logs(self._store, rank))
            if kept:
                yield from ((number, line) for number, text in kept for line in text.splitlines())
                return
        yield from self.handle.logs(rank, follow=follow)

    def __str__(self) -> str:
        done = self._result or published(self._store, self._manifest)
        if done is None:
            return f"{self.status()} ({self._store.where()})"
        return "\n".join(outcome_lines(done, self._store))

    def __repr__(self) -> str:
        return f"<Run {self.id} at {self._store.where()}>"

    def _repr_html_(self) -> str:
        done = self._result or published(self._store, self._manifest)
        now = self.status() if done is None else None
        rows = [("state", now.state if now else self.summary["status"]), ("place", self.url)]
        if done is not None:
            ranks, objects = done.summary["ranks"], done.summary["rows"]["received"]
            rows += [("ranks", f"{ranks['received']} of {ranks['expected']}")]
            rows += [("objects", f"{objects:,}"), ("missing", done.incomplete or "nothing")]
        return html_table(("run", self.id), rows)

    def _settled(self) -> bool:
        """Whether its results are published and nobody works on it any more."""
        if self._given is not None or self._store.exists(layout.DRIVER):
            return False
        self._result = self._result or published(self._store, self._manifest)
        return self._result is not None and self._store.exists(layout.ENGINE)

    def _running(self) -> RunStatus | None:
        """What the engine says of a run that goes on; None where it has ended."""
        events = self.handle.poll()
        if self.handle.ended:
            return None
        world_size = self._manifest.world_size
        for event in events:
            if isinstance(event, CountEvent):
                return RunStatus(
                    "running", event.stage, world_size, event.done, event.running, event.waiting,
                    event.failed, event.rows, event.seconds, event.usd,
                )  # fmt: skip
        return RunStatus("running", "map", world_size, len(self._with_record()))

    def _with_record(self) -> set[int]:
        """Ranks that have left a record of ours; a script's own record says nothing."""
        script = self._manifest.script is not None
        names = {info.key for info in self._store.list()}
        ranks = range(self._manifest.world_size)
        return {rank for rank in ranks if layout.done_record(rank, script=script) in names}

    def _record(self, rank: int) -> dict[str, Any]:
        key = layout.done_record(rank, script=self._manifest.script is not None)
        try:
            plain = json.loads(self._store.get(key))
        except (NotFoundError, ValueError):
            return {}
        return plain if isinstance(plain, dict) else {}

    def _rank(self, rank: int, has_record: bool) -> RankStatus:
        keys = tuple(ref.key for ref in self._manifest.of_rank(rank))
        plain = self._record(rank) if has_record else {}
        if plain.get("run_id", self.id) != self.id or not plain:
            return RankStatus(rank, keys, False)
        failed = plain.get("failed_partitions") or ()
        return RankStatus(
            rank,
            keys,
            True,
            int(plain.get("rows", 0)),
            float((plain.get("stages") or {}).get("total", 0.0)),
            int(plain.get("attempt", 1)),
            "; ".join(str(entry.get("error", entry)) for entry in failed),
        )

    def stopped(self) -> RunInterruptedError:
        """The error of a user who stopped the run."""
        return driver.stopped(self._manifest, self._engine)

    def left(self) -> RunInterruptedError:
        """The error of a user who stopped waiting, which ends a run that cannot be detached."""
        if not self._engine.capabilities.detach:
            return self.stopped()
        return RunInterruptedError(
            f"{self.id} goes on without you; `perseid status {self.url}` says how far it is, "
            f"`perseid status {self.url} --stop` stops it"
        )


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
    with _reporting(progress) as report:
        begun = begin(request, engine, report, replace=replace)
        return begun if detach else begun.wait(progress=report)


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
    with _reporting(progress) as report:
        going_on = begin_again(url, engine, report, allow_model_change=allow_model_change)
        return going_on if detach else going_on.wait(progress=report)


def open_run(run: str | Path, *, engine: Engine | None = None) -> Run:
    """Find a run again, finished or running, whoever began it.

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


def _request(data: Data | None, engine: Engine, keys: Mapping[str, Any]) -> RunRequest:
    """The request of `run`'s arguments, with a place for the results."""
    if isinstance(data, RunRequest):
        return RunRequest.parse({**data.given(), **keys}) if keys else data
    plain = dict(keys)
    if data is not None:
        plain["data"] = str(data) if isinstance(data, str | Path) else [str(one) for one in data]
    return RunRequest.parse(with_results(plain, engine))


def with_results(plain: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """A request's keys, with the engine's own place for results where they name none."""
    data = plain.get("data")
    if plain.get("results") or plain.get("result_path") or not data:
        return dict(plain)
    first = data[0] if isinstance(data, list) else data
    return {**plain, "results": engine.default_results(str(first))}


class _reporting:
    """What draws the events: a bar, nothing, or the caller's own function."""

    def __init__(self, progress: bool | Report) -> None:
        self._bar: RunProgress | None = None
        if callable(progress):
            self._report: Report = progress
        elif not progress:
            self._report = _silent
        elif in_notebook():
            self._report = NotebookProgress()
        else:
            self._report = self._bar = RunProgress()

    def __enter__(self) -> Report:
        if self._bar is not None:
            self._bar.__enter__()
        return self._report

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)


def _silent(event: Event) -> None:
    """Nothing is shown."""
