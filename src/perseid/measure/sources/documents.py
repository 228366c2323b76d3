"""A file that was named as a source: its text, and its JSON values if it has any."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from perseid.measure.fields import Fields
from perseid.measure.sources.exports import yaml_values
from perseid.storage import Storage
from perseid.textfile import decode, read_text


@dataclass(frozen=True)
class Document:
    """A file that was read: its text, and its JSON values if it has any."""

    source: str
    """Its path or URL."""
    text: str
    """Its decoded text."""
    values: tuple[object, ...] | None
    """JSON or YAML values that the file consists of; None if it is plain text."""
    why_not: str = ""
    """What is wrong with a file that begins like JSON but is not JSON; otherwise empty."""

    @property
    def events(self) -> list[object]:
        """The events, if the file is one list of events or answers with one each; otherwise
        empty."""
        values = self.values or ()
        if len(values) == 1 and isinstance(values[0], list):
            return list(values[0])
        pages = [Fields(value) for value in values]
        if not all("events" in page for page in pages):
            return []
        return [event for page in pages for event in page.items("events")]

    @property
    def is_history(self) -> bool:
        """Whether the file is the history of an execution of a state machine."""
        first = Fields(next(iter(self.events), None))
        # An event of a log may have a type and an id as well, but it has a message.
        return "type" in first and "id" in first and "message" not in first

    @property
    def is_records(self) -> bool:
        """Whether the file is a list of rank records, which may be empty."""
        if self.values is None or len(self.values) != 1 or not isinstance(self.values[0], list):
            return False
        return not _is_log(self.values[0])


def read_document(source: str) -> Document:
    """Read a file by path or URL; raises `BadInputError` if it cannot be read."""
    if "://" in source:
        store, name = Storage.holding(source)
        return document(decode(store.get(name), source), source)
    return document(read_text(Path(source), ""), source)


def document(text: str, source: str) -> Document:
    """Make a document from the text of a file."""
    try:
        values = json_values(text)
    except ValueError as error:
        return Document(source, text, None, str(error))
    # YAML only after JSON: every JSON text is YAML, too, but takes far longer to parse that way.
    if values is None:
        values = yaml_values(text, source)
    return Document(source, text, None if values is None else tuple(_pages(values)))


def _pages(values: list[object]) -> list[object]:
    """Values of a file; those of a list of answers (``--output yaml-stream``) one by one."""
    first = values[0] if len(values) == 1 else None
    if isinstance(first, list) and first and all("events" in Fields(item) for item in first):
        return first
    return values


def json_values(text: str) -> list[object] | None:
    """Parse one or several JSON values in a row; None if the text does not begin with one.

    Raises `ValueError` if it begins like JSON, but is not JSON to the end.
    """
    if not text.lstrip().startswith(("{", "[", '"')):
        return None
    # One value after another, since exports often hold one object per line.
    decoder, at, found = json.JSONDecoder(), 0, []
    try:
        while at < len(text):
            while at < len(text) and text[at].isspace():
                at += 1
            if at < len(text):
                value, at = decoder.raw_decode(text, at)
                found.append(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _is_log(values: list[object]) -> bool:
    """Whether a list consists of log events or rows of a log query, rather than of records."""
    first = values[0] if values else None
    # One entry is enough: a list holds entries of one kind.
    fields = Fields(first)
    return (
        isinstance(first, (str, list))
        or any(name in fields for name in ("message", "@message", "logEvents"))
        or "type" in fields
    )
