"""Structured lines in a function's log, by which its requests can be assigned to runs and ranks."""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "PERSEID"
"""First word of such a line; JSON follows."""


def line(event: str, **values: Any) -> str:
    """The text of a line: ``PERSEID {"event": …, …}``."""
    return f"{MARK} {json.dumps({'event': event, **values}, separators=(',', ':'))}"


def write(event: str, **values: Any) -> None:
    """Write a line to the function's log, which is its standard output."""
    sys.stdout.write(line(event, **values) + "\n")
    sys.stdout.flush()


def write_text(text: str) -> None:
    """Write a line for human readers."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
