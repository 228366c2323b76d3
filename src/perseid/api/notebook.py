"""A run's progress in a notebook: one line of HTML that is redrawn in place."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

from perseid.api.progress_display import Tally, count_line, stage_line
from perseid.pipeline.events import CountEvent, Event, StageEvent
from perseid.plaintext import markup

REFRESH_SECONDS = 0.5


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class NotebookProgress:
    """Displays a run's events as they arrive, in a notebook."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._handle: Any = None
        self._next = 0.0
        self._notes: list[str] = []

    def __call__(self, event: Event) -> None:
        """Update the line after an event."""
        now = time.monotonic()
        if isinstance(event, StageEvent):
            if event.message:
                self._notes.append(event.message)
            self._draw(stage_line(event.stage), self._tally.fraction())
        elif isinstance(event, CountEvent):
            over = (event.done + event.failed) / event.total if event.total else 0.0
            self._draw(count_line(event), over)
        else:
            self._tally.add(event, now)
            if event.message:
                self._notes.append(f"rank {event.rank}, attempt {event.attempt}: {event.message}")
            if now >= self._next or self._tally.over == len(self._tally.states):
                self._next = now + REFRESH_SECONDS
                self._draw(self._tally.line(now), self._tally.fraction())

    def _draw(self, line: str, fraction: float) -> None:
        ipython: Any = importlib.import_module("IPython.display")
        notes = "".join(f"<br><small>{markup(note)}</small>" for note in self._notes)
        html = ipython.HTML(
            f'<progress max="1" value="{fraction:.3f}"></progress> {markup(line)}{notes}'
        )
        if self._handle is None:
            self._handle = ipython.display(html, display_id=True)
        else:
            self._handle.update(html)
