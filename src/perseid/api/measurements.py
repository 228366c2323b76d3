"""Tables and reports of the measurements of any runs, including those of other systems."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from perseid.api.show import PageFrame, TableView
from perseid.errors import BadInputError
from perseid.measure.measured_run import MeasuredRun
from perseid.measure.present.run_tables import partition_table, run_table, tables
from perseid.measure.present.text import FORMATS
from perseid.measure.prices import ARCHITECTURES, Prices, prices_of
from perseid.measure.sources.load import load_runs
from perseid.measure.sources.load_options import LoadOptions
from perseid.plaintext import counted

__all__ = [
    "ARCHITECTURES",
    "FORMATS",
    "WHICH",
    "MeasuredRun",
    "Measurements",
    "measurements",
    "measurements_on_aws",
]

WHICH = ("both", "runs", "partitions")


class Measurements:
    """Memory, duration and cost of several runs. Created by `measurements` and
    `measurements_on_aws`.

    Examples
    --------
    >>> found = perseid.measurements("runs/*")  # doctest: +SKIP
    >>> found.table("runs").rows[0]["cost"]  # doctest: +SKIP
    0.00042
    """

    def __init__(
        self, runs: Sequence[MeasuredRun], prices: Prices | str | Path | None = None
    ) -> None:
        self._runs = tuple(runs)
        self._prices = prices_of(prices)

    @property
    def runs(self) -> tuple[MeasuredRun, ...]:
        """All runs that were found, in the order of the sources."""
        return self._runs

    def table(self, which: str = "both") -> TableView:
        """The tables of ``perseid table``.

        Parameters
        ----------
        which
            ``runs`` (one row per run), ``partitions`` (one row per partition size) or ``both``.

        Raises
        ------
        BadInputError
            There is no such table.
        """
        if which == "both":
            return TableView(tables(self._runs, self._prices))
        if which not in WHICH:
            raise BadInputError(f"there is no table {which!r}: choose one of {', '.join(WHICH)}")
        one = run_table if which == "runs" else partition_table
        return TableView([one(self._runs, self._prices)])

    def report(self) -> PageFrame:
        """The page of ``perseid report``, for a single run of perseid.

        Raises
        ------
        BadInputError
            There are several runs, or the run is one of another system.
        """
        from perseid.measure.present.report import render_report

        if len(self._runs) != 1 or self._runs[0].folder is None:
            names = ", ".join(run.name for run in self._runs[:3])
            raise BadInputError(
                f"{names} is not a single run of perseid (there are {len(self._runs)}): name the "
                "folder that contains its manifest.json"
            )
        text = str(self.table("runs"))
        return PageFrame(text, render_report(self._runs[0], self._prices))

    def __len__(self) -> int:
        return len(self._runs)

    def __add__(self, other: Measurements) -> Measurements:
        return Measurements(self._runs + other.runs, self._prices)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return f"<Measurements of {counted(len(self._runs), 'run')}>"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def measurements(
    *sources: str | Path,
    architecture: str = "x86",
    expected: int | None = None,
    prices: Prices | str | Path | None = None,
) -> Measurements:
    """Find runs and read their measurements.

    Parameters
    ----------
    *sources
        Folder or URL of a run, folder of several, glob, ``combined_data.json``, log file, or
        history of an execution (JSON).
    architecture
        Processor architecture whose prices apply: ``x86`` or ``arm``.
    expected
        How many ranks there should be, if the sources do not say it.
    prices
        Prices to use instead of the built-in list, or the JSON file that contains them.

    Raises
    ------
    BadInputError
        A source contains no run, or is neither a log nor a list of records.
    NotFoundError
        A source does not exist.

    Examples
    --------
    >>> perseid.measurements("runs/*", "published/").table()  # doctest: +SKIP
    """
    if not sources:
        raise BadInputError("nothing to measure: name a run, or a log file")
    options = LoadOptions(architecture, expected)
    return Measurements(load_runs(map(str, sources), options), prices)


def measurements_on_aws(
    log_groups: Sequence[str],
    start: datetime,
    end: datetime | None = None,
    *,
    state_machine: str | None = None,
    architecture: str = "x86",
    expected: int | None = None,
    prices: Prices | str | Path | None = None,
    region: str | None = None,
    profile: str | None = None,
) -> Measurements:
    """Read runs of other systems on AWS from the logs of their functions.

    Parameters
    ----------
    log_groups
        Names, such as ``/aws/lambda/cosmic-executor``.
    start, end
        The time range; its end is now by default. Times without a zone are local times.
    state_machine
        ARN of the state machine whose executions give the times of the steps.
    architecture, expected, prices
        As for `measurements`.
    region, profile
        Region and profile, as of the AWS command line.

    Raises
    ------
    BadInputError
        No invocation was logged in the time range, or its end is before its start.
    NotFoundError
        The log group or the state machine does not exist.

    Examples
    --------
    >>> began = datetime(2026, 11, 22, 10, tzinfo=UTC)  # doctest: +SKIP
    >>> perseid.measurements_on_aws(["/aws/lambda/cosmic-executor"], began)  # doctest: +SKIP
    """
    from perseid.aws.observe.calls import Calls
    from perseid.aws.observe.foreign import group_runs
    from perseid.aws.session import Aws

    calls = Calls(Aws(region, profile))
    end = datetime.now(UTC) if end is None else end
    if not start.timestamp() < end.timestamp():
        raise BadInputError(f"the time range ends at {end}, not after its start at {start}")
    options = LoadOptions(architecture, expected)
    found = group_runs(
        calls, log_groups, start.timestamp(), end.timestamp(), state_machine, options
    )
    return Measurements(found, prices)
