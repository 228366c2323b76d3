"""Charts of a report: density of redshifts, timeline of workers, distribution of durations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from perseid.measure.measured_run import percentiles
from perseid.measure.present.palette import HATCHES, SERIES, STAGES
from perseid.measure.present.svg import CHARACTER, PlotArea, Svg, frame, label, ticks
from perseid.measure.present.text import seconds
from perseid.plaintext import counted

SPLIT_ROW = 9.0
"""Height of a row in pixels from which on it is split into an upper and a lower part."""
HATCHED_ROW = 6.0
"""Height of a row in pixels from which on patterns can be seen."""
OVERLAPPED = ("fetch", "decode")
"""Stages that run beside inference: they get the upper part of a row that is high enough."""
SAMPLE = 26.0
"""Length of a line in a legend, in pixels."""
LEVELS = 8
"""Number of shades in a density plot."""
Bar = tuple[str, float, float]
"""A stage in a timeline: (stage, start, end), times in seconds."""


@dataclass(frozen=True)
class Lane:
    """One rank's row in the timeline."""

    rank: int
    bars: tuple[Bar, ...]
    """Stages, in seconds since the first start of any rank."""
    lost: bool = False
    """Whether the rank left no record."""


def density(
    z_spec: NDArray[np.float64], z_pred: NDArray[np.float64], width: float, kind: str = ""
) -> Markup:
    """Density plot of predicted against spectroscopic redshift, with the line of equality.

    Parameters
    ----------
    z_spec, z_pred
        Redshifts, shape (n,), all finite.
    width
        Width in pixels; the chart is about square.
    """
    # More cells for more objects: about the same number of objects per cell.
    bins = max(24, min(90, int(2.2 * math.sqrt(len(z_spec)))))
    low, high = _redshift_range(z_spec, z_pred)
    outside = redshifts_outside(z_spec, z_pred)
    plot = frame(width, width, (low, high), (low, high))
    plot.grid("spectroscopic redshift", "predicted redshift", x_ticks=5, y_ticks=5)
    counts, edges, _ = np.histogram2d(z_spec, z_pred, bins, ((low, high), (low, high)))
    draw_cells(plot, shades(counts), edges, edges)
    plot.svg.line(plot.x(low), plot.y(low), plot.x(high), plot.y(high), "truth")
    title = (
        f"Density of predicted against spectroscopic redshift of {counted(len(z_spec), 'object')}, "
        f"{outside} of them outside the plot; the dashed line is equality"
    )
    return plot.svg.render(title, kind)


def redshifts_outside(z_spec: NDArray[np.float64], z_pred: NDArray[np.float64]) -> int:
    """Number of objects outside their density plot, whose range leaves out extremes."""
    low, high = _redshift_range(z_spec, z_pred)
    inside = (z_spec >= low) & (z_spec <= high) & (z_pred >= low) & (z_pred <= high)
    return int((~inside).sum())


def _redshift_range(
    z_spec: NDArray[np.float64], z_pred: NDArray[np.float64]
) -> tuple[float, float]:
    """Range of both axes: all but the outermost 0.1 % of both redshifts, with a margin."""
    # A few wrong redshifts must not compress all others into a corner.
    low, high = np.quantile(z_spec, (0.001, 0.999))
    low_pred, high_pred = np.quantile(z_pred, (0.001, 0.999))
    low, high = min(low, low_pred), max(high, high_pred)
    # If all redshifts are equal, the plot still needs a width.
    room = 0.04 * (high - low) or 0.01
    # The margin must not show negative redshifts if there are none.
    return float(max(0.0, low - room) if low >= 0 else low - room), float(high + room)


def shades(counts: NDArray[np.floating | np.integer]) -> NDArray[np.int64]:
    """Shade of each cell, from 0 (empty) to `LEVELS`, by the logarithm of its count."""
    top = counts.max(initial=0)
    if top <= 0:
        return np.zeros(counts.shape, np.int64)
    return np.asarray(np.ceil(LEVELS * np.log1p(counts) / np.log1p(top)), np.int64)


