"""JSON that others wrote: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes | bytearray) -> Any:
    """The value of a JSON text.

    Raises
    ------
    ValueError
        It is not JSON, not UTF-8, or nested too deeply: a few kilobytes of ``[[[[`` would
        otherwise raise `RecursionError`, which callers that expect bad JSON do not catch.

    Examples
    --------
    >>> parse_json('{"bands": ["g", "r", "z"]}')
    {'bands': ['g', 'r', 'z']}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
