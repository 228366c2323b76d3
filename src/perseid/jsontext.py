"""JSON that others wrote, whatever is wrong with it a `ValueError`; and JSON as we write it."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes | bytearray, *, once: bool = False) -> Any:
    """The value of a JSON text.

    `once`: a key that appears twice in one object is an error; otherwise the later one wins.

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
        return json.loads(text, object_pairs_hook=_each_once if once else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_bytes(value: object, *, allow_nan: bool = True) -> bytes:
    """A value as the objects of a run hold it.

    Raises
    ------
    ValueError
        There is a NaN or an infinity in it, and `allow_nan` is False.

    Examples
    --------
    >>> json_bytes({"rank": 3})
    b'{\n "rank": 3\n}'
    """
    return json.dumps(value, indent=1, allow_nan=allow_nan).encode()


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands in it twice; leave one of them out")
    return found
