"""A file that somebody names as a source: its text, and its JSON values where it has them."""

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
    """A file that was found and read: its text, and its JSON values if it has any."""

    source: str
    """Its path or URL."""
    text: str
    values: tuple[object, ...] | None
    """The JSON (or YAML) values that it consists of; None: it is plain text."""
    why_not: str = ""
    """What is wrong with a file that begins like JSON and is none."""

    @property
    def events(self) -> list[object]:
        """The list of events that the only value is or contains; empty if there is none."""
        if self.values is None or len(self.values) != 1:
            return []
        value = self.values[0]
        return list(value) if isinstance(value, list) else Fields(value).items("events")

    @property
    def is_history(self) -> bool:
        """Whether it is the history of an execution of a state machine."""
        first = Fields(next(iter(self.events), None))
        return "type" in first and "id" in first and "message" not in first

    @property
    def is_records(self) -> bool:
        """Whether it is a list of rank records, or of nothing."""
        if self.values is None or len(self.values) != 1 or not isinstance(self.values[0], list):
            return False
        return not _is_log(self.values[0])


def read_document(source: str) -> Document:
    """A file by path or URL; raises `BadInputError` if it cannot be read."""
    if "://" in source:
        store, name = Storage.holding(source)
        return document(decode(store.get(name), source), source)
    return document(read_text(Path(source), ""), source)


def document(text: str, source: str) -> Document:
    """A file from its text."""
    try:
        values = json_values(text)
    except ValueError as error:
        return Document(source, text, None, str(error))
    if values is None:
        values = yaml_values(text, source)
    return Document(source, text, None if values is None else tuple(values))


def json_values(text: str) -> list[object] | None:
    """JSON values, one or several after each other; None if the text does not begin with one.

    Raises `ValueError` where it does and then goes on as something else.
    """
    if not text.lstrip().startswith(("{", "[", '"')):
        return None
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
    """Whether a list is of log events rather than of records: messages, or rows of a query."""
    first = values[0] if values else None
    fields = Fields(first)
    return (
        isinstance(first, (str, list))
        or any(name in fields for name in ("message", "@message", "logEvents"))
        or "type" in fields
    )
