"""Choose how a run's progress is shown: a bar, not at all, or by the caller's function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perseid.api.notebook import NotebookProgress, in_notebook
from perseid.api.progress_display import RunProgress
from perseid.errors import BadInputError
from perseid.pipeline.events import Event, Report
from perseid.plaintext import brief


@contextmanager
def reporting(progress: bool | Report) -> Iterator[Report]:
    """The function that receives the run's events: True means a progress bar, False none."""
    if callable(progress):
        yield progress
    elif not isinstance(progress, bool):
        raise BadInputError(
            f"progress is {brief(progress)}: give True, False, or a function that takes an event"
        )
    elif not progress:
        yield _silent
    elif in_notebook():
        yield NotebookProgress()
    else:
        with RunProgress() as bar:
            yield bar


def _silent(event: Event) -> None:
    """Discard an event: progress was switched off."""
