"""Events of log streams put together to invocations, and whose they are.

An execution environment writes one stream and works on one invocation at a time, so within a
stream everything between two STARTs is of one invocation; streams may come in any order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

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
    time: float | None
    """Seconds since the epoch; None if an export leaves it out."""
    text: str
    """One line, or several."""

    @property
    def stamp(self) -> str:
        """The time in front of each of its lines; empty if it is not known."""
        if self.time is None:
            return ""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds") + " "


@dataclass(frozen=True)
class Traced:
    """One invocation with all it logged."""

    invocation: Invocation
    stream: str
    lines: tuple[str, ...]
    """In order, each with its time; lines of the environment's init included."""
    marks: tuple[Fields, ...] = ()
    """What our own handlers logged: event, run, rank, attempt, …"""

    def number(self, name: str) -> float | None:
        """A number in the first of our lines that has the key; None if none has."""
        return next((mark.number(name) for mark in self.marks if name in mark), None)

    def count(self, name: str) -> int | None:
        """A whole number in the first of our lines that has the key; None if none has."""
        return next((mark.count(name) for mark in self.marks if name in mark), None)

    def is_of(self, run_id: str) -> bool:
        """Whether it worked for this run."""
        return any(run_id in (mark.text("run"), mark.text("run_id")) for mark in self.marks)

    @property
    def text(self) -> str:
        """All of it, with a newline at the end."""
        return "\n".join(self.lines) + "\n"


@dataclass
class Stream:
    """The lines of one stream, cut into invocations as they come."""

    name: str
    lines: list[str] = field(default_factory=list)
    request: str | None = None
    marks: list[Fields] = field(default_factory=list)

    def add(self, event: LogEvent) -> Iterator[Traced]:
        """Take an event in; yields an invocation where this one ends it."""
        stamp = event.stamp
        for line in text_lines(event.text):
            start = _START.search(line)
            if start is not None:
                if self.request is not None:
                    yield self.close()
                self.request = start[1]
            self.lines.append(f"{stamp}{line}")
            if (mark := read_mark(line)) is not None:
                self.marks.append(mark)
            report = _REPORT.search(line)
            if report is not None:
                # An export may begin in the middle of an invocation, behind its START.
                self.request = self.request or report[1]
                yield self.close()

    def close(self) -> Traced:
        """The invocation that is open, as far as it got."""
        request = self.request or ""
        found = [i for i in read_log("\n".join(self.lines)) if i.request_id == request]
        traced = Traced(
            found[0] if found else Invocation(request),
            self.name,
            tuple(self.lines),
            tuple(self.marks),
        )
        self.lines, self.request, self.marks = [], None, []
        return traced


def trace(events: Iterable[LogEvent]) -> list[Traced]:
    """All invocations in the events, in the order of their starts.

    Those that have not ended are among them, without a REPORT; lines that belong to no
    invocation (an environment that failed in its init) are left out.
    """
    # By stream: one environment works on one invocation at a time, so lines need no id to be told
    # apart.
    streams: dict[str, Stream] = {}
    found: list[Traced] = []
    for event in sorted(events, key=lambda event: event.time or 0.0):
        stream = streams.setdefault(event.stream, Stream(event.stream))
        found += stream.add(event)
    found += [stream.close() for stream in streams.values() if stream.request is not None]
    return sorted(found, key=lambda traced: traced.invocation.started or 0.0)


def read_mark(line: str) -> Fields | None:
    """What a line of our own handlers says; None for any other line."""
    match = _MARK.search(line)
    if match is None:
        return None
    try:
        value = json.loads(match[1])
    except (ValueError, RecursionError):
        return None
    return Fields(value) if isinstance(value, Mapping) else None
