"""Translates lines of Lambda's JSON log format into its text format.

A function logs as text or as JSON (AWS Lambda developer guide, "Log format"). The readers of logs
here know the text format only; lines in JSON are translated first.
"""

from __future__ import annotations

from collections.abc import Iterator

from perseid.jsontext import parse_json
from perseid.measure.fields import Fields
from perseid.measure.report_line import format_report, report_of_event

_LONGEST_OBJECT = 400
"""Most lines of one object that was printed with line breaks. Without a limit, each line that ends
in a brace could make the reader search the whole rest of a log."""


def text_lines(text: str) -> Iterator[str]:
    """Lines of a log in text format; an object in JSON counts as one line, also if indented."""
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
    """Translate a line into text format; a line that is not Lambda's JSON stays unchanged.

    Examples
    --------
    >>> text_line('{"time":"T","type":"platform.start","record":{"requestId":"a","version":"1"}}')
    'T START RequestId: a Version: 1'
    """
    start = line.find("{")
    if start < 0 or not _may_be_json(line):
        return line
    try:
        event = Fields(parse_json(line[start:]))
    except ValueError:
        return line
    said = _platform(event) or _application(event)
    # What stands before the object, such as the name of a stream, is kept.
    return line if said is None else (line[:start] + said).strip()


def _may_be_json(line: str) -> bool:
    """Whether parsing a line is worth trying: most lines are text, and this check is cheaper."""
    return '"platform.' in line or (
        '"timestamp"' in line and ('"level"' in line or '"log_level"' in line)
    )


def _platform(event: Fields) -> str | None:
    """Text of an event that Lambda itself logs; None for other events."""
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
    """Text of an event that the function's code logged; None for other events."""
    level = event.text("level") or event.text("log_level")
    if level is None:
        return None
    message = event.text("message")
    if message is None and event.inner("message"):
        message = event.json("message")
    error = event.text("errorType")
    if error is not None:
        # Lambda logs an exception that left the handler with its class.
        message = f"{error}: {event.text('errorMessage') or message or ''}"
        return f"[{level}] {message}"
    time, request = event.text("timestamp") or "", event.text("requestId") or ""
    return f"[{level}]\t{time}\t{request}\t{message or ''}"


def _object_from(lines: list[str], start: int) -> tuple[str, int] | None:
    """Join an object that begins at the end of a line and ends with a line ``}``.

    Returns the joined text and the number of lines; None if there is no such object.
    """
    for end in range(start + 1, min(start + _LONGEST_OBJECT, len(lines))):
        if lines[end].rstrip() == "}":
            whole = " ".join(line.strip() for line in lines[start : end + 1])
            return (whole, end - start + 1) if _may_be_json(whole) else None
    return None
