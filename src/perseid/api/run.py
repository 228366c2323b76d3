"""A run as a Python object: its status, results, times and cost."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perseid.api.catalogue import Catalogue
from perseid.api.outcome import outcome_lines
from perseid.api.reporting import reporting
from perseid.api.show import PageFrame, TableView, TextView
from perseid.api.status import RankStatus, RunStatus
from perseid.engines import driver
from perseid.engines.base import Engine, RunHandle
from perseid.errors import BadInputError, RunError, RunInterruptedError
from perseid.measure.prices import Prices
from perseid.pipeline import layout
from perseid.pipeline.events import CountEvent, RankEvent, RankState, Report
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.ranks_done import RanksDone
from perseid.pipeline.run_state import RunResult, published, stored_logs
from perseid.pipeline.run_summary import RunSummary
from perseid.pipeline.similar import SimilarObject, SimilarObjects
from perseid.plaintext import html_table
from perseid.storage import Storage

if TYPE_CHECKING:
    from perseid.api.measurements import Measurements


class Run:
    """A run, finished or still running. Created by `run`, `resume` and `open_run`.

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
        self._done = RanksDone(self._store, manifest)
        self._states: dict[int, RankEvent] = {}
        """Where each rank stood when `status` looked, of an engine that follows each of them."""

    @property
    def url(self) -> str:
        """The run's prefix, below which it writes everything."""
        return self._manifest.results_url

    @property
    def id(self) -> str:
        """The unique id that is in every record of the run."""
        return self._manifest.run_id

    @property
    def manifest(self) -> Manifest:
        """What the run was told to do."""
        return self._manifest

    @property
    def engine(self) -> Engine:
        """The engine on which its ranks run, or ran."""
        return self._engine

    @cached_property
    def handle(self) -> RunHandle:
        """The engine's handle of the run."""
        return self._given or self._engine.attach(self._manifest)

    @property
    def result(self) -> RunResult:
        """All results of the run.

        Raises
        ------
        RunError
            Its results are not published yet.
        """
        found = self._result or published(self._store, self._manifest)
        if found is None:
            raise RunError(
                f"the run at {self._store.where()} has no published results yet: wait for it, or "
                "continue it with `perseid.resume`"
            )
        self._result = found
        return found

    @property
    def summary(self) -> RunSummary:
        """``summary.json``: completeness, redshift and anomaly scores, times, cost."""
        return self.result.summary

    @property
    def incomplete(self) -> str | None:
        """One sentence about what is missing from a published run; None if it is complete."""
        return self.result.incomplete

    @property
    def ranks(self) -> tuple[RankStatus, ...]:
        """Status of every rank: its partitions and the content of its record."""
        done = self._done.ranks(published=True)  # each of them is read below
        return tuple(self._rank(rank, rank in done) for rank in range(self._manifest.world_size))

    def leave(self) -> str:
        """Let the run continue without this process. Some engines also publish its results at the
        end.

        Returns
        -------
        A sentence that tells how to publish the results if the engine does not do it; otherwise
        empty.
        """
        return self.handle.leave()

    def status(self) -> RunStatus:
        """The current status; asks the engine if the run may still be running."""
        if self._store.exists(layout.DRIVER) or self._given is not None:
            now = self._running()
            if now is not None:
                return now
        done = published(self._store, self._manifest)
        records = len(self._done.ranks(published=done is not None))
        summary = None if done is None else done.summary
        return RunStatus.ended(self._manifest.world_size, records, summary)

    def wait(self, timeout: float | None = None, *, progress: bool | Report = True) -> Run:
        """Wait until the run has ended and its results are published.

        Parameters
        ----------
        timeout
            Longest wait, seconds; None: no limit.
        progress
            True: show a bar in a terminal or notebook; False: show nothing; or a function that is
            called with each event.

        Raises
        ------
        RunError
            The timeout has expired, or the run failed as a whole.
        RunInterruptedError
            The run was stopped; `resume` computes what is missing.
        """
        with reporting(progress) as report:
            try:
                self.follow(report, timeout)
            except KeyboardInterrupt:
                raise self.left() from None
        return self

    def follow(self, report: Report, timeout: float | None = None) -> None:
        """Like `wait`, for a caller that displays the events and handles Ctrl-C itself."""
        if self._settled():
            return
        with self.handle as handle:
            self._result = driver.follow(
                self._manifest, self._engine, handle, report, timeout=timeout
            )
        self._given = None

    def stop(self) -> bool:
        """Stop the run; finished ranks are kept for `resume`. Returns whether it was still
        running."""
        return self.handle.stop()

    def catalogue(self) -> Catalogue:
        """The run's catalogue, one row per object.

        Raises
        ------
        NotFoundError
            The run has not published a catalogue.
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
        """Find the objects most similar to one by the model's features: an exact search over all
        ranks.

        Features are read rank by rank, so memory is bounded.

        Parameters
        ----------
        object_id
            The object's id in the survey.
        place
            Instead of the id: key of the object's partition, and its row.
        n
            How many objects to return; the first is the object itself.
        use
            ``embedding``, ``residual`` or ``both``; None: the embedding if the model has one.

        Returns
        -------
        list of SimilarObject
            Nearest first: ``distance`` (Euclidean), ``object_id``, ``partition``, ``row``,
            ``z_pred``, ``z_spec``, ``label``.

        Raises
        ------
        NotFoundError
            The object does not exist, or the run has no features.
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

    def table(self, prices: Prices | str | Path | None = None) -> TableView:
        """Memory, duration and cost of the run, as in ``perseid table``.

        `prices` replaces the built-in list; it may be a JSON file. `perseid.measurements` makes
        one table of several runs.
        """
        return self._measured(prices).table("runs")

    def report(self, prices: Prices | str | Path | None = None) -> PageFrame:
        """The page of ``perseid report``: pictures, figures, times and cost.

        Examples
        --------
        >>> run.report().save("report.html")  # doctest: +SKIP
        """
        return PageFrame(str(self), self._measured(prices).report().html)

    def explore(self, *, port: int = 0, height: int = 800) -> TextView:
        """The live page of ``perseid explore``, shown inline in a notebook.

        The page is served until this process ends or its ``close()`` is called. Its ``address``
        opens in any browser on this machine.

        Parameters
        ----------
        port
            Port to listen on; 0 takes a free one.
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
        # `explore` is a layer above this one, so it is imported by name at run time only.
        page: TextView = importlib.import_module("perseid.explore.notebook_page").LivePage(
            self, port, height
        )
        return page

    def logs(self, rank: int | None = None, *, follow: bool = False) -> Iterator[tuple[int, str]]:
        """Iterate over (rank, line) of the ranks' logs; with `follow`, as lines arrive, until the
        run ends."""
        if rank is not None and not 0 <= rank < self._manifest.world_size:
            last = self._manifest.world_size - 1
            raise BadInputError(f"the run has no rank {rank}: it has the ranks 0 to {last}")
        if not follow:
            # Logs in the store are complete; the engine is asked only if there are none yet.
            kept = list(stored_logs(self._store, rank))
            if kept:
                yield from ((number, line) for number, text in kept for line in text.splitlines())
                return
        yield from self.handle.logs(rank, follow=follow)

    def _measured(self, prices: Prices | str | Path | None) -> Measurements:
        from perseid.api.measurements import measurements

        return measurements(self.url, prices=prices)

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
        """Whether its results are published and no process is working on it any more."""
        if self._given is not None or self._store.exists(layout.DRIVER):
            return False
        self._result = self._result or published(self._store, self._manifest)
        return self._result is not None and self._store.exists(layout.ENGINE)

    def _running(self) -> RunStatus | None:
        """The status of a running run from its engine; None if it has ended."""
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
            if isinstance(event, RankEvent):
                self._states[event.rank] = event
        stand = Counter(event.state for event in self._states.values())
        waiting = stand[RankState.WAITING] + stand[RankState.RETRYING]
        rows = sum(event.rows for event in self._states.values())
        return RunStatus(
            "running", "map", world_size, len(self._done.ranks(published=False)),
            stand[RankState.RUNNING], waiting, stand[RankState.FAILED], rows,
        )  # fmt: skip

    def _rank(self, rank: int, has_record: bool) -> RankStatus:
        keys = tuple(ref.key for ref in self._manifest.of_rank(rank))
        record = self._done.record(rank) if has_record else None
        if record is None:
            return RankStatus(rank, keys, False)
        seconds, failed = record.stages.get("total", 0.0), [error for _, error in record.failed]
        return RankStatus(rank, keys, True, record.rows, seconds, record.attempt, "; ".join(failed))

    def stopped(self) -> RunInterruptedError:
        """The error to raise when the user stopped the run."""
        return driver.stopped(self._manifest, self._engine)

    def left(self) -> RunInterruptedError:
        """The error to raise when the user stopped waiting, which stops a run that cannot be
        detached."""
        if not self._engine.capabilities.detach:
            return self.stopped()
        return RunInterruptedError(
            f"{self.id} continues without this process; `perseid status {self.url}` says how far "
            "it is, "
            f"`perseid status {self.url} --stop` stops it"
        )
