"""Plots of a catalogue, binned on the server; selected objects stand out in all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from perseid.errors import BadInputError
from perseid.explore.binning import Axis, Cells
from perseid.explore.conditions import Condition, InBox, InLasso, InRange, Mask
from perseid.explore.object_table import ColumnKind, ObjectTable, ResultCache
from perseid.measure.present.charts import LEVELS, draw_cells, shades
from perseid.measure.present.svg import PlotArea, Scale, Svg, frame, label
from perseid.plaintext import counted

WIDTH = 340.0
CELLS, BARS = 92, 46
MAP_X, MAP_Y = "map_1", "map_2"
"""The columns of the map: the first two principal components of the features."""
SKY = (("ra", "dec"), ("RA", "DEC"), ("RA", "Dec"), ("ra_deg", "dec_deg"), ("raMean", "decMean"))
"""Pairs of columns that may hold a position on the sky, in degrees."""
MOST_CLASSES = 24
"""Maximum number of classes in a confusion matrix."""


@dataclass(frozen=True)
class PlotScale:
    """The scale of an axis, with which the page's script turns a brush into a condition."""

    column: str
    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(cls, column: str, scale: Scale) -> PlotScale:
        """The scale of an axis that is drawn."""
        return cls(column, scale.low, scale.high, scale.start, scale.end, scale.log)


@dataclass(frozen=True)
class Plot:
    """One plot of the catalogue."""

    name: str
    """Name in addresses: ``redshift``, ``scores``, ``classes``, ``sky``, ``map``."""
    title: str
    caption: str
    svg: Svg
    spoken: str
    """Description for screen readers."""
    x: PlotScale | None = None
    y: PlotScale | None = None
    lasso: bool = False
    """Whether a selection may be drawn freehand as well as by a rectangle."""

    def drawn(self) -> Markup:
        """The SVG as part of a page."""
        return self.svg.render(self.spoken)


@dataclass(frozen=True, eq=False)
class Shown:
    """The rows that a plot shows."""

    base: Mask | None
    """Mask of the rows that the filters leave; None for all."""
    selected: Mask | None
    """Mask of those that are selected; None if nothing is selected."""
    brushes: tuple[Condition, ...] = ()
    """Conditions that select rows; each is outlined in the plot that it was made in."""

    def words(self, total: int) -> str:
        """E.g. ``120 of 4,000 objects selected``."""
        base = total if self.base is None else int(np.count_nonzero(self.base))
        if self.selected is None:
            return counted(base, "object")
        return f"{np.count_nonzero(self.selected):,} of {counted(base, 'object')} selected"


