"""Reads log events from all forms in which CloudWatch exports them.

The command line writes JSON, YAML, text and tables of ``filter-log-events``, ``get-log-events``,
``get-query-results`` and ``tail``; the console writes CSV, JSON, Markdown and tables in ASCII;
export tasks and subscriptions write lines and JSON, compressed
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/). Any other file is plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from perseid.errors import BadInputError
from perseid.measure.fields import Fields, as_number
from perseid.measure.sources.log_files import MILLISECONDS_FROM, Invocation, read_log, timestamp
from perseid.measure.sources.streams import LogEvent, trace
from perseid.textfile import csv_rows

_YAML = re.compile(
    r"^(?:- )?(?:events|results|searchedLogStreams|next\w*Token):\s"
    r"|\A\s*(?:---\n)?- (?:timestamp|type|id|eventId|logStreamName|ingestionTime|message"
    r"|previousEventId|\w+EventDetails):\s",
    re.MULTILINE,
)
"""Answers with events, or at the beginning of the text a list of events alone."""
_TEXT_EVENT = re.compile(
    r"^EVENTS\t(?:\d{20,}\t)?\d{13}\t(?:(\S*\[\S+)\t)?(.*?)\t(\d{13})$", re.MULTILINE | re.DOTALL
)
"""An event of ``--output text``: values in the order of their keys' names. The message may contain
tabs and line breaks."""
_SELECTED = re.compile(r"^(\d{13})\t(.*?)(?=\n\d{13}\t|\Z)", re.MULTILINE | re.DOTALL)
"""An event of ``--query 'events[].[timestamp,message]' --output text``."""
_SELECTED_ROW = re.compile(r"\|\s*\d{13}\s*\|")
"""Beginning of a row in the table of the same; it has no head."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_TAIL = re.compile(r"^(\d{4}-\d\d-\d\dT\S+) (\d{4}/\d\d/\d\d/\S*\[[^\]\s]+\]\S+) (.*)$", re.DOTALL)
"""A line of ``aws logs tail``: time, stream, message."""
_MESSAGE = ("message", "@message")
_TIME = ("timestamp", "@timestamp")
_STREAM = ("logStreamName", "@logStream", "logStream", "log stream name")
_EVENT_KEYS = {*_TIME, *_STREAM, "eventId", "ingestionTime", "@ptr", "id"}
_HEAD_LINES = 12
"""Lines at the beginning of a file in which a table must show its head."""


@dataclass(frozen=True)
class LogText:
    """Content of one file of a log."""

    events: tuple[LogEvent, ...] = ()
    """Events, if the file is an export of events."""
    lines: str = ""
    """The whole text, if the file is plain text."""

    @property
    def size(self) -> float:
        """Number of characters of all messages: about the bytes that CloudWatch ingested."""
        return float(len(self.lines) + sum(len(event.text) for event in self.events))


def read_log_text(text: str, values: Sequence[object] | None, source: str) -> LogText:
    """Read a log in any of its forms.

    Parameters
    ----------
    text
        Decoded content of the file.
    values
        JSON values that the file consists of; None if it is not JSON.
    source
        Name of the file, for errors.
    """
    # JSON needs no guessing; all other forms are told by their first lines.
    if values is not None:
        return LogText(events=tuple(_of_values(values)))
    text = _COLOR.sub("", text)  # of `aws logs tail --color on`
    head = text.lstrip()[:_MAX_HEAD].split("\n")[:_HEAD_LINES]
    if head[0].startswith("EVENTS\t"):
        found = _TEXT_EVENT.finditer(text)
        return LogText(events=tuple(LogEvent(m[1] or "", _time(m[3]), m[2]) for m in found))
    if _SELECTED.match(text):
        found = _SELECTED.finditer(text)
        return LogText(events=tuple(LogEvent("", _time(m[1]), m[2]) for m in found))
    if any(_is_row_of_table(line) for line in head):
        return LogText(events=tuple(_of_rows(_table_rows(text))))
    # A CSV file for spreadsheets may begin with a line that names its separator.
    if _is_head(head[0]) or (head[0].lower().startswith("sep=") and _is_head("".join(head[1:2]))):
        return LogText(events=tuple(_of_rows(csv_rows(text, source))))
    if _TAIL.match(head[0]):
        return LogText(events=tuple(_of_tail(text)))
    return LogText(lines=text)


_MAX_HEAD = 20_000
"""Characters at the beginning of a file that are looked at to tell its form."""


