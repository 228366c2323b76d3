"""Safe output to a terminal: control characters in foreign text are escaped."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, cast

from perseid.plaintext import printable

if TYPE_CHECKING:
    from rich.console import Console


class SafeStream:
    """A text stream that shows control characters as escapes instead of passing them on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        """The underlying stream, for code that draws."""

    def write(self, text: str) -> int:
        """Write text; characters that the stream's encoding lacks are written as escapes."""
        safe = printable(text)
        try:
            self.stream.write(safe)
        except UnicodeEncodeError:
            codec = self.stream.encoding or "ascii"
            self.stream.write(safe.encode(codec, "backslashreplace").decode(codec))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def safe_output() -> Iterator[None]:
    """Make standard output and standard error safe streams until the context ends."""
    out, error = SafeStream(_own(sys.stdout)), SafeStream(_own(sys.stderr))
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, error)):
        yield


def console(stream: TextIO | None = None) -> Console:
    """A console that may draw, by default on standard error; it bypasses the safe stream.

    Callers must pass all text through `perseid.plaintext.printable` first.
    """
    # This import takes a tenth of a second, which most commands can save.
    from rich.console import Console

    return Console(file=_own(stream or sys.stderr), highlight=False)


def paint(text: str, color: int) -> None:
    """Write a trusted word to standard output, in color if that is a terminal.

    Parameters
    ----------
    color
        Code of the ANSI color, e.g. 32 for green.
    """
    stream = _own(sys.stdout)
    stream.write(f"\033[{color}m{text}\033[0m" if stream.isatty() else text)


def width() -> int | None:
    """Width of the terminal on standard output, in columns; None if it is not a terminal.

    ``COLUMNS`` overrides it, as for other programs.
    """
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"]) or None
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _own(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, SafeStream) else stream