def draw_cells(
    plot: PlotArea,
    levels: NDArray[np.int64],
    x_edges: NDArray[np.float64],
    y_edges: NDArray[np.float64],
    kind: str = "s",
) -> None:
    """Draw cells in shades, all cells of a shade as one path, which keeps the page small.

    Parameters
    ----------
    plot
        Where to draw.
    levels
        Shades, shape (columns, rows): 0 for a cell that is not drawn, otherwise 1 to `LEVELS`.
    x_edges, y_edges
        Cell boundaries, shapes (columns + 1,) and (rows + 1,): ascending, with equal steps in
        pixels.
    kind
        Family of shades in the style sheet.
    """
    # A little wider than a cell, so that no gap shows between neighbors.
    width = abs(plot.x(x_edges[1]) - plot.x(x_edges[0])) + 0.15
    height = abs(plot.y(y_edges[1]) - plot.y(y_edges[0])) + 0.15
    left, top = [plot.x(edge) for edge in x_edges], [plot.y(edge) for edge in y_edges]
    for level in range(1, LEVELS + 1):
        columns, rows = np.nonzero(levels == level)
        boxes = [(left[i], top[j + 1], width, height) for i, j in zip(columns, rows, strict=True)]
        plot.svg.boxes(boxes, f"shade {kind}{level}")


def timeline(lanes: Sequence[Lane], width: float, kind: str = "") -> Markup:
    """Gantt chart of the ranks by stage, legible for one rank and for many hundreds.

    Few ranks get a labeled row each, with fetch and decode in its upper part; many get thin rows.
    """
    row = row_height(len(lanes))
    # A run without any timeline still needs an axis.
    span = max((end for lane in lanes for _, _, end in lane.bars), default=1.0) or 1.0
    height = 28 + row * len(lanes) + 42
    plot = frame(width, height, (0.0, span), (len(lanes), 0.0))
    _rank_axis(plot, lanes, row)
    for value in plot.x.ticks(max(3, int(width / 110))):
        plot.svg.line(plot.x(value), plot.y.start, plot.x(value), plot.y.end, "grid")
        plot.svg.text(plot.x(value), plot.y.start + 17, label(value), "tick", "middle")
    plot.svg.text(plot.x.end, plot.y.start + 34, "seconds since the first start", "name", "end")
    plot.svg.text(4, plot.y.end - 12, "rank", "name")
    for stage in STAGES:
        boxes = _stage_boxes(plot, lanes, stage, row)
        plot.svg.boxes(boxes, f"stage-{stage}")
        # In thin rows a pattern would only blur the color.
        if stage in HATCHES and row >= HATCHED_ROW:
            plot.svg.boxes(boxes, f"hatch-{stage}")
    lost = [(plot.x.start, plot.y(i), plot.x.end - plot.x.start, row) for i in _lost(lanes)]
    plot.svg.boxes(lost, "lost")
    without = f"; {len(lost)} of them left no record" if lost else ""
    ranks = counted(len(lanes), "rank")
    title = f"Timeline of {ranks} by stage over {seconds(span).text} seconds{without}"
    return plot.svg.render(title, kind)


def _lost(lanes: Sequence[Lane]) -> list[int]:
    return [index for index, lane in enumerate(lanes) if lane.lost]


def row_height(lanes: int) -> float:
    """Height of a rank's row, in pixels."""
    # Few ranks get rows of 24 px; many share about 560 px, but a row never vanishes.
    return max(1.1, min(24.0, 560.0 / max(lanes, 1)))


def splits_rows(lanes: int) -> bool:
    """Whether rows are high enough to show fetch and decode in a part of their own."""
    return row_height(lanes) >= SPLIT_ROW


def _rank_axis(plot: PlotArea, lanes: Sequence[Lane], row: float) -> None:
    """Label every rank if rows are high enough, otherwise round numbers only."""
    # The height of a label.
    if row >= 13:
        shown = list(range(len(lanes)))
    else:
        shown = [int(v) for v in ticks(0, len(lanes) - 1, 8) if v == int(v)]
    for index in shown:
        middle = plot.y(index) + row / 2
        plot.svg.text(plot.x.start - 6, middle + 4, str(lanes[index].rank), "tick", "end")


