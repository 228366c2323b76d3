"""The options of a run, generated from the fields of a request, so that both always agree."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from perseid.cli import units
from perseid.cli.surveys import Joined
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_keys import KEYS

LIMITS = (
    "workers", "threads", "memory_mb", "timeout", "retries", "tolerated_failures",
    "silence_timeout", "link_timeout", "death_timeout",
)  # fmt: skip
"""Keys that affect how a run is executed, but not its results."""


def add_request_options(group: Any, *, limits: bool, only: Collection[str] = ()) -> None:
    """Add the options of `LIMITS`, or of all other keys, to a parser or an argument group.

    `only` restricts them to these keys; empty means all.
    """
    for name, field in RunRequest.model_fields.items():
        option = KEYS[name].option
        if option is None or (name in LIMITS) is not limits or (only and name not in only):
            continue
        kinds = [kind for kind in _kinds(field.annotation) if kind is not NoneType]
        choices = [value for kind in kinds for value in _choices(kind)]
        how: dict[str, object] = {"dest": name, "help": option.help}
        if choices:
            group.add_argument(option.flag, choices=choices, **how)
            continue
        if option.metavar.endswith(",..."):
            how["action"] = Joined
        group.add_argument(option.flag, metavar=option.metavar, type=_type(option, kinds), **how)


def given_options(args: argparse.Namespace) -> dict[str, object]:
    """The request keys given on the command line, with their values."""
    names = [name for name in RunRequest.model_fields if KEYS[name].option is not None]
    found = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _kinds(annotation: Any) -> Collection[Any]:
    """The types of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) is not Literal and get_args(
        annotation
    ) else (annotation,)  # fmt: skip


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _type(option: Any, kinds: Collection[Any]) -> Any:
    """The function that parses the value: with units if it is a size or a time."""
    units_of = {"SIZE": units.memory_argument, "TIME": units.time_argument}
    if option.metavar in units_of:
        return units_of[option.metavar]
    return next((kind for kind in (int, float) if kind in kinds), str)
