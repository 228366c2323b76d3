"""Assembles the events of log streams into invocations, and tells which run they worked for.

An execution environment writes one stream and works on one invocation at a time. So within a
stream, everything between two STARTs belongs to one invocation; streams may come in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from perseid.jsontext import parse_json
from perseid.measure.fields import Fields
from perseid.measure.sources.lambda_lines import text_lines
from perseid.measure.sources.log_files import Invocation, read_log

_START = re.compile(r"(?<!\w)START RequestId:\s*(\S+)")
_REPORT = re.compile(r"(?<![\w])REPORT\s+RequestId:\s*(\S+)")
_MARK = re.compile(r"\bPERSEID (\{.*\})")


@dataclass(frozen=True)
class LogEvent:
    """One event of a log stream."""

    stream: str
    """Name of the stream."""
    time: float | None
    """Time in seconds since the epoch; None if an export leaves it out."""
    text: str
    """Text of the event, of one or several lines."""

    @property
    def stamp(self) -> str:
        """The time as a prefix for each of its lines; empty if the time is unknown."""
        if self.time is None:
            return ""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds") + " "


@dataclass(frozen=True)
class Traced:
    """One invocation with everything that it logged."""

    invocation: Invocation
    stream: str
    lines: tuple[str, ...]
    """Its lines in order, each with its time, including those of the environment's init."""
    marks: tuple[Fields, ...] = ()
    """What our own handlers logged about it: event, run, rank, attempt, …"""

    def number(self, name: str) -> float | None:
        """The number in the first mark that has the key; None if no mark has it."""
        return next((mark.number(name) for mark in self.marks if name in mark), None)

    def count(self, name: str) -> int | None:
        """The whole number in the first mark that has the key; None if no mark has it."""
        return next((mark.count(name) for mark in self.marks if name in mark), None)

    def is_of(self, run_id: str) -> bool:
        """Whether the invocation worked for a run."""
        return any(run_id in (mark.text("run"), mark.text("run_id")) for mark in self.marks)

    @property
    def text(self) -> str:
        """All its lines, with a newline at the end."""
        return "\n".join(self.lines) + "\n"


@dataclass
class Stream:
    """Cuts the lines of one stream into invocations as they come."""

    name: str
    lines: list[str] = field(default_factory=list)
    request: str | None = None
    """Request id of the open invocation; None between two invocations."""
    marks: list[Fields] = field(default_factory=list)

    def add(self, event: LogEvent) -> Iterator[Traced]:
        """Add an event; yields an invocation if the event ends it."""
        stamp = event.stamp
        for line in text_lines(event.text):
            start = _START.search(line)
            if start is not None:
                if self.request is not None:
                    # The one before has no REPORT: its environment was killed, or the line is
                    # missing.
                    yield self.close()
                self.request = start[1]
            self.lines.append(f"{stamp}{line}")
            if (mark := read_mark(line)) is not None:
                self.marks.append(mark)
            report = _REPORT.search(line)
            if report is not None:
                # An export may begin in the middle of an invocation, after its START.
                self.request = self.request or report[1]
                yield self.close()

    def close(self) -> Traced:
        """End the open invocation, complete or not, and return it."""
        request = self.request or ""
        # The reader of plain logs is used here as well: it knows all lines that report an end.
        found = [i for i in read_log("\n".join(self.lines)) if i.request_id == request]
        traced = Traced(
            found[0] if found else Invocation(request),
            self.name,
            tuple(self.lines),
            _own(self.marks, request),
        )
        self.lines, self.request, self.marks = [], None, []
        return traced


def _own(marks: list[Fields], request: str) -> tuple[Fields, ...]:
    """Leave out what the environment said about its previous invocation after this one's START.

    A platform may deliver an output's last line late; its rank and run are not this invocation's.
    """
    start = next((mark for mark in marks if mark.text("request") == request), None)
    if start is None or "rank" not in start:
        return tuple(marks)
    about = start.text("run"), start.count("rank")
    return tuple(
        mark for mark in marks
        if "rank" not in mark or (mark.text("run"), mark.count("rank")) == about
    )  # fmt: skip


def trace(events: Iterable[LogEvent]) -> list[Traced]:
    """Assemble all invocations in the events, in the order of their starts.

    This includes those that have not ended, without a REPORT. Lines that belong to no invocation,
    of an environment that failed in its init, are left out.
    """
    # By stream: an environment works on one invocation at a time, so its lines need no id.
    streams: dict[str, Stream] = {}
    found: list[Traced] = []
    # Files and pages of an export may come in any order; equal times keep the order of the file.
    for event in sorted(events, key=lambda event: event.time or 0.0):
        stream = streams.setdefault(event.stream, Stream(event.stream))
        found += stream.add(event)
    found += [stream.close() for stream in streams.values() if stream.request is not None]
    return sorted(found, key=lambda traced: traced.invocation.started or 0.0)


def read_mark(line: str) -> Fields | None:
    """Read a line that our own handlers logged; None for any other line."""
    match = _MARK.search(line)
    if match is None:
        return None
    try:
        value = parse_json(match[1])
    except ValueError:
        return None
    return Fields(value) if isinstance(value, Mapping) else None
