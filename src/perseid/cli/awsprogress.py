"""A run on AWS on the terminal: one live line where there is one, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TextIO

from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from perseid.aws.progress import MapProgress
from perseid.cli.progress import duration
from perseid.cli.terminal import console
from perseid.plaintext import printable

LINE_SECONDS = 10.0
"""Plain lines come no more often, unless the stage changes."""


def line(now: MapProgress) -> str:
    """E.g. ``map · 12/41 ranks done · 29 running · 15336 rows · about 0.0123 USD · 14 s``."""
    words = [now.stage if not now.ended else now.status.lower()]
    if now.total:
        words.append(f"{now.succeeded}/{now.total} ranks done")
    numbers = (
        ("running", now.running), ("waiting", now.waiting), ("failed", now.failed),
        ("tried again", now.retried),
    )  # fmt: skip
    words += [f"{number} {name}" for name, number in numbers if number]
    if now.rows:
        words.append(f"{now.rows:,} rows")
    if now.usd:
        words.append(f"workers so far about {now.usd:.6f} USD")
    return " · ".join([*words, duration(now.seconds)])


class AwsProgress:
    """Draws what a watcher saw; a context manager."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._console = console(stream)
        self._quiet = quiet
        self._stage = ""
        self._next = 0.0
        live = self._console.is_terminal and not quiet
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self._console, auto_refresh=False) if live else None
        self._task: TaskID | None = None

    def __call__(self, now: MapProgress) -> None:
        """One look."""
        if self._quiet:
            return
        if self._bar is not None and not now.ended:
            self._draw(self._bar, now)
        elif now.stage != self._stage or time.monotonic() >= self._next:
            self.close()
            self._console.print(printable(line(now)), markup=False, soft_wrap=True)
            self._next = time.monotonic() + LINE_SECONDS
        self._stage = now.stage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away; while it is there, nothing without an end of line is shown."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, visible=False)
            self._bar.stop()
            self._task, self._bar = None, None

    def say(self, text: str) -> None:
        """A line of words."""
        if not self._quiet:
            self._console.print(printable(text), markup=False, soft_wrap=True)

    def _draw(self, bar: Bar, now: MapProgress) -> None:
        done = (now.succeeded + now.failed) / now.total if now.total else 0.0
        if self._task is None:
            self._task = bar.add_task(printable(line(now)), total=1.0)
            bar.start()
        bar.update(self._task, completed=done, description=printable(line(now)), refresh=True)
