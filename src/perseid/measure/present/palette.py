"""Colors and patterns of pages and charts, for light and dark pages, and their style sheet.

Stages and series use the eight colors that Okabe and Ito chose for all kinds of color vision
(https://jfly.uni-koeln.de/color/). Stages also differ by pattern, series by dashes and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

STAGES = {
    "init": "#8a94a8",
    "rendezvous": "#cc79a7",
    "fetch": "#56b4e9",
    "decode": "#009e73",
    "inference": "#0072b2",
    "collectives": "#e69f00",
    "publish": "#d55e00",
}
"""Fill color of each stage, the same on light and dark pages."""
HATCHES = {
    "rendezvous": '<circle cx="2" cy="2" r="1.1"/><circle cx="5" cy="5" r="1.1"/>',
    "fetch": '<path d="M-1 1l2-2M0 6l6-6M5 7l2-2"/>',
    "decode": '<path d="M-1 5l2 2M0 0l6 6M5-1l2 2"/>',
    "collectives": '<path d="M0 6l6-6M0 0l6 6"/>',
    "publish": '<path d="M1.5 0v6M4.5 0v6"/>',
}
"""Pattern over the fill of a stage, as SVG tiles of 6 x 6 px; init and inference have none."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors of the series of a chart, in their order."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 4")
"""Dashes of these series, which tell them apart without colors."""
LIGHT = {
    "paper": "#f6f7fa", "card": "#ffffff", "ink": "#171b26", "soft": "#586074", "rule": "#e2e5ed",
    "accent": "#3d52c9", "accent-soft": "#e6e9fb", "good": "#11693f", "good-soft": "#dcf3e6",
    "bad": "#a1261d", "bad-soft": "#fde5e2", "truth": "#d55e00",
    "s1": "#dfe4fa", "s2": "#c3cbf4", "s3": "#a4b0ec", "s4": "#8393e2", "s5": "#6377d6",
    "s6": "#485dc6", "s7": "#3345a6", "s8": "#1e2c78",
    "m1": "#eceef3", "m2": "#e2e5ec", "m3": "#d6dae3", "m4": "#cacfda", "m5": "#bdc3d0",
    "m6": "#b0b7c6", "m7": "#a2aabb", "m8": "#949daf", "brush": "#b34700", "edge": "#858da1",
}  # fmt: skip
DARK = {
    "paper": "#10131b", "card": "#181c27", "ink": "#e8eaf2", "soft": "#a3abbf", "rule": "#2b3142",
    "accent": "#93a4ff", "accent-soft": "#262e52", "good": "#7fdcaa", "good-soft": "#143425",
    "bad": "#ffa79e", "bad-soft": "#43201d", "truth": "#ff9b66",
    "s1": "#232a49", "s2": "#2c3767", "s3": "#394787", "s4": "#4a5ca9", "s5": "#6175cc",
    "s6": "#8496e8", "s7": "#afbcf8", "s8": "#e4e9ff",
    "m1": "#1f2431", "m2": "#262c3b", "m3": "#2e3546", "m4": "#373f52", "m5": "#414a5e",
    "m6": "#4c556b", "m7": "#586278", "m8": "#656f86", "brush": "#ffb078", "edge": "#757e95",
}  # fmt: skip
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
FILE_STYLES: Mapping[str, Mapping[str, str]] = {
    "tick": {"fill": LIGHT["soft"], "font-size": "11.5", "font-family": _FONT},
    "name": {
        "fill": LIGHT["ink"], "font-size": "11.5", "font-family": _FONT, "font-weight": "bold",
    },
    "grid": {"stroke": LIGHT["rule"]},
    "axis": {"stroke": LIGHT["soft"]},
    "curve": {"fill": "none", "stroke-width": "2"},
    "range": {"stroke-width": "1.5"},
    "open": {"fill": LIGHT["card"], "stroke-width": "2"},
    "bar": {"fill": LIGHT["accent"]},
    "muted": {"fill": LIGHT["m5"]},
    "truth": {"stroke": LIGHT["truth"], "stroke-width": "1.5", "stroke-dasharray": "5 4"},
    "brush": {"fill": "none", "stroke": LIGHT["brush"], "stroke-width": "1.8"},
    "cell": {"fill": LIGHT["ink"], "font-size": "11.5", "font-family": _FONT},
    "over": {"fill": LIGHT["card"]},
    "empty": {"fill": LIGHT["paper"]},
    **{f"{family}{n}": {"fill": LIGHT[f"{family}{n}"]} for family in "sm" for n in range(1, 9)},
    **{f"c{n}": {"stroke": color} for n, color in enumerate(SERIES)},
    **{f"f{n}": {"fill": color} for n, color in enumerate(SERIES)},
    **{f"d{n}": {"stroke-dasharray": dash} for n, dash in enumerate(DASHES) if dash},
}  # fmt: skip
"""Attributes that replace the classes in a chart that is a file of its own."""


@cache
def style() -> str:
    """The style sheet of all pages."""
    rules = files("perseid.measure.present").joinpath("report.css").read_text(encoding="utf-8")
    stages = [f"svg .stage-{name} {{ fill: {fill}; }}" for name, fill in STAGES.items()] + [
        f"svg .hatch-{name} {{ fill: url(#hatch-{name}); }}" for name in HATCHES
    ]
    series = [f"svg .c{n} {{ stroke: {color}; }} svg .f{n} {{ fill: {color}; }}"
              for n, color in enumerate(SERIES)]  # fmt: skip
    dashes = [f"svg .d{n} {{ stroke-dasharray: {dash}; }}" for n, dash in enumerate(DASHES) if dash]
    shades = [f"svg .{family}{n} {{ fill: var(--{family}{n}); }}"
              for family in "sm" for n in range(1, 9)]  # fmt: skip
    # The same variables with other values: charts and rules need no change for a dark page.
    dark = f"@media (prefers-color-scheme: dark) {{ {_variables(DARK)} }}"
    drawn = "\n".join([*stages, *series, *dashes, *shades])
    return f"{_variables(LIGHT)}\n{dark}\n{drawn}\n{rules}"


def _variables(colors: Mapping[str, str]) -> str:
    return ":root { " + " ".join(f"--{name}: {value};" for name, value in colors.items()) + " }"
