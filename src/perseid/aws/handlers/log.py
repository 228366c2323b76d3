"""Lines of our own in a function's log, so that its requests can be told apart by run and rank."""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "PERSEID"
"""First word of the line; JSON follows."""


def line(event: str, **values: Any) -> str:
    """One line: ``PERSEID {"event": …, …}``."""
    return f"{MARK} {json.dumps({'event': event, **values}, separators=(',', ':'))}"


def write(event: str, **values: Any) -> None:
    """Put the line into the function's log, which is its standard output."""
    sys.stdout.write(line(event, **values) + "\n")
    sys.stdout.flush()


def write_text(text: str) -> None:
    """A line for people."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
