"""What is written to a terminal: control characters of foreign text are escaped."""

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
        """The stream itself, for programs that draw."""

    def write(self, text: str) -> int:
        """Write a text; characters that the stream's encoding lacks are shown as escapes."""
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
    """Standard output and standard error are safe streams until the context ends."""
    out, error = SafeStream(_own(sys.stdout)), SafeStream(_own(sys.stderr))
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, error)):
        yield


def console(stream: TextIO | None = None) -> Console:
    """A console that may draw: on standard error, past the safe stream.

    What is shown on it must have gone through `perseid.plaintext.printable`.
    """
    from rich.console import Console  # a tenth of a second that most commands do without

    return Console(file=_own(stream or sys.stderr), highlight=False)


def paint(text: str, color: int) -> None:
    """Write a word of ours on standard output, colored where that is a terminal.

    Parameters
    ----------
    color
        Code of the ANSI color, e.g. 32 for green.
    """
    stream = _own(sys.stdout)
    stream.write(f"\033[{color}m{text}\033[0m" if stream.isatty() else text)


def width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none.

    ``COLUMNS`` counts in any case, as for other programs.
    """
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"]) or None
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _own(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, SafeStream) else stream
