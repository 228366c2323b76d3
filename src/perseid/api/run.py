"""A run as a Python object: where it stands, what it found, how long it took."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property

from perseid.api.catalogue import Catalogue
from perseid.api.outcome import outcome_lines
from perseid.api.reporting import reporting
from perseid.api.show import PageFrame, TableView, TextView, html_table
from perseid.api.status import RankStatus, RunStatus
from perseid.engines import driver
from perseid.engines.base import Engine, RunHandle
from perseid.errors import BadInputError, NotFoundError, RunError, RunInterruptedError
from perseid.jsontext import parse_json
from perseid.measure.prices import Prices
from perseid.pipeline import layout
from perseid.pipeline.events import CountEvent, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.run_state import RunResult, published, stored_logs
from perseid.pipeline.run_summary import RunSummary
from perseid.pipeline.similar import SimilarObject, SimilarObjects
from perseid.pipeline.stored import StoredRecord
from perseid.storage import Storage


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
    def summary(self) -> RunSummary:
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

    def leave(self) -> str:
        """Let it go on by itself; where the engine can, its results are published at its end.

        Returns
        -------
        A sentence that says how it gets published where nothing does it by itself; else empty.
        """
        return self.handle.leave()

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
        with reporting(progress) as report:
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

    def similar(
        self,
        object_id: int | str | None = None,
        *,
        place: tuple[str, int] | None = None,
        n: int = 100,
        use: str | None = None,
    ) -> list[SimilarObject]:
        """The objects most like one, by the features that the model gave: exact, over all ranks.

        Features come out of the store rank by rank, so memory is bounded.

        Parameters
        ----------
        object_id
            The object's id in the survey.
        place
            Or where it lies: key of its partition, and row.
        n
            How many objects; the first is the object itself.
        use
            ``embedding``, ``residual`` or ``both``; None: the embedding where the model has one.

        Returns
        -------
        list of SimilarObject
            Nearest first: ``distance`` (Euclidean), ``object_id``, ``partition``, ``row``,
            ``z_pred``, ``z_spec``, ``label``.

        Raises
        ------
        NotFoundError
            There is no such object, or the run has no features.
        BadInputError
            Several objects have the id, or the object has no features.

        Examples
        --------
        >>> for one in run.similar(1237668296598749280, n=5):  # doctest: +SKIP
        ...     print(one.object_id, one.distance)
        """
        if (object_id is None) == (place is None):
            raise BadInputError("name the object by its id, or by place=(partition, row)")
        found = SimilarObjects(self._store, self._manifest, use)
        if place is not None:
            return found.of_place(*place, n)
        assert object_id is not None
        return found.of_id(object_id, n)

    def table(self, prices: Prices | None = None) -> TableView:
        """Memory, duration and cost of the run, as ``perseid table`` prints them."""
        from perseid.measure.present.run_tables import run_table
        from perseid.measure.sources.load import load_runs

        return TableView([run_table(load_runs([self.url]), prices or Prices())])

    def report(self, prices: Prices | None = None) -> PageFrame:
        """The page of ``perseid report``: pictures, figures, times and cost.

        Examples
        --------
        >>> run.report().save("report.html")  # doctest: +SKIP
        """
        from perseid.measure.present.report import render_report
        from perseid.measure.sources.load import load_runs

        (measured,) = load_runs([self.url])
        return PageFrame(str(self), render_report(measured, prices))

    def explore(self, *, port: int = 0, height: int = 800) -> TextView:
        """The live page of ``perseid explore``, shown inline in a notebook.

        It is served from this process until it ends or the page's ``close()`` is called; its
        ``address`` opens in any browser of this machine.

        Parameters
        ----------
        port
            Where to listen; 0 takes a free one.
        height
            Pixels of the page in a cell.

        Raises
        ------
        NotInstalledError
            The extra ``explore`` is not installed.

        Examples
        --------
        >>> run.explore()  # doctest: +SKIP
        explore    http://127.0.0.1:40821/Zk3…/
        """
        # The page sits above this interface: by name, so that nothing below needs it.
        page: TextView = importlib.import_module("perseid.explore.notebook_page").LivePage(
            self, port, height
        )
        return page

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
        """Whether its results are published and no process works on it any more."""
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

    def _record(self, rank: int) -> StoredRecord | None:
        key = layout.done_record(rank, script=self._manifest.script is not None)
        try:
            plain = parse_json(self._store.get(key))
            record = StoredRecord.of(plain, key) if isinstance(plain, dict) else None
        except (NotFoundError, ValueError, RunError):
            return None
        return record if record is not None and record.run_id == self.id else None

    def _rank(self, rank: int, has_record: bool) -> RankStatus:
        keys = tuple(ref.key for ref in self._manifest.of_rank(rank))
        record = self._record(rank) if has_record else None
        if record is None:
            return RankStatus(rank, keys, False)
        seconds, failed = record.stages.get("total", 0.0), [error for _, error in record.failed]
        return RankStatus(rank, keys, True, record.rows, seconds, record.attempt, "; ".join(failed))

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
