"""Lines of Lambda's JSON log format, said as its text format says them.

A function logs as text or as JSON (AWS Lambda developer guide, "Log format"). Whatever reads logs
here reads the text form alone; a line of the JSON form is brought into it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from perseid.measure.fields import Fields
from perseid.measure.report_line import format_report, report_of_event

_LONGEST_OBJECT = 400
"""Lines of one object that was printed with line breaks."""


def text_lines(text: str) -> Iterator[str]:
    """The lines of a log, those in JSON in their text form; an indented object is one line."""
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        line, taken = lines[index], 1
        if line.rstrip().endswith("{"):
            whole = _object_from(lines, index)
            if whole is not None:
                line, taken = whole
        yield text_line(line)
        index += taken


def text_line(line: str) -> str:
    """A line in the text form; one that is not Lambda's JSON stays as it is.

    Examples
    --------
    >>> text_line('{"time":"T","type":"platform.start","record":{"requestId":"a","version":"1"}}')
    'T START RequestId: a Version: 1'
    """
    start = line.find("{")
    if start < 0 or not _may_be_json(line):
        return line
    try:
        event = Fields(json.loads(line[start:]))
    except (ValueError, RecursionError):
        return line
    said = _platform(event) or _application(event)
    return line if said is None else (line[:start] + said).strip()


def _may_be_json(line: str) -> bool:
    """Cheaper than parsing: most lines are text."""
    return '"platform.' in line or (
        '"timestamp"' in line and ('"level"' in line or '"log_level"' in line)
    )


def _platform(event: Fields) -> str | None:
    """What Lambda itself logs about an invocation."""
    kind, record = event.text("type"), event.inner("record")
    time, request = event.text("time") or "", record.text("requestId") or ""
    if kind == "platform.start":
        return f"{time} START RequestId: {request} Version: {record.text('version') or ''}"
    if kind == "platform.runtimeDone":
        return f"{time} END RequestId: {request}"
    if kind == "platform.initStart":
        return f"{time} INIT_START Runtime Version: {record.text('runtimeVersion') or ''}"
    if kind == "platform.report":
        report = report_of_event(event)
        return None if report is None else f"{time} {format_report(report)}"
    return None


def _application(event: Fields) -> str | None:
    """What the function's own code logs; an exception that left the handler has its class."""
    level = event.text("level") or event.text("log_level")
    if level is None:
        return None
    message = event.text("message")
    if message is None and event.inner("message"):
        message = event.json("message")
    error = event.text("errorType")
    if error is not None:
        message = f"{error}: {event.text('errorMessage') or message or ''}"
        return f"[{level}] {message}"
    time, request = event.text("timestamp") or "", event.text("requestId") or ""
    return f"[{level}]\t{time}\t{request}\t{message or ''}"


def _object_from(lines: list[str], start: int) -> tuple[str, int] | None:
    """An object that begins at the end of a line and ends in a line ``}``, and its lines."""
    for end in range(start + 1, min(start + _LONGEST_OBJECT, len(lines))):
        if lines[end].rstrip() == "}":
            whole = " ".join(line.strip() for line in lines[start : end + 1])
            return (whole, end - start + 1) if _may_be_json(whole) else None
    return None
