"""Reads invocations from a log: START, received event, END and REPORT, assembled by request id.

Streams may be interleaved and REPORTs may be missing: an invocation that started and has no REPORT
is kept without one; nothing is made up.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from perseid.jsontext import parse_json
from perseid.measure.fields import Fields
from perseid.measure.report_line import Report, find_reports
from perseid.measure.sources.lambda_lines import text_lines

_START = re.compile(r"(?<!\w)START RequestId:\s*(\S+)")
_END = re.compile(r"(?<!\w)END RequestId:\s*(\S+)")
# The functions of the existing system print either "received" or "receiving event".
_RECEIVED = re.compile(r"receiv(?:ed|ing event):\s*(\{.*\})")
_TIMED_OUT = re.compile(r"(?<!\S)(\S+) Task timed out after ([0-9.]+) seconds")
_DIED = re.compile(r"RequestId:\s*(\S+)\s+(?:Error:\s*)?(Runtime exited|Process exited)")
MILLISECONDS_FROM = 1e11
"""Numbers above this count milliseconds: as seconds, they would be later than the year 5000."""
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?\s*(Z|[+-]\d\d:?\d\d)?")


@dataclass(frozen=True)
class Received:
    """What a function says it received; None if it does not say it."""

    rank: str | None = None
    world_size: int | None = None
    batch_size: int | None = None
    result_path: str | None = None
    data_prefix: str | None = None
    function: str = ""
    """Kind of function that receives such an event; empty if unknown."""
    known: bool = False
    """Whether the function said anything at all."""

    @classmethod
    def of(cls, event: Fields) -> Received:
        """Read the event of a worker, or of the connection test."""
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
    """One invocation of a function, as far as the log describes it."""

    request_id: str
    started: float | None = None
    """Time of the START line, in seconds since the epoch; None if the log has no times."""
    ended: float | None = None
    """Time of the END line or, without one, of the REPORT; None if unknown."""
    report: Report | None = None
    """Its REPORT; None if the log has none (it still runs, or the log is cut off)."""
    event: Received = field(default_factory=lambda: NOTHING)
    """What the function received, if it says so."""
    died: str = ""
    """``timeout`` or ``error`` if a line of the log says that it ended so; otherwise empty."""

    @property
    def failed(self) -> bool:
        """Whether it failed, according to its REPORT or another line of the log."""
        return bool(self.died) or (self.report is not None and not self.report.succeeded)

    @property
    def seconds(self) -> float | None:
        """Time in the handler, in seconds: the Duration of the REPORT; None without one."""
        return None if self.report is None else self.report.duration_ms / 1e3


def read_log(text: str) -> list[Invocation]:
    """Read all invocations of a log, in the order in which it first mentions them.

    Parameters
    ----------
    text
        One stream or several interleaved ones, in Lambda's text or JSON format; each line may
        begin with a time or a stream name.
    """
    found: dict[str, Invocation] = {}
    open_ids: list[str] = []
    # Text that is copied from the console has each time on a line of its own above the event.
    above: float | None = None
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
    # In any line: two REPORTs of interleaved streams may share one.
    for report in find_reports(line):
        # The END line, if there was one, has the better time: a REPORT is written after it.
        ended = found.get(report.request_id, Invocation("")).ended
        _update(found, report.request_id, report=report, ended=ended if ended else when)


def _update(found: dict[str, Invocation], request: str, **changes: Any) -> None:
    found[request] = replace(found.get(request, Invocation(request)), **changes)


def _owner(line: str, found: Mapping[str, Invocation], open_ids: Iterable[str]) -> str | None:
    """Id of a line's invocation: the one that it names, or the only open one without an event."""
    waiting = [request for request in open_ids if not found[request].event.known]
    named = [request for request in waiting if request in line]
    if named:
        return named[0]
    # With several candidates, no owner is better than a wrong one.
    return waiting[0] if len(waiting) == 1 else None


def _literal(text: str) -> Fields:
    """Parse a dict that was printed as JSON or by Python's repr; empty if it is neither."""
    # The existing functions print the repr of a dict; literal_eval reads it without running code.
    for read in (parse_json, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, Mapping):
            return Fields(value)
    return Fields(None)


def timestamp(line: str) -> float | None:
    """The first time in a line, in seconds since the epoch; it is UTC if it has no zone."""
    match = _TIME.search(line)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0'):0<6}")
    # It looks like a time, but has a month 13 or an hour 25: no time.
    except ValueError:
        return None
    if zone and zone != "Z":
        moment = moment.replace(tzinfo=datetime.strptime(zone.replace(":", ""), "%z").tzinfo)
    else:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