def yaml_values(text: str, source: str) -> list[object] | None:
    """Parse a file that ``--output yaml`` wrote; None if it is not such a file.

    Raises `BadInputError` if the file is broken.
    """
    if not _YAML.search(text[:_MAX_HEAD]):
        return None
    import yaml  # slow to import and rarely needed

    try:
        # The C parser is many times faster, but not built into every PyYAML; both load plain data
        # only.
        return [yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
    except yaml.YAMLError as error:
        raise BadInputError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise BadInputError(f"{source} is not YAML: it is nested too deeply") from None


def invocations_of(texts: Iterable[LogText]) -> list[Invocation]:
    """All invocations in the files of a log.

    Events that name their stream are assembled by stream; all others by request id, like plain
    text.
    """
    lines: list[str] = []
    named: list[LogEvent] = []
    for one in texts:
        lines.append(one.lines)
        for event in one.events:
            if event.stream:
                named.append(event)
            else:
                lines += [f"{event.stamp}{line}" for line in event.text.splitlines()]
    found = read_log("\n".join(lines))
    return found + [traced.invocation for traced in trace(named)]


def _of_values(values: Iterable[object], stream: str = "") -> Iterator[LogEvent]:
    for value in values:
        if isinstance(value, str):
            yield LogEvent(stream, None, value)
        elif isinstance(value, Mapping):
            yield from _of_object(value, stream)
        elif isinstance(value, list):
            yield from _of_list(value, stream)


def _of_object(value: Mapping[str, object], stream: str) -> Iterator[LogEvent]:
    fields = Fields(value)
    stream = _first_text(fields, _STREAM) or stream
    for name in ("events", "logEvents", "results"):
        if name in fields:
            yield from _of_values(fields.items(name), stream)
            return
    message = next((name for name in _MESSAGE if name in fields), None)
    # A function may log JSON with a message of its own: an event has a time, a stream or an id.
    if message is None or "level" in fields or not _EVENT_KEYS & set(fields.names()):
        yield LogEvent(stream, None, json.dumps(value, default=str))
        return
    text = fields.text(message)
    when = next((_time(value[name]) for name in _TIME if name in fields), None)
    yield LogEvent(stream, when, fields.json(message) if text is None else text)


def _of_list(value: list[object], stream: str) -> Iterator[LogEvent]:
    """Events of a list: a row of an Insights query, a row of selected values, or several events."""
    if value and all(isinstance(item, Mapping) and "field" in item for item in value):
        row = {str(item["field"]): item.get("value") for item in value if isinstance(item, Mapping)}
        yield from _of_object(row, stream)
        return
    texts = [item for item in value if isinstance(item, str)]
    times = [item for item in value if isinstance(item, (int, float))]
    if texts and len(times) == 1:
        # Selected with --query, values have no names: the longest text is the message.
        yield LogEvent(stream, _time(times[0]), max(texts, key=len))
        return
    yield from _of_values(value, stream)


def _of_rows(rows: Iterable[Mapping[str, str]]) -> Iterator[LogEvent]:
    for row in rows:
        fields = Fields(row)
        text = _first_text(fields, _MESSAGE)
        if text is not None:
            when = _time(_first_text(fields, _TIME) or "")
            yield LogEvent(_first_text(fields, _STREAM) or "", when, text)


def _of_tail(text: str) -> Iterator[LogEvent]:
    """Events of ``aws logs tail``; a line without time and stream continues the event before it."""
    open_one: LogEvent | None = None
    for line in text.split("\n"):
        match = _TAIL.match(line)
        if match is None:
            if open_one is not None:
                open_one = LogEvent(open_one.stream, open_one.time, f"{open_one.text}\n{line}")
            continue
        if open_one is not None:
            yield open_one
        open_one = LogEvent(match[2], timestamp(match[1]), match[3])
    if open_one is not None:
        yield open_one


def _is_head(line: str) -> bool:
    """Whether a line is the head of a table of log events."""
    names = {name.strip(' "|\t') for name in re.split(r"[,;\t|]", line)}
    return bool(names & set(_MESSAGE)) and bool(names & {*_TIME, *_STREAM, "@ptr"})


def _is_row_of_table(line: str) -> bool:
    """Whether a line is the head of a drawn table of log events, or a row of one without a head."""
    line = line.lstrip()
    return line.startswith("|") and (_is_head(line) or _SELECTED_ROW.match(line) is not None)


def _table_rows(text: str) -> Iterator[dict[str, str]]:
    """Rows of a table that is drawn with ``|``, ``-`` and ``+``; cells may contain line breaks."""
    names: list[str] = []
    for line in _table_lines(text):
        inner = line.strip().strip("|")
        if not inner.strip("-+:| "):
            continue
        if not names:
            if not _SELECTED_ROW.match(line.lstrip()):
                cells = [cell.strip() for cell in inner.split("|")]
                names = cells if _is_head(line) else []
                continue
            names = ["timestamp", "message"]
        # Cells after the message are counted from the end, because the message may contain the
        # separator.
        last = len(names) - 1 - next(i for i, name in enumerate(names) if name in _MESSAGE)
        yield dict(zip(names, _cells(inner, len(names), last), strict=False))


def _cells(line: str, count: int, after: int) -> list[str]:
    """Cells of a row; the message, which `after` cells follow, may contain the separator."""
    parts = line.split("|")
    before = count - after - 1
    end = len(parts) - after
    middle = "|".join(parts[before:end])
    return [part.strip() for part in (*parts[:before], middle, *parts[end:])]


def _table_lines(text: str) -> Iterator[str]:
    """Lines of a drawn table; those of a cell with line breaks are joined."""
    held = ""
    for line in text.split("\n"):
        held = f"{held}\n{line}" if held else line
        if not held.lstrip().startswith("|") or held.rstrip().endswith("|"):
            if held.lstrip().startswith("|"):
                yield held
            held = ""


def _first_text(fields: Fields, names: Sequence[str]) -> str | None:
    return next((text for name in names if (text := fields.text(name)) is not None), None)


def _time(value: object) -> float | None:
    """Seconds since the epoch, from milliseconds, seconds or a written time."""
    number = as_number(value)
    if number is None:
        return timestamp(str(value))
    return number / 1e3 if abs(number) >= MILLISECONDS_FROM else number
