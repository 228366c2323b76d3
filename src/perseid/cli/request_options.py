"""The options of a run, made from the fields of a request: one source for both."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from perseid.cli import units
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_keys import KEYS

LIMITS = (
    "workers", "threads", "memory_mb", "timeout", "retries", "tolerated_failures",
    "silence_timeout", "link_timeout", "death_timeout",
)  # fmt: skip
"""How a run works, in contrast to what it does."""


def add_request_options(group: Any, *, limits: bool, only: Collection[str] = ()) -> None:
    """Add the options of `LIMITS`, or of all other keys, to a parser or a group of one.

    `only`: no others than these; empty: all.
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
        group.add_argument(option.flag, metavar=option.metavar, type=_type(option, kinds), **how)


def given_options(args: argparse.Namespace) -> dict[str, object]:
    """The keys of a request that the command line names, with their values."""
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
    """What reads the value: with units where it is a size or a time."""
    units_of = {"SIZE": units.memory_argument, "TIME": units.time_argument}
    if option.metavar in units_of:
        return units_of[option.metavar]
    return next((kind for kind in (int, float) if kind in kinds), str)
