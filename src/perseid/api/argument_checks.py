"""Checks of what a program gives to the functions of `perseid`, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

from perseid.engines.base import Engine
from perseid.engines.engine_names import engine_class
from perseid.errors import BadInputError
from perseid.pipeline.request import RunRequest
from perseid.plaintext import brief, did_you_mean


def place_of(value: object, what: str) -> str:
    """A path or URL as text."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise BadInputError(f"{what} is {brief(value)}: give a path or URL, as text or as a Path")
    return text


def places_of(value: object, what: str) -> str | list[str]:
    """A path or URL as text, or a list of them."""
    if isinstance(value, list | tuple):
        return [place_of(one, what) for one in value]
    return place_of(value, what)


def engine_of(engine: object) -> Engine:
    """The engine that is named or given."""
    if isinstance(engine, str):
        return engine_class(engine)()
    if isinstance(engine, type) or not hasattr(engine, "submit"):
        raise BadInputError(
            f"engine is {brief(engine)}: give the name of an engine, such as 'local', or an engine "
            "object, such as perseid.LocalEngine()"
        )
    return cast(Engine, engine)


def request_keys(keys: Mapping[str, object]) -> dict[str, object]:
    """The keywords of `perseid.run` as keys of a request, paths as text.

    An unknown one is refused: in a program it is a typing error, and the run would go on without
    what was meant. Scripts may have keys of their own.
    """
    known = RunRequest.known_keys()
    unknown = [key for key in keys if key not in known]
    if unknown and not keys.get("script"):
        raise BadInputError(
            f"perseid.run has no keyword {unknown[0]!r}{did_you_mean(unknown[0], known)}; its "
            "keywords are the keys of a request"
        )
    return {key: _plain(key, value) for key, value in keys.items()}


def _plain(key: str, value: object) -> object:
    if isinstance(value, bytes | bytearray):
        raise BadInputError(f"{key} is {brief(bytes(value))}: give text, not bytes")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(key, one) for one in value] if isinstance(value, list | tuple) else value