class Plots:
    """All plots of one table; cells and ranges are computed once and kept."""

    def __init__(self, table: ObjectTable) -> None:
        self._table = table
        self._kept = ResultCache(32)
        self._draw: dict[str, Callable[[Shown, str], Plot]] = {
            "redshift": self._redshift,
            "scores": self._scores,
            "map": self._map,
            "classes": self._classes,
            "sky": self._sky,
        }

    def names(self) -> list[str]:
        """Names of the plots for which the catalogue has the columns."""
        has = self._table.has
        found = ["redshift"] if has("z_pred") and has("z_spec") else []
        if not found and has("z_pred"):
            found = ["scores"] if not has("anomaly_score") else []
        found += ["scores"] if has("anomaly_score") and "scores" not in found else []
        found += ["map"] if has(MAP_X) else []
        found += ["classes"] if self._class_columns() else []
        found += ["sky"] if self._sky_columns() else []
        return found

    def draw(self, name: str, shown: Shown, color: str = "") -> Plot:
        """Draw one plot; raises `BadInputError` if there is no such plot."""
        if name not in self.names():
            have = ", ".join(self.names()) or "none"
            raise BadInputError(f"there is no plot {name!r} of this catalogue: it has {have}")
        return self._draw[name](shown, color)

    def colors(self) -> list[tuple[str, str]]:
        """Choices for the colors of the map: the value in the address, and its text on the page."""
        found = [("", "number of objects")]
        for name in [*self._table.names, *self._table.added]:
            if name in (MAP_X, MAP_Y, "row") or not self._table.has(name):
                continue
            kind = self._table.kind(name)
            if kind is ColumnKind.NUMBER:
                found.append((name, f"mean {name}"))
            elif kind is ColumnKind.CATEGORY and name != "flag":
                found += [
                    (f"{name}={one.value}", f"share of {name} {one.name}")
                    for one in self._table.categories(name)
                ]
        return found

    def forget(self, column: str) -> None:
        """Forget results after the values of an added column have changed."""
        self._kept.forget(lambda key: isinstance(key, tuple) and column in key)

    def _axis(self, column: str, count: int, *, tail: float = 0.001, log: bool = False) -> Axis:
        return self._kept.get(
            ("axis", column, count),
            lambda: Axis.around(self._table.numbers(column), count, tail=tail, log=log),
        )

    def _cells(self, *parts: tuple[Axis, str]) -> Cells:
        key = ("cells", *(column for _, column in parts))
        given = [(axis, self._table.numbers(column)) for axis, column in parts]
        return self._kept.get(key, lambda: Cells.of(*given))

    def _redshift(self, shown: Shown, color: str) -> Plot:
        # The same range for both axes, so that equality is the diagonal.
        x, y = self._axis("z_spec", CELLS), self._axis("z_pred", CELLS)
        low, high = min(x.low, y.low), max(x.high, y.high)
        axis = Axis(low, high, CELLS)
        plot = frame(WIDTH, WIDTH, (low, high), (low, high))
        plot.grid("spectroscopic redshift", "predicted redshift", x_ticks=5, y_ticks=5)
        outside = self._density(plot, (axis, "z_spec"), (axis, "z_pred"), shown)
        plot.svg.line(plot.x(low), plot.y(low), plot.x(high), plot.y(high), "truth")
        caption = f"Stronger for more objects. Dashed: equality.{_outside(outside)}"
        return self._two("redshift", "Redshifts", caption, plot, ("z_spec", "z_pred"), shown)

    def _sky(self, shown: Shown, color: str) -> Plot:
        x_name, y_name = self._sky_columns() or ("", "")
        x, y = self._axis(x_name, CELLS, tail=0), self._axis(y_name, CELLS // 2, tail=0)
        # East is left, as on the sky.
        plot = frame(WIDTH, WIDTH * 0.66, (x.high, x.low), (y.low, y.high))
        plot.grid("right ascension, degrees", "declination, degrees", x_ticks=4, y_ticks=4)
        outside = self._density(plot, (x, x_name), (y, y_name), shown, turned=True)
        caption = f"East is left.{_outside(outside)}"
        return self._two("sky", "Sky", caption, plot, (x_name, y_name), shown)

    def _map(self, shown: Shown, color: str) -> Plot:
        x, y = (self._axis(name, CELLS, tail=0.002) for name in (MAP_X, MAP_Y))
        plot = frame(WIDTH, WIDTH, (x.low, x.high), (y.low, y.high))
        plot.grid("first component", "second component", x_ticks=5, y_ticks=5)
        if color and shown.selected is None:
            caption = self._colored(plot, x, y, shown, color)
        else:
            outside = self._density(plot, (x, MAP_X), (y, MAP_Y), shown)
            caption = (
                f"Near points have similar features. Stronger for more objects.{_outside(outside)}"
            )
        return replace(self._two("map", "Map", caption, plot, (MAP_X, MAP_Y), shown), lasso=True)

    def _colored(self, plot: PlotArea, x: Axis, y: Axis, shown: Shown, color: str) -> str:
        """Draw the cells of the map shaded by the mean of a column; return the caption."""
        name, equals, value = color.rpartition("=")
        # A column's name may itself contain an equals sign.
        if not re.fullmatch("-?[0-9]{1,15}", value) or not self._table.has(name):
            equals, name, values = "", color, self._table.numbers(color)
            words = f"mean {name}"
        else:
            values = (self._table.numbers(name) == int(value)).astype(np.float64)
            words = f"share of {name} {self._table.category_name(name, int(value))}"
        means = self._cells((x, MAP_X), (y, MAP_Y)).means(values, shown.base)
        known = means[np.isfinite(means)]
        if not len(known):
            return f"No object has a {name}."
        # Without the extremes, since one outlier would make all other cells look alike.
        low, high = np.quantile(known, (0.02, 0.98)) if not equals else (0.0, float(known.max()))
        share = np.nan_to_num((means - low) / ((high - low) or 1.0))
        levels = 1 + np.clip((share * LEVELS).astype(np.int64), 0, LEVELS - 1)
        levels[~np.isfinite(means)] = 0
        draw_cells(plot, levels, x.edges, y.edges)
        return f"Shade: {words}, from {label(float(low))} (weak) to {label(float(high))} (strong)."

    def _scores(self, shown: Shown, color: str) -> Plot:
        name = "anomaly_score" if self._table.has("anomaly_score") else "z_pred"
        axis = self._axis(name, BARS, tail=0.0001, log=name == "anomaly_score")
        cells = self._cells((axis, name))
        base, selected = cells.counts(shown.base), None
        if shown.selected is not None:
            selected = cells.counts(shown.selected)
        # Room above the highest bar; the logarithmic axis begins below 1 so that single counts
        # show.
        top = max(10.0, 1.3 * float(base.max(initial=1)))
        plot = frame(WIDTH, WIDTH, (axis.low, axis.high), (0.7, top), x_log=axis.log, y_log=True)
        title = "Scores" if name == "anomaly_score" else "Redshifts"
        plot.grid(
            "anomaly score" if axis.log else "predicted redshift", "objects",
            x_ticks=6, y_label=lambda v: f"{v:,.0f}",
        )  # fmt: skip
        _bars(plot, axis, base, "bar" if selected is None else "bar muted")
        if selected is not None:
            _bars(plot, axis, selected, "bar")
        _brushes(plot, (name,), shown)
        caption = f"Logarithmic axes.{_outside(cells.outside(shown.base))}"
        spoken = f"Histogram of {name}: {shown.words(len(self._table))}"
        return Plot("scores", title, caption, plot.svg, spoken, PlotScale.of(name, plot.x))

    def _classes(self, shown: Shown, color: str) -> Plot:
        true, predicted = self._class_columns() or ("", "")
        classes = self._class_names(true, predicted)
        count = len(classes)
        places = [
            _places(self._table.numbers(name), [c.value for c in self._table.categories(name)],
                    [classes.index(c.name) for c in self._table.categories(name)])
            for name in (true, predicted)
        ]  # fmt: skip
        axis = Axis(0.0, float(count), count)
        rows = shown.base if shown.selected is None else shown.selected
        counts = Cells.of((axis, places[0] + 0.5), (axis, places[1] + 0.5)).counts(rows)
        # From top to bottom, so that the diagonal runs as in a printed matrix.
        plot = frame(WIDTH, WIDTH, (0.0, float(count)), (float(count), 0.0), left=96, bottom=84)
        _confusion(plot, counts, classes)
        right = int(np.trace(counts))
        total = int(counts.sum())
        share = f" {100 * right / total:.1f} % on the diagonal." if total else ""
        caption = f"Rows: {predicted}; columns: {true}.{share}"
        spoken = (
            f"Confusion matrix of {predicted} against {true}: {counted(total, 'object')}.{share}"
        )
        return Plot("classes", "Classes", caption, plot.svg, spoken)

    def _class_names(self, true: str, predicted: str) -> list[str]:
        names: list[str] = []
        for column in (true, predicted):
            names += [c.name for c in self._table.categories(column) if c.name not in names]
        # More classes would leave no room for their labels.
        return names[:MOST_CLASSES]

    def _class_columns(self) -> tuple[str, str] | None:
        """Columns of the true and the predicted class; None if one is missing."""
        table = self._table
        if not table.has("class") or table.kind("class") is not ColumnKind.CATEGORY:
            return None
        for true in ("class_true", "label"):
            if table.has(true) and table.kind(true) is ColumnKind.CATEGORY:
                return true, "class"
        return None

    def _sky_columns(self) -> tuple[str, str] | None:
        return next((pair for pair in SKY if all(map(self._table.has, pair))), None)

    def _density(
        self, plot: PlotArea, x: tuple[Axis, str], y: tuple[Axis, str], shown: Shown,
        *, turned: bool = False,
    ) -> int:  # fmt: skip
        """Draw cells shaded by their counts; return the number of rows outside."""
        cells = self._cells(x, y)
        base = shades(cells.counts(shown.base))
        x_edges, y_edges = x[0].edges, y[0].edges
        # The axis runs from high to low, so cells are drawn in reverse.
        if turned:
            base, x_edges = base[::-1], x_edges[::-1]
        draw_cells(plot, base, x_edges, y_edges, "s" if shown.selected is None else "m")
        if shown.selected is not None:
            over = shades(cells.counts(shown.selected))
            over = np.where(over > 0, np.maximum(over, 3), 0)  # so that a single object is visible
            draw_cells(plot, over[::-1] if turned else over, x_edges, y_edges, "s")
        return cells.outside(shown.base)

    def _two(
        self, name: str, title: str, caption: str, plot: PlotArea, columns: tuple[str, str],
        shown: Shown,
    ) -> Plot:  # fmt: skip
        _brushes(plot, columns, shown)
        x, y = (PlotScale.of(c, s) for c, s in zip(columns, (plot.x, plot.y), strict=True))
        spoken = f"{title}, {columns[1]} against {columns[0]}: {shown.words(len(self._table))}"
        return Plot(name, title, caption, plot.svg, spoken, x, y)


def _brushes(plot: PlotArea, columns: tuple[str, ...], shown: Shown) -> None:
    """Outline the conditions that were made in this plot."""
    for one in shown.brushes:
        if one.columns != columns:
            continue
        if isinstance(one, InLasso):
            points = [(plot.x(x), plot.y(y)) for x, y in one.corners]
            plot.svg.curve([*points, points[0]], "brush")
        elif isinstance(one, InBox):
            _brush_box(plot, one.x, one.y)
        elif isinstance(one, InRange):
            _brush_box(plot, one, InRange("", None, None))


def _brush_box(plot: PlotArea, x: InRange, y: InRange) -> None:
    """Draw a rectangle, clipped to the plot."""
    sides = []
    for scale, given in ((plot.x, x), (plot.y, y)):
        low = scale.start if given.low is None else scale(given.low)
        high = scale.end if given.high is None else scale(given.high)
        edges = sorted((scale.start, scale.end))
        # A condition from an address may reach beyond the axis.
        sides.append(sorted(min(max(v, edges[0]), edges[1]) for v in (low, high)))
    (left, right), (top, bottom) = sides
    plot.svg.rect(left, top, right - left, bottom - top, "brush")


def _outside(count: int) -> str:
    return f" {counted(count, 'object')} outside the plot." if count else ""


def _bars(plot: PlotArea, axis: Axis, counts: NDArray[np.int64], kind: str) -> None:
    edges = axis.edges
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            x, top = plot.x(float(left)), plot.y(float(count))
            width = max(1.0, plot.x(float(right)) - x - 1.0)
            plot.svg.rect(x, top, width, plot.y.start - top, kind, f"{label(float(left))} to "
                          f"{label(float(right))}: {counted(int(count), 'object')}")  # fmt: skip


def _places(
    codes: NDArray[np.float64], values: list[int], places: list[int]
) -> NDArray[np.float64]:
    """Index of each row's class in the list of all; -1 for a row without a class."""
    found = np.full(len(codes), -1.0)
    for value, place in zip(values, places, strict=True):
        found[codes == value] = place
    return found


def _confusion(plot: PlotArea, counts: NDArray[np.int64], classes: list[str]) -> None:
    """Draw cells shaded by their share of the true class, with counts if there is room."""
    sums = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(sums, 1)
    size = plot.x(1.0) - plot.x(0.0)
    for i, name in enumerate(classes):
        middle = plot.x(i + 0.5)
        # Long names would run out of the picture.
        plot.svg.text(plot.x.start - 8, plot.y(i + 0.5) + 4, name[:16], "tick", "end")
        plot.svg.add(f'<g transform="rotate(-40 {middle:.1f} {plot.y.start + 14:.1f})">')
        plot.svg.text(middle, plot.y.start + 14, name[:16], "tick", "end")
        plot.svg.add("</g>")
        for j, other in enumerate(classes):
            if not counts[i, j]:
                continue
            level = 1 + min(LEVELS - 1, int(share[i, j] * LEVELS))
            tip = f"{name}, predicted {other}: {counted(int(counts[i, j]), 'object')}"
            plot.svg.rect(plot.x(i), plot.y(j), size - 1, size - 1, f"shade s{level}", tip)
            if size >= 26:
                kind = "cell" if level <= LEVELS // 2 else "cell over"
                plot.svg.text(middle, plot.y(j + 0.5) + 4, f"{counts[i, j]:,}", kind, "middle")