def _stage_boxes(
    plot: PlotArea, lanes: Sequence[Lane], stage: str, row: float
) -> list[tuple[float, float, float, float]]:
    gap = 0.0 if row < 4 else min(3.0, row * 0.15)
    upper = (row - gap) * 0.36 if row >= SPLIT_ROW else 0.0
    boxes = []
    for index, lane in enumerate(lanes):
        top, height = plot.y(index) + gap / 2, row - gap
        if upper:
            overlapped = stage in OVERLAPPED
            top, height = (top, upper) if overlapped else (top + upper, height - upper)
        for start, end in _joined(plot, lane.bars, stage):
            # A very short stage stays visible.
            boxes.append((start, top, max(end - start, 0.4), height))
    return boxes


def _joined(plot: PlotArea, bars: Sequence[Bar], stage: str) -> list[tuple[float, float]]:
    """Bars of a stage in pixels; bars less than half a pixel apart are joined."""
    spans: list[tuple[float, float]] = []
    for start, end in sorted((plot.x(a), plot.x(b)) for name, a, b in bars if name == stage):
        # Thousands of bars that cannot be told apart would only make the page large.
        if spans and start - spans[-1][1] < 0.5:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans


def stages_used(lanes: Sequence[Lane]) -> list[str]:
    """Stages that occur in any lane, in the order of the legend."""
    seen = {name for lane in lanes for name, _, _ in lane.bars}
    return [stage for stage in STAGES if stage in seen]


def distribution(
    values: Sequence[float], width: float, names: tuple[str, str], kind: str = ""
) -> Markup:
    """Histogram of durations with marks at p50, p90, p99 and maximum; no value is left out.

    `names` are the names of both axes: the durations, and what is counted.
    """
    marks = dict(zip(("p50", "p90", "p99", "max"), percentiles(values), strict=True))
    low, high = _room(min(values), max(values))
    bins = max(6, min(40, int(2 * math.sqrt(len(values))) + 4))
    counts, edges = np.histogram(values, bins, (low, high))
    # Each mark has a line of text of its own above the bars, so that labels never overlap.
    top_room = 28 + 16 * len(marks)
    plot = frame(width, 220 + top_room, (low, high), (0, counts.max() * 1.05), top=top_room)
    # No more ticks than objects: counts are whole numbers.
    steps = max(2, int(min(4, counts.max())))
    plot.grid(names[0], "", x_ticks=max(4, int(width / 110)), y_ticks=steps, y_label=_count)
    plot.svg.text(4, 14, names[1], "name")
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = plot.x(left), plot.y(float(count))
        tip = f"{count} from {seconds(left).text} to {seconds(right).text} s"
        plot.svg.rect(x + 0.5, y, plot.x(right) - x - 1, plot.y.start - y, "bar", tip)
    for level, value in enumerate(marks.values()):
        plot.svg.line(plot.x(value), 18 + 16 * level, plot.x(value), plot.y.start, "mark")
    for level, (mark, value) in enumerate(marks.items()):
        _mark(plot, value, f"{mark} {seconds(value).text} s", 26 + 16 * level)
    words = ", ".join(f"{mark} {seconds(value).text} s" for mark, value in marks.items())
    return plot.svg.render(f"Distribution of {counted(len(values), 'duration')}: {words}", kind)


