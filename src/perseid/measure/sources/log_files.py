"""Invocations out of a log: START, what was received, END and REPORT put together by request id.

Streams may be interleaved and REPORTs may be missing: an invocation that started and has no
REPORT is kept without one, never invented.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from perseid.measure.fields import Fields
from perseid.measure.report_line import Report, find_reports
from perseid.measure.sources.lambda_lines import text_lines

_START = re.compile(r"(?<!\w)START RequestId:\s*(\S+)")
_END = re.compile(r"(?<!\w)END RequestId:\s*(\S+)")
_RECEIVED = re.compile(r"receiv(?:ed|ing event):\s*(\{.*\})")
_TIMED_OUT = re.compile(r"(?<!\S)(\S+) Task timed out after ([0-9.]+) seconds")
_DIED = re.compile(r"RequestId:\s*(\S+)\s+(?:Error:\s*)?(Runtime exited|Process exited)")
MILLISECONDS_FROM = 1e11
"""A larger number counts milliseconds: as seconds it would lie after the year 5000."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?\s*(Z|[+-]\d\d:?\d\d)?")


@dataclass(frozen=True)
class Received:
    """What a function says it received; None if it does not say."""

    rank: str | None = None
    world_size: int | None = None
    batch_size: int | None = None
    result_path: str | None = None
    data_prefix: str | None = None
    function: str = ""
    """What kind of function receives such things; empty if nothing tells."""
    known: bool = False
    """Whether it said anything at all."""

    @classmethod
    def of(cls, event: Fields) -> Received:
        """From the item that a worker gets, or what the connection test gets."""
        function = ""
        if "SCRIPT" in event:
            function = "inference worker"
        elif "rendezvous_endpoint" in event and "bucket" not in event:
            function = "connection test"
        rank = event.number("RANK")
        return cls(
            rank=event.text("RANK") if rank is None else f"{rank:g}",
            world_size=event.count("WORLD_SIZE"),
            batch_size=event.count("BATCH_SIZE"),
            result_path=event.text("RESULT_PATH"),
            data_prefix=event.text("DATA_PREFIX"),
            function=function,
            known=bool(event),
        )


NOTHING = Received()


@dataclass(frozen=True)
class Invocation:
    """One invocation of a function, as far as the log tells."""

    request_id: str
    started: float | None = None
    """START line, seconds since the epoch; None if the log has no time."""
    ended: float | None = None
    """END line, or the REPORT's."""
    report: Report | None = None
    """None: the log has no REPORT of it (still running, or the log is cut)."""
    event: Received = field(default_factory=lambda: NOTHING)
    """What the function received, where it says so."""
    died: str = ""
    """``timeout`` or ``error`` where a line of its own says so."""

    @property
    def failed(self) -> bool:
        """Whether it ended without success, by its REPORT or by a line of its own."""
        return bool(self.died) or (self.report is not None and not self.report.succeeded)

    @property
    def seconds(self) -> float | None:
        """Handler time, s: the REPORT's Duration."""
        return None if self.report is None else self.report.duration_ms / 1e3


def read_log(text: str) -> list[Invocation]:
    """All invocations of a log, in the order in which they were first mentioned.

    Parameters
    ----------
    text
        One stream or several interleaved ones, in Lambda's text or JSON format; each line may
        begin with a time, a stream name.
    """
    found: dict[str, Invocation] = {}
    open_ids: list[str] = []
    above: float | None = None  # the console copies each event's time as a line above it
    for line in text_lines(text):
        if _TIME.fullmatch(line.strip()):
            above = timestamp(line)
            continue
        _take_line(line, timestamp(line) or above, found, open_ids)
    return list(found.values())


def _take_line(
    line: str, when: float | None, found: dict[str, Invocation], open_ids: list[str]
) -> None:
    if match := _START.search(line):
        _update(found, match[1], started=when)
        open_ids.append(match[1])
    elif match := _RECEIVED.search(line):
        request = _owner(line, found, open_ids)
        if request:
            _update(found, request, event=Received.of(_literal(match[1])))
    elif match := _TIMED_OUT.search(line):
        _update(found, match[1], died="timeout")
    elif match := _DIED.search(line):
        _update(found, match[1], died="error")
    elif match := _END.search(line):
        _update(found, match[1], ended=when)
        if match[1] in open_ids:
            open_ids.remove(match[1])
    # Of any line: interleaved streams may run two REPORTs into one.
    for report in find_reports(line):
        ended = found.get(report.request_id, Invocation("")).ended
        _update(found, report.request_id, report=report, ended=ended if ended else when)


def _update(found: dict[str, Invocation], request: str, **changes: Any) -> None:
    found[request] = replace(found.get(request, Invocation(request)), **changes)


def _owner(line: str, found: Mapping[str, Invocation], open_ids: Iterable[str]) -> str | None:
    """Whose line this is: the id it names, else the only open invocation without an event."""
    waiting = [request for request in open_ids if not found[request].event.known]
    named = [request for request in waiting if request in line]
    if named:
        return named[0]
    # Of several it could be any: rather no owner than a wrong one.
    return waiting[0] if len(waiting) == 1 else None


def _literal(text: str) -> Fields:
    """A dict as Python's repr or as JSON prints it; empty if it is neither."""
    # The existing functions print the repr of a dict; literal_eval reads it and runs nothing.
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, Mapping):
            return Fields(value)
    return Fields(None)


def timestamp(line: str) -> float | None:
    """The first time in a line, seconds since the epoch; without a zone it is UTC."""
    match = _TIME.search(line)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0'):0<6}")
    except ValueError:
        return None
    if zone and zone != "Z":
        moment = moment.replace(tzinfo=datetime.strptime(zone.replace(":", ""), "%z").tzinfo)
    else:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
