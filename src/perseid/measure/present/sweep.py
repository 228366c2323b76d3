"""A grid of runs and the published figures of it: time, throughput and cost, each defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from perseid.measure.grid import DEFAULT_BATCH
from perseid.measure.present import html
from perseid.measure.present.charts import Series, lines
from perseid.measure.present.table import bill, partition_table, run_table
from perseid.measure.present.text import plural
from perseid.measure.prices import Prices
from perseid.measure.runs import MIB, MeasuredRun, Place, size_mb

CHART_WIDTH = 490.0


@dataclass(frozen=True)
class Figure:
    """One figure of a sweep."""

    name: str
    """Of its file."""
    title: str
    what: str
    """The definition of what is drawn."""
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    x_log: bool = False

    def svg(self, width: float = CHART_WIDTH, kind: str = "", style: str = "") -> str:
        """The chart."""
        return lines(
            self.series, width, self.x_name, self.y_name, kind=kind, style=style, x_log=self.x_log
        )

    def file(self) -> str:
        """The chart as a file of its own, with its colours."""
        return self.svg(CHART_WIDTH, "", html.style())


Value = Callable[[MeasuredRun], float | None]


def figures(runs: Sequence[MeasuredRun], prices: Prices) -> list[Figure]:
    """The figures that the runs allow: against data size, batch size and world size."""
    measures = _measures(prices)
    plain = [run for run in runs if _batch(run) == _usual_batch(runs) and _one_a_file(run)]
    drawn: list[Figure] = []
    for name, (title, what, y_name, value) in measures.items():
        drawn += _figure(
            f"{name}-data",
            f"{title} against data size",
            what,
            "data size (MB)",
            y_name,
            plain,
            data_mb,
            value,
        )
    same = [run for run in runs if _one_a_file(run) and data_mb(run) == _largest(runs)]
    for name in ("whole", "model", "a"):
        title, what, y_name, value = measures[name]
        drawn += _figure(
            f"{name}-batch",
            f"{title} against batch size",
            what,
            "batch size (rows)",
            y_name,
            same,
            lambda run: float(run.batch_size or 0),
            value,
            log=True,
        )
    wide = [
        run for run in runs if _batch(run) == _usual_batch(runs) and data_mb(run) == _largest(runs)
    ]
    for name in ("whole", "map"):
        title, what, y_name, value = measures[name]
        drawn += _figure(
            f"{name}-world",
            f"{title} against world size",
            what,
            "world size (ranks)",
            y_name,
            wide,
            lambda run: float(run.expected or 0),
            value,
        )
    return drawn


def _measures(prices: Prices) -> dict[str, tuple[str, str, str, Value]]:
    def cost(run: MeasuredRun) -> float | None:
        found = bill(run, prices)
        return None if found is None else found.total

    def throughput(which: str) -> Value:
        return lambda run: run.throughput().get(which)

    return {
        "whole": (
            "Whole run",
            "from the start of initialize to the end of summarize",
            "seconds",
            lambda run: run.whole.seconds if run.whole else None,
        ),
        "map": (
            "Map",
            "from the first start of a worker to the last end",
            "seconds",
            lambda run: run.map.seconds if run.map else None,
        ),
        "model": (
            "Model time",
            "median over ranks of the time in the model",
            "seconds",
            lambda run: median(m.seconds for m in run.model) if run.model else None,
        ),
        "a": (
            "Throughput (a)",
            "sum over ranks of bits of images and magnitudes / model time",
            "Gb/s",
            throughput("a"),
        ),
        "b": ("Throughput (b)", "all bits / time of the map", "Gb/s", throughput("b")),
        "c": ("Throughput (c)", "all bits / time of the whole run", "Gb/s", throughput("c")),
        "cost": (
            "Cost as billed",
            "configured memory x billed duration of every invocation, "
            "requests, transitions, S3, logs: what these invocations would have cost on AWS",
            "USD",
            cost,
        ),
    }


def _figure(
    name: str,
    title: str,
    what: str,
    x_name: str,
    y_name: str,
    runs: Sequence[MeasuredRun],
    x: Value,
    y: Value,
    *,
    log: bool = False,
) -> list[Figure]:
    """One figure, a line a partition size; none where no line has two points."""
    groups: dict[str, dict[float, list[tuple[float, bool]]]] = {}
    for run in runs:
        at, value = x(run), y(run)
        if at and value is not None:
            points = groups.setdefault(run.partition or "?", {})
            points.setdefault(at, []).append((value, run.is_complete is True))
    if all(len(points) < 2 for points in groups.values()):
        return []
    series = tuple(_series(label, points) for label, points in sorted(groups.items(), key=_size))
    return [Figure(name, title, what, x_name, y_name, series, log)]


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
    """Nominal size of the data, MB of 2^20 bytes: as its result path says, else of its files."""
    nominal = Place("", run.data or "", "").data_gb
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
    """512 where some run has it, else the largest."""
    sizes = {_batch(run) for run in runs}
    return DEFAULT_BATCH if DEFAULT_BATCH in sizes else max(sizes, default=DEFAULT_BATCH)


def _one_a_file(run: MeasuredRun) -> bool:
    """Whether it had a rank for each partition."""
    if run.folder is None:
        return True
    return run.folder.manifest.world_size == len(run.folder.manifest.partitions)


def render_sweep(runs: Sequence[MeasuredRun], prices: Prices | None = None) -> str:
    """One page with the figures and both tables of a sweep."""
    prices = prices or Prices()
    bad = [run for run in runs if run.is_complete is not True]
    state = "incomplete" if bad else "complete"
    words = f"{plural(len(runs), 'run')}, {len(runs) - len(bad)} of them complete."
    if bad:
        words += " Incomplete: " + ", ".join(
            f"{_tail(run.name)} ({run.received} of {run.expected} ranks)" for run in bad
        )
    head = (
        '<p class="eyebrow">perseid sweep</p>\n<h1>Time, throughput and cost over a grid</h1>\n'
        f'<p class="status {state}" role="status">{escape(words)}</p>'
    )
    drawn = "\n".join(_figure_section(figure) for figure in figures(runs, prices))
    sections = [f'<div class="pair">{drawn}</div>' if drawn else _nothing_to_draw()]
    for ident, table in (
        ("runs", run_table(runs, prices)),
        ("partitions", partition_table(runs, prices)),
    ):
        sections.append(html.section(ident, table.title, "", html.from_table(table)))
    return html.page("perseid sweep", head, sections, "Made by perseid")


def _nothing_to_draw() -> str:
    words = "Every value of the grid was swept at one point only: there is no line to draw."
    return html.section("figures", "Figures", "", f"<p>{words}</p>")


def _figure_section(figure: Figure) -> str:
    lead = f"{escape(figure.what[0].upper() + figure.what[1:])}. Dots are medians of the "
    lead += "repetitions, bars their range; open dots: a run there was incomplete."
    body = html.figure(
        lambda width, kind: figure.svg(width, kind), "", max(CHART_WIDTH, html.NARROW)
    )
    return html.section(figure.name, figure.title, lead, body)


def _tail(name: str) -> str:
    return "/".join(name.rstrip("/").split("/")[-3:])
