"""Names and words of others, made safe for the place in which they are shown.

File names, ids, columns, stages, log lines and errors come from outside. Shown as they are they
could move a terminal's cursor, forge a line of a log, or start a formula in a spreadsheet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, line and paragraph separators, what turns the direction of text, and halves
of surrogate pairs; not tab and line feed."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a cell begins that a spreadsheet takes for a formula, full-width forms included
(https://owasp.org/www-community/attacks/CSV_Injection)."""

COMMAND_LINE = "PERSEID_COMMAND_LINE"
"""Variable that is set while a command runs, for its workers, too; see `option`."""
_BRIEF = 120
"""Characters of a value that a message shows."""
_TYPED = {"results": "out", "memory_mb": "memory"}
"""Options whose names differ from their keywords."""


def printable(text: str) -> str:
    """A text without control characters, which are shown as escapes; line breaks and tabs stay.

    Examples
    --------
    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _UNSEEN.sub(_escape, text)


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A number with its noun, and what follows it in the singular or in the plural.

    Examples
    --------
    >>> counted(2056, "row"), counted(1, "object has", "objects have")
    ('2,056 rows', '1 object has')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def on_command_line() -> bool:
    """Whether this process, or the one that started it, runs one of perseid's commands."""
    return COMMAND_LINE in os.environ


def option(key: str, value: object = None, python: str = "") -> str:
    """An option as its user would give it: on the command line, or as a keyword in Python.

    Parameters
    ----------
    key
        The keyword, such as ``keep`` or ``memory_mb``.
    value
        The value to give; None names the option alone, True is a switch, and a mapping is typed as
        ``key=value`` pairs.
    python
        The value as Python has it, if it looks otherwise there.

    Examples
    --------
    >>> option("keep"), option("fit", "crop"), option("replace", True)
    ('`keep`', "`fit='crop'`", '`replace=True`')
    """
    if not on_command_line():
        return f"`{key}`" if value is None else f"`{key}={python or repr(value)}`"
    if isinstance(value, Mapping):
        value = ",".join(f"{one}={other}" for one, other in value.items())
    name = "--" + _TYPED.get(key, key).replace("_", "-")
    return name if value is None or value is True else f"{name} {value}"


def brief(value: object) -> str:
    """A value that somebody gave, for a message: its type if its text is long.

    Examples
    --------
    >>> brief("runs/first"), brief(list(range(100)))
    ("'runs/first'", 'a list')
    """
    text = repr(value)
    return text if len(text) <= _BRIEF and "\n" not in text else f"a {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What follows a word that is not known, if a known one resembles it.

    Examples
    --------
    >>> did_you_mean("wrld_size", ["workers", "world_size"]), did_you_mean("x", ["world_size"])
    (' (did you mean world_size?)', '')
    """
    import difflib  # only for this message: it would delay every start

    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def one_line(text: str) -> str:
    """A text that is one line of a terminal or a log, whatever it was before.

    Examples
    --------
    >>> one_line("a\\nREPORT RequestId: b")
    'a\\\\nREPORT RequestId: b'
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markup(text: str) -> str:
    """A text as a part of an HTML or SVG document: no markup, no control characters.

    Examples
    --------
    >>> markup("<b>\\x1b")
    '&lt;b&gt;\\\\x1b'
    """
    from html import escape  # a worker writes no pages, and this takes long to import

    return escape(printable(text))


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table with these column heads and rows; all text is escaped."""
    top = "".join(f"<th>{markup(word)}</th>" for word in head)
    body = "".join(
        "<tr>" + "".join(_html_cell(str(cell)) for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(text: str) -> str:
    # A browser breaks a line after a hyphen, which is that of 1.5e-06 too.
    style = "" if " " in text or "-" not in text else ' style="white-space: nowrap"'
    return f"<td{style}>{markup(text)}</td>"


def csv_cell(text: str) -> str:
    """A text that a spreadsheet shows as it is, and does not compute.

    Examples
    --------
    >>> csv_cell("=1+1"), csv_cell("25MB")
    ("'=1+1", '25MB')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