def _count(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else ""


def _room(low: float, high: float) -> tuple[float, float]:
    """Range of an axis: from zero if the values are not far from it, with a margin at the right."""
    low = 0.0 if low < 0.6 * high else max(0.0, low - 0.1 * (high - low or high or 1.0))
    return low, high + 0.04 * (high - low or 1.0)


def _mark(plot: PlotArea, value: float, words: str, y: float) -> None:
    """Write the words of a mark at their own height; left of the mark near the right edge."""
    x = plot.x(value)
    # An upper bound for the width of the words: text cannot be measured here.
    fits = x + 6 + CHARACTER * len(words) < plot.svg.width
    plot.svg.text(x + (5 if fits else -5), y, words, "marked", "start" if fits else "end")


@dataclass(frozen=True)
class Series:
    """One line of a line chart."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]
    """Points (x, median, lowest, highest) over the repetitions."""
    incomplete: tuple[float, ...] = ()
    """Values of x at which a run was incomplete; their dots are drawn open."""


@dataclass(frozen=True)
class LineChart:
    """A chart of lines with dots and the range over repetitions, with a legend at the top."""

    series: tuple[Series, ...]
    x_name: str
    y_name: str
    x_log: bool = False
    """Whether the horizontal axis is logarithmic."""

    @property
    def title(self) -> str:
        """What the chart shows, in words."""
        names = ", ".join(one.name for one in self.series)
        return f"{self.y_name} against {self.x_name} for {names}"

    def render(self, width: float, kind: str = "") -> Markup:
        """The chart as part of a page."""
        return self._drawn(width).render(self.title, kind)

    def file(self, width: float) -> str:
        """The chart as a file of its own."""
        return self._drawn(width).file(self.title)

    def _drawn(self, width: float) -> Svg:
        xs = [point[0] for one in self.series for point in one.points]
        tops = [point[3] for one in self.series for point in one.points]
        rows = _legend_rows([one.name for one in self.series], width - 60)
        top = 30 + 18 * len(rows)
        # A single value of x needs a range around it.
        low, high = (min(xs), max(xs)) if len(set(xs)) > 1 else (0.0, 2 * max(xs) or 1.0)
        # Axes begin at zero, so that lengths can be compared; a logarithmic one cannot.
        x_range = (low, high) if self.x_log else (0.0, high * 1.04)
        y_range = (0.0, max(tops) * 1.08 or 1.0)
        plot = frame(width, 250 + top, x_range, y_range, left=54, top=top, x_log=self.x_log)
        own = _own_ticks(plot, sorted(set(xs)))
        plot.grid(self.x_name, "", x_ticks=own or max(3, int(width / 90)))
        plot.svg.text(4, top - 12, self.y_name, "name")
        numbers = {one.name: index % len(SERIES) for index, one in enumerate(self.series)}
        _legend(plot.svg, rows, numbers)
        for one in self.series:
            _series(plot, one, numbers[one.name], self.y_name)
        return plot.svg


def _own_ticks(plot: PlotArea, values: Sequence[float]) -> list[float]:
    """The values themselves as ticks, if their labels have room; otherwise none."""
    room = [plot.x(b) - plot.x(a) for a, b in pairwise(values)]
    widest = CHARACTER * max(len(label(value)) for value in values)
    return list(values) if min(room, default=widest + 8) >= widest + 8 else []


def _series(plot: PlotArea, one: Series, number: int, y_name: str) -> None:
    points = [(plot.x(x), plot.y(y)) for x, y, _, _ in one.points]
    plot.svg.curve(points, f"curve c{number} d{number}")
    for x, middle, low, high in one.points:
        if high > low:
            plot.svg.line(plot.x(x), plot.y(low), plot.x(x), plot.y(high), f"range c{number}")
        shape = f"open c{number}" if x in one.incomplete else f"dot f{number}"
        tip = f"{one.name}, {label(x)}: {middle:.4g} ({y_name})"
        tip += ", incomplete" if x in one.incomplete else ""
        plot.svg.dot(plot.x(x), plot.y(middle), shape, tip)


def _legend_rows(names: Sequence[str], width: float) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    used = 0.0
    for name in names:
        need = SAMPLE + 20 + CHARACTER * len(name)
        if rows[-1] and used + need > width:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += need
    return rows


def _legend(svg: Svg, rows: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> None:
    for index, row in enumerate(rows):
        x, y = 4.0, 14.0 + 18 * index
        for name in row:
            svg.curve([(x, y - 4), (x + SAMPLE, y - 4)], f"curve c{numbers[name]} d{numbers[name]}")
            svg.dot(x + SAMPLE / 2, y - 4, f"dot f{numbers[name]}")
            svg.text(x + SAMPLE + 5, y, name, "tick")
            x += SAMPLE + 20 + CHARACTER * len(name)
