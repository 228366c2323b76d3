"""Charts of predicted classes and distributions: confusion matrix, reliability, PIT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from perseid.measure.present.charts import LEVELS
from perseid.measure.present.svg import CHARACTER, PlotArea, Scale, Svg, frame
from perseid.plaintext import counted

LONGEST_NAME = 18
"""Most characters of a class name beside the confusion matrix."""
NUMBERED = 30.0
"""Smallest size in pixels of a cell that shows its number."""


def confusion(
    classes: Sequence[str], counts: Sequence[Sequence[int]], width: float, kind: str = ""
) -> Markup:
    """Confusion matrix: rows are true classes, columns predicted ones, shades shares of the row.

    Parameters
    ----------
    classes
        Class names, in the order of rows and columns.
    counts
        Number of objects of the row's class that are predicted as the column's class.
    width
        Width of the chart in pixels.
    """
    names = [_short(name) for name in classes]
    left = 24 + CHARACTER * max(map(len, names))
    # Few classes must not fill the whole width with a handful of cells.
    cell = min(72.0, (width - left - 8) / len(names))
    top = 40.0
    bottom = 12 + CHARACTER * max(map(len, names))
    svg = Svg(width, top + cell * len(names) + bottom)
    svg.text(4, 14, "true class (rows), predicted class (columns)", "name")
    for row, (name, of_row) in enumerate(zip(classes, counts, strict=True)):
        y = top + row * cell
        svg.text(left - 8, y + cell / 2 + 4, names[row], "tick", "end")
        for column, count in enumerate(of_row):
            _cell(svg, (left + column * cell, y, cell), (name, classes[column]), count,
                  sum(of_row))  # fmt: skip
    for column, name in enumerate(names):
        x, y = left + (column + 0.5) * cell + 4, top + cell * len(names) + 8
        # Rotated names, since class names are longer than a cell is wide.
        svg.add(f'<g transform="translate({x:.1f} {y:.1f}) rotate(-90)">')
        svg.text(0, 0, name, "tick", "end")
        svg.add("</g>")
    right = sum(of_row[place] for place, of_row in enumerate(counts))
    whole = sum(map(sum, counts))
    title = (
        f"Confusion matrix of {len(classes)} classes over {counted(whole, 'object')}: {right:,} on "
        "the diagonal are predicted correctly"
    )
    return svg.render(title, kind)


def _cell(
    svg: Svg, place: tuple[float, float, float], names: tuple[str, str], count: int, of: int
) -> None:
    x, y, size = place
    share = count / of if of else 0.0
    level = int(np.ceil(LEVELS * share))
    tip = f"{names[0]} predicted as {names[1]}: {count:,} of {of:,} ({share:.1%})"
    svg.rect(x, y, size - 1, size - 1, f"s{level}" if level else "empty", tip)
    if count and size >= NUMBERED and CHARACTER * len(f"{count}") < size:
        # Light digits on dark cells.
        shown = "cell over" if level > LEVELS // 2 else "cell"
        svg.text(x + size / 2, y + size / 2 + 4, f"{count}", shown, "middle")


def reliability(points: Sequence[tuple[float, float, int]], width: float, kind: str = "") -> Markup:
    """Reliability diagram: share of correct predictions against their mean probability.

    Each point is (probability, share, objects).
    """
    plot = frame(width, min(width, 360.0), (0.0, 1.0), (0.0, 1.0))
    plot.grid("probability of the predicted class", "share that is right", x_ticks=5, y_ticks=5)
    plot.svg.line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "truth")
    plot.svg.curve([(plot.x(x), plot.y(y)) for x, y, _ in points], "curve c0")
    for x, y, n in points:
        tip = f"probability {x:.3f}: {y:.1%} of {counted(n, 'object')} right"
        plot.svg.dot(plot.x(x), plot.y(y), "dot f0", tip)
    title = (
        f"Reliability of class probabilities in {counted(len(points), 'bin')}; on the dashed line "
        "they are calibrated"
    )
    return plot.svg.render(title, kind)


def pit(counts: Sequence[int], width: float, kind: str = "") -> Markup:
    """Histogram of PIT values; it is flat, at the dashed line, if distributions are calibrated."""
    # The height that every bar would have if all were equal.
    flat = sum(counts) / len(counts)
    plot = frame(width, 260.0, (0.0, 1.0), (0.0, 1.08 * max(*counts, flat)))
    plot.grid("predicted probability of values below the true one (PIT)", "objects", x_ticks=5,
              y_ticks=4)  # fmt: skip
    edges = np.linspace(0.0, 1.0, len(counts) + 1).tolist()
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        _bar(plot, count, left, right)
    plot.svg.line(plot.x(0), plot.y(flat), plot.x(1), plot.y(flat), "truth")
    title = f"PIT of {counted(sum(counts), 'object')}; the dashed line is that of calibrated ones"
    return plot.svg.render(title, kind)


def _bar(plot: PlotArea, count: int, left: float, right: float) -> None:
    x: Scale = plot.x
    tip = f"{counted(count, 'object')} from {left:.2f} to {right:.2f}"
    height = plot.y.start - plot.y(float(count))
    plot.svg.rect(x(left) + 0.5, plot.y(float(count)), x(right) - x(left) - 1, height, "bar", tip)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
