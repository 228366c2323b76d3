"""The messages between the driver and a worker process: JSON lines over `MessageStream`.

The driver sends `WorkerSetup` once, then an `Assignment` for each rank and, if the ranks merge
collectively, one `MergeAssignment`. The worker answers `Ready`, then for each assignment
`Progressed` and `AttemptDone` or `AttemptFailed`, and finally `MergeDone`. Both sides belong to the
same installation, so the messages need no version.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from perseid.errors import BadInputError, RunError
from perseid.jsontext import parse_json
from perseid.pipeline.items import WorkItem
from perseid.pipeline.join_settings import JoinSettings
from perseid.pipeline.schema import from_plain, to_plain


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs for its init phase."""

    item: WorkItem
    """Any work item of the run, since all have the same model."""
    threads: int
    """Number of threads for each library that has its own thread pool."""
    timeout: float
    """Seconds that an attempt may take; passed on to scripts."""
    started: float
    """Start of the process, in seconds since the epoch."""


@dataclass(frozen=True)
class Assignment:
    """One attempt at a rank."""

    item: WorkItem
    attempt: int
    """Number of the attempt, from 1."""


@dataclass(frozen=True)
class MergeAssignment:
    """A worker's share of the collective merge, which all workers begin at the same time."""

    settings: JoinSettings
    items: tuple[WorkItem, ...]


@dataclass(frozen=True)
class Ready:
    """The init phase is over."""


@dataclass(frozen=True)
class Progressed:
    """The attempt has made progress."""

    rows: int
    """Rows predicted so far."""


@dataclass(frozen=True)
class AttemptDone:
    """The attempt left a complete record."""

    rows: int = 0
    work_seconds: float = 0.0
    """Seconds from the assignment to the record."""
    peak_mb: float = 0.0
    """Peak resident memory during the attempt, in MiB."""


@dataclass(frozen=True)
class AttemptFailed:
    """The attempt, or the init phase, ended with an error."""

    message: str
    no_result: bool = False
    """Whether the work returned without an error but left no record."""
    final: bool = False
    """Whether the same input would fail in the same way again."""
    clean: bool = False
    """Whether the error is one of ours, so that the process is in a known state and reusable."""
    work_seconds: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class RankNote:
    """How a rank's collective merge went."""

    rank: int
    note: str
    """Reason why its statistics go through the store; empty if the merge succeeded."""


@dataclass(frozen=True)
class MergeDone:
    """The worker's part of the collective merge is over."""

    notes: tuple[RankNote, ...]


Message = (
    WorkerSetup | Assignment | MergeAssignment
    | Ready | Progressed | AttemptDone | AttemptFailed | MergeDone
)  # fmt: skip
"""All messages that are sent over a worker's connection."""
# By class name: a message is the name and the fields of its class.
_KINDS: Mapping[str, type[Message]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def to_text(message: Message) -> str:
    """A message as one JSON object on one line.

    Examples
    --------
    >>> to_text(Progressed(512))
    '{"Progressed": {"rows": 512}}'
    """
    return json.dumps({type(message).__name__: to_plain(message)})


def from_text(text: str | bytes | bytearray) -> Message:
    """The inverse of `to_text`; raises `RunError` for any other text."""
    try:
        # Exactly one key: anything else is output that did not come from our code.
        ((name, plain),) = parse_json(text).items()
        return from_plain(_KINDS[name], plain, f"the message {name}")
    except (ValueError, KeyError, AttributeError, BadInputError) as error:
        raise RunError(f"the worker sent something that is not a message: {text[:80]!r}") from error
