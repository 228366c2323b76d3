"""Figures of a grid of runs, like the published ones: time, throughput and cost, each defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from perseid.measure.grid import DEFAULT_BATCH
from perseid.measure.measured_run import MIB, MeasuredRun, ResultPath, size_mb
from perseid.measure.present import pages
from perseid.measure.present.charts import LineChart, Series
from perseid.measure.present.run_tables import bill, partition_table, run_table
from perseid.measure.present.text import TextTable
from perseid.measure.present.view import (
    NARROW,
    DataTable,
    Figure,
    Head,
    PageView,
    Paragraph,
    Section,
    StatusView,
    TableEntry,
)
from perseid.measure.present.workers import absent
from perseid.measure.prices import Prices
from perseid.plaintext import counted

CHART_WIDTH = 490.0
"""Width of a figure in pixels: two stand side by side on a page."""
NOTES = "notes"
"""Key of the column with notes."""
NO_LINE = "Every value of the grid was swept at one point only: there is no line to draw."


@dataclass(frozen=True)
class SweepFigure:
    """One figure of a sweep."""

    name: str
    """Name of its file, without extension."""
    title: str
    what: str
    """Definition of the measure on the vertical axis."""
    chart: LineChart
    repeated: bool
    """Whether any point is a median over several runs."""

    @property
    def series(self) -> tuple[Series, ...]:
        """One line per partition size."""
        return self.chart.series

    def file(self) -> str:
        """The chart as a file of its own: SVG with its colors in attributes."""
        return self.chart.file(CHART_WIDTH)


Value = Callable[[MeasuredRun], float | None]


def figures(runs: Sequence[MeasuredRun], prices: Prices) -> list[SweepFigure]:
    """Make the figures that the runs allow: against data size, batch size and world size."""
    measures = _measures(prices)
    usual, largest = _usual_batch(runs), _largest(runs)
    one_a_file = [run for run in runs if _one_a_file(run)]
    # Each figure varies one setting: only runs that agree in the others belong to it.
    axes = (
        (_DATA, tuple(measures), [run for run in one_a_file if _batch(run) == usual]),
        (_BATCH, ("whole", "model", "a"), [r for r in one_a_file if data_mb(r) == largest]),
        (
            _WORLD,
            ("whole", "map"),
            [run for run in runs if _batch(run) == usual and data_mb(run) == largest],
        ),
    )
    drawn: list[SweepFigure] = []
    for axis, names, chosen in axes:
        for name in names:
            drawn += _figure(f"{name}-{axis.name}", measures[name], axis, chosen)
    return drawn


@dataclass(frozen=True)
class _Measure:
    """The vertical axis of a figure."""

    title: str
    what: str
    unit: str
    value: Value


@dataclass(frozen=True)
class _Axis:
    """The horizontal axis of a figure."""

    name: str
    title: str
    words: str
    value: Value
    log: bool = False


def _measures(prices: Prices) -> dict[str, _Measure]:
    def cost(run: MeasuredRun) -> float | None:
        found = bill(run, prices)
        return None if found is None else found.total

    def throughput(which: str) -> Value:
        return lambda run: run.throughput().get(which)

    return {
        **_times(),
        "a": _Measure(
            "Throughput (a)",
            "sum over ranks of bits of images and magnitudes / model time",
            "Gb/s",
            throughput("a"),
        ),
        "b": _Measure("Throughput (b)", "all bits / time of the map", "Gb/s", throughput("b")),
        "c": _Measure(
            "Throughput (c)", "all bits / time of the whole run", "Gb/s", throughput("c")
        ),
        "cost": _Measure(
            "Cost as billed",
            "configured memory x billed duration of every invocation, "
            "requests, transitions, S3, logs: what these invocations would have cost on AWS",
            "USD",
            cost,
        ),
    }


def _times() -> dict[str, _Measure]:
    return {
        "whole": _Measure(
            "Whole run",
            "from the start of initialize to the end of summarize",
            "seconds",
            lambda run: run.whole.seconds if run.whole else None,
        ),
        "map": _Measure(
            "Map",
            "from the first start of a worker to the last end",
            "seconds",
            lambda run: run.map.seconds if run.map else None,
        ),
        "model": _Measure(
            "Model time",
            "median over ranks of the time in the model",
            "seconds",
            lambda run: median(m.seconds for m in run.model) if run.model else None,
        ),
    }


def _figure(
    name: str, measure: _Measure, axis: _Axis, runs: Sequence[MeasuredRun]
) -> list[SweepFigure]:
    """Make one figure with a line per partition size; none if no line has two points."""
    groups: dict[str, dict[float, list[tuple[float, bool]]]] = {}
    for run in runs:
        at, value = axis.value(run), measure.value(run)
        # 0 means unknown here, and has no place on a logarithmic axis.
        if at and value is not None:
            points = groups.setdefault(run.partition or "?", {})
            points.setdefault(at, []).append((value, run.is_complete is not False))
    if all(len(points) < 2 for points in groups.values()):
        return []
    # By size, not by name: 100MB comes after 25MB.
    series = tuple(_series(label, points) for label, points in sorted(groups.items(), key=_size))
    repeated = any(len(values) > 1 for points in groups.values() for values in points.values())
    chart = LineChart(series, axis.words, measure.unit, axis.log)
    title = f"{measure.title} against {axis.title}"
    return [SweepFigure(name, title, measure.what, chart, repeated)]


def _size(item: tuple[str, object]) -> float:
    return size_mb(item[0]) or 0.0


def _series(label: str, points: Mapping[float, Sequence[tuple[float, bool]]]) -> Series:
    drawn = tuple(
        (at, median(v for v, _ in values), min(v for v, _ in values), max(v for v, _ in values))
        for at, values in sorted(points.items())
    )
    bad = tuple(at for at, values in points.items() if not all(whole for _, whole in values))
    return Series(f"partitions of {label}", drawn, bad)


def data_mb(run: MeasuredRun) -> float | None:
    """Nominal size of the data in MB of 2^20 bytes, from the result path or else from the files."""
    nominal = ResultPath("", run.data or "", "").data_gb
    if nominal is not None:
        return round(nominal * 1024, 3)
    if run.folder is None:
        return None
    return round(sum(ref.size for ref in run.folder.manifest.partitions) / MIB, 1)


def _largest(runs: Iterable[MeasuredRun]) -> float:
    return max((data_mb(run) or 0.0 for run in runs), default=0.0)


def _batch(run: MeasuredRun) -> int:
    return run.batch_size or DEFAULT_BATCH


def _usual_batch(runs: Sequence[MeasuredRun]) -> int:
    """The batch size of most figures: 512 if any run has it, otherwise the largest."""
    sizes = {_batch(run) for run in runs}
    return DEFAULT_BATCH if DEFAULT_BATCH in sizes else max(sizes, default=DEFAULT_BATCH)


def _one_a_file(run: MeasuredRun) -> bool:
    """Whether a run had one rank per partition; assumed for runs without a folder."""
    if run.folder is None:
        return True
    return run.folder.manifest.world_size == len(run.folder.manifest.partitions)


_DATA = _Axis("data", "data size", "data size (MB)", data_mb)
_BATCH = _Axis(
    "batch", "batch size", "batch size (rows)", lambda run: float(run.batch_size or 0), log=True
)
_WORLD = _Axis("world", "world size", "world size (ranks)", lambda run: float(run.expected or 0))


def render_sweep(runs: Sequence[MeasuredRun], prices: Prices | None = None) -> str:
    """Render one page with the figures and both tables of a sweep."""
    prices = prices or Prices()
    drawn = tuple(_figure_section(figure) for figure in figures(runs, prices))
    page = PageView(
        title="perseid sweep",
        eyebrow="perseid sweep",
        heading="Time, throughput and cost over a grid",
        sub="",
        status=_status(runs),
        tiles=(),
        wide_tiles=(),
        sections=(
            *(drawn or (absent("figures", "Figures", NO_LINE),)),
            *(_table_section("runs", run_table(runs, prices))),
            *(_table_section("partitions", partition_table(runs, prices))),
        ),
        foot="Made by perseid",
    )
    return pages.render(page)


def _status(runs: Sequence[MeasuredRun]) -> StatusView:
    # If completeness is unknown, the run does not count as complete.
    bad = [run for run in runs if run.is_complete is not True]
    word = "Incomplete" if bad else "Complete"
    words = f"{counted(len(runs), 'run')}, {len(runs) - len(bad)} of them complete."
    if bad:
        words += " Not complete: " + ", ".join(
            f"{_tail(run.name)} ({run.received} of "
            f"{'an unknown number of' if run.expected is None else run.expected} ranks)"
            for run in bad
        )
    return StatusView(not bad, word, words)


def _figure_section(figure: SweepFigure) -> Section:
    lead = f"{figure.what[0].upper()}{figure.what[1:]}. "
    lead += "Dots are medians of the repetitions" if figure.repeated else "Each dot is one run"
    if any(low < high for one in figure.series for _, _, low, high in one.points):
        lead += ", bars their range"
    if any(one.incomplete for one in figure.series):
        lead += "; open dots: a run there was incomplete"
    drawn = Figure.drawn(figure.chart.render, "", max(CHART_WIDTH, NARROW))
    return Section(figure.name, figure.title, f"{lead}.", (drawn,), half=True)


def _table_section(ident: str, table: TextTable) -> tuple[Section]:
    """Section with a table, without its empty columns; notes appear beneath the row's numbers."""
    columns = tuple(column for column in table.filled() if column.key != NOTES)
    beneath = tuple(row[NOTES].text for row in table.rows if NOTES in row)
    heads = tuple(Head(c.head, "number" if c.numeric else "word") for c in columns)
    rows = tuple(tuple(TableEntry(row[c.key].text) for c in columns) for row in table.rows)
    notes = tuple(Paragraph(note, note=True) for note in table.footnotes)
    shown = DataTable(heads, rows, row_notes=beneath, stacks=True)
    return (Section(ident, table.title, parts=(shown, *notes)),)


def _tail(name: str) -> str:
    return "/".join(name.rstrip("/").split("/")[-3:])
