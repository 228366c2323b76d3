"""Pieces of a page that needs nothing but itself: text, tables, tiles, both widths of a chart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from perseid.measure.present.text import Table

WIDE, NARROW = 1000.0, 320.0
"""Width of a chart in a page's column, px: on a screen and on a phone."""


@cache
def style() -> str:
    """The style sheet of all pages."""
    return files("perseid.measure.present").joinpath("report.css").read_text(encoding="utf-8")


def page(title: str, head: str, sections: Iterable[str], foot: str) -> str:
    """A whole document; nothing in it points anywhere outside."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n"
        f'<header class="top">\n{head}\n</header>\n<main>\n'
        + "\n".join(sections)
        + f"\n</main>\n<footer>{foot}</footer>\n</body>\n</html>\n"
    )


def section(ident: str, title: str, lead: str, body: str) -> str:
    """One card of a page; `lead` and `body` are markup."""
    words = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{ident}">\n<h2>{escape(title)}</h2>\n{words}\n{body}\n</section>'


def tiles(values: Sequence[tuple[str, str, str]], kind: str = "") -> str:
    """(name, value, definition), each a tile; ``three`` are wider ones."""
    items = "".join(
        f"<li><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(what)}</span></li>"
        for name, value, what in values
    )
    return f'<ul class="tiles {kind}">{items}</ul>'


def figure(draw: Callable[[float, str], str], caption: str, wide: float = WIDE) -> str:
    """A chart at both widths; the style sheet shows the one that fits."""
    return (
        f"<figure>{draw(wide, 'wide')}{draw(min(wide, NARROW), 'narrow')}"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    words: Collection[int] = (0,),
    foot: Sequence[str] = (),
) -> str:
    """A table of markup cells; the columns in `words` are text, the others numbers.

    The first cell of a row is its header. A column with an empty head holds bars.
    """
    top = "".join(
        f'<th scope="col"{_kind(i, words, heads)}>{head or "<span></span>"}</th>'
        for i, head in enumerate(heads)
    )
    body = "".join(f"<tr>{_cells(row, words, heads)}</tr>" for row in rows)
    bottom = f"<tfoot><tr>{_cells(foot, words, heads)}</tr></tfoot>" if foot else ""
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll" role="region" aria-label="table" tabindex="0"><table>{title}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>{bottom}</table></div>"
    )


def _cells(row: Sequence[str], words: Collection[int], heads: Sequence[str]) -> str:
    first, *others = row
    cells = "".join(
        f"<td{_kind(i, words, heads)}>{cell}</td>" for i, cell in enumerate(others, start=1)
    )
    return f'<th scope="row">{first}</th>{cells}'


def _kind(index: int, words: Collection[int], heads: Sequence[str]) -> str:
    if not heads[index]:
        return ' class="track-cell"'
    return "" if index in words else ' class="n"'


def bar(share: float) -> str:
    """A horizontal bar, 0 to 1; decoration only, the number stands beside it."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="track" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def small(main: str, note: str) -> str:
    """A cell with a quiet line below it."""
    return f"{escape(main)}<small>{escape(note)}</small>" if note else escape(main)


def definitions(pairs: Mapping[str, str]) -> str:
    """Terms and their meanings."""
    return (
        "<dl>"
        + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs.items())
        + "</dl>"
    )


def from_table(source: Table) -> str:
    """A table of `present.text` as markup with its footnotes beneath."""
    words = {i for i, column in enumerate(source.columns) if not column.numeric} | {0}
    rows = [[escape(row[c.key].text) for c in source.columns] for row in source.rows]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in source.footnotes)
    return table([c.head for c in source.columns], rows, words=words) + notes
