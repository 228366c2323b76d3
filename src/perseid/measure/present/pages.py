"""Renders pages as HTML: one template for all, in which everything but charts is escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perseid.measure.present.palette import HATCHES, style
from perseid.measure.present.view import PageView
from perseid.plaintext import printable


def render(page: PageView) -> str:
    """Render a page as one HTML document that works offline."""
    return environment().get_template("page.html").render(page=page)


@cache
def environment(*packages: str) -> Environment:
    """Templates of this package and of others that use its parts; all text is escaped."""
    found = Environment(
        loader=ChoiceLoader(
            [PackageLoader(name) for name in (*packages, "perseid.measure.present")]
        ),
        autoescape=True,
        # A misspelled name must be an error, not an empty string in a page.
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hatches = {name: Markup(drawing) for name, drawing in HATCHES.items()}
    # Our own markup, which must not be escaped.
    found.globals.update(style=Markup(style()), hatches=hatches)
    return found


def _shown(value: object) -> object:
    """Remove control characters from a text; it is escaped afterwards."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value
