"""A few functions that write SVG: scales, axes, shapes. Colors are in a style sheet, by class.

A chart that is a file of its own has attributes in place of classes: programs that lay out text
(LaTeX, word processors, librsvg) support neither variables in style sheets nor media queries.

All coordinates are pixels of the viewBox. Text keeps its size, so a chart is drawn for the width at
which it will be shown (`present.charts` draws each chart for a screen and for a phone).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from perseid.measure.present.palette import FILE_STYLES, LIGHT
from perseid.plaintext import markup, one_line

_CLASS = re.compile(r' class="([^"]*)"')
CHARACTER = 6.6
"""Width of a character of chart text (11.5 px) in pixels: an upper bound for digits and lower
case."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, linearly or logarithmically."""

    low: float
    """Value at the beginning of the scale."""
    high: float
    """Value at the end of the scale."""
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            # A value of 0 has no logarithm: it is drawn far outside.
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        # A single value is drawn in the middle.
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values in the range; see `log_ticks` for a logarithmic scale."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from `low` to `high`, at steps of 1, 2 or 5 times a power of ten."""
    if not high > low or count < 1:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    # The tolerance keeps ticks at the very ends in spite of rounding errors.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in the range; only powers of ten if these are more than
    eight."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    # The tolerance keeps ticks at the very ends in spite of rounding errors.
    fine = [value for value in fine if low * 0.999 <= value <= high * 1.001]
    coarse = [value for value in fine if abs(math.log10(value) % 1) < 1e-9]
    return fine if len(fine) <= 8 else coarse


def label(value: float) -> str:
    """Label of a tick at a value."""
    return f"{value:.6g}"


@dataclass
class Svg:
    """A picture that is being drawn."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def add(self, markup: str) -> None:
        """Add markup, unchanged."""
        self.parts.append(markup)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line between two points."""
        self.add(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, title: str = ""
    ) -> None:
        """Draw a rectangle; `title` is shown while the pointer rests on it."""
        tip = f"<title>{escape(title)}</title>" if title else ""
        self.add(
            f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" '
            f'height="{max(height, 0):.2f}">{tip}</rect>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Draw one line of text."""
        self.add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def boxes(self, boxes: Iterable[tuple[float, float, float, float]], kind: str) -> None:
        """Draw many rectangles (x, y, width, height) as one path."""
        # Four figures are enough for pixels and keep pages small.
        path = "".join(f"M{x:.4g} {y:.4g}h{w:.3g}v{h:.3g}h-{w:.3g}z" for x, y, w, h in boxes)
        if path:
            self.add(f'<path class="{kind}" d="{path}"/>')

    def curve(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add(f'<polyline class="{kind}" points="{path}"/>')

    def dot(self, x: float, y: float, kind: str, title: str = "", radius: float = 3.5) -> None:
        """Draw a filled circle around a point."""
        tip = f"<title>{escape(title)}</title>" if title else ""
        self.add(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{tip}</circle>')

    def render(self, title: str, kind: str = "") -> Markup:
        """The picture as part of a page; screen readers read `title`."""
        words = escape(title)
        return Markup(
            f'<svg class="chart {kind}" role="img" aria-label="{words}" {self._size}>'
            f"<title>{words}</title>{''.join(self.parts)}</svg>"
        )

    def file(self, title: str) -> str:
        """The picture as a file of its own, on white, with all colors as attributes."""
        drawn = _CLASS.sub(_attributes, "".join(self.parts))
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<svg {self._size}><title>{escape(title)}</title><rect width="{self.width:.0f}" '
            f'height="{self.height:.0f}" fill="{LIGHT["card"]}"/>{drawn}</svg>\n'
        )

    @property
    def _size(self) -> str:
        return (
            f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'width="{self.width:.0f}" height="{self.height:.0f}"'
        )


def escape(text: str) -> str:
    """Escape a text for a picture: one line, no markup."""
    return markup(one_line(text))


def _attributes(match: re.Match[str]) -> str:
    found: dict[str, str] = {}
    for name in match[1].split():
        found |= FILE_STYLES.get(name, {})
    return "".join(f' {name}="{value}"' for name, value in found.items())


@dataclass(frozen=True)
class PlotArea:
    """The area of a picture inside the axes."""

    svg: Svg
    x: Scale
    y: Scale

    def grid(
        self,
        x_name: str,
        y_name: str,
        *,
        x_ticks: int | Sequence[float] = 6,
        y_ticks: int = 5,
        x_label: Callable[[float], str] = label,
        y_label: Callable[[float], str] = label,
    ) -> None:
        """Draw grid lines, tick labels and the names of both axes; the y name is above its axis.

        `x_ticks` is about how many ticks to draw, or the values themselves.
        """
        svg, x, y = self.svg, self.x, self.y
        for value in y.ticks(y_ticks):
            svg.line(x.start, y(value), x.end, y(value), "grid")
            svg.text(x.start - 6, y(value) + 4, y_label(value), "tick", "end")
        for value in x.ticks(x_ticks) if isinstance(x_ticks, int) else x_ticks:
            svg.line(x(value), y.start, x(value), y.start + 4, "axis")
            svg.text(x(value), y.start + 17, x_label(value), "tick", "middle")
        svg.line(x.start, y.start, x.end, y.start, "axis")
        svg.text(x.end, y.start + 34, x_name, "name", "end")
        svg.text(4, y.end - 12, y_name, "name")


def frame(
    width: float,
    height: float,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    *,
    left: float = 46,
    right: float = 14,
    top: float = 28,
    bottom: float = 42,
    x_log: bool = False,
    y_log: bool = False,
) -> PlotArea:
    """Make an empty picture with room for axes at the left and at the bottom."""
    svg = Svg(width, height)
    x = Scale(*x_range, left, width - right, x_log)
    # SVG counts y downwards, so the lowest value is at the largest y.
    y = Scale(*y_range, height - bottom, top, y_log)
    return PlotArea(svg, x, y)
