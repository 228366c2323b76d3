"""Which version of the types that travel this is, and who can read which.

A manifest or an item names the `schema` of its keys; one without is of schema 1, as 0.1 wrote it.
Whoever reads one compares that, and the minor version of perseid that wrote it, before it starts
anything: an answer of other code is worse than a sentence.
"""

from __future__ import annotations

from perseid import __version__
from perseid.errors import BadInputError

SCHEMA = 2
"""Of what this version writes. 2 adds to manifest and items: ``schema``, ``model``, ``missing``; to
items also ``version`` and ``model_change``."""
FIRST = 1
"""Of what names none."""


def check_schema(value: object, what: str, version: str, remedy: str) -> int:
    """The schema of something that was written elsewhere.

    Parameters
    ----------
    value
        Its ``schema``; None where it has none.
    what, version
        What it is, and the version of perseid that wrote it (empty where it does not say).
    remedy
        What to do where it is newer than this version reads.

    Raises
    ------
    BadInputError
        It is newer, or no whole number from 1.
    """
    if value is None:
        return FIRST
    if not isinstance(value, int) or isinstance(value, bool) or value < FIRST:
        raise BadInputError(f"{what} has the schema {value!r}, which is no whole number from 1")
    if value > SCHEMA:
        writer = f"perseid {version}" if version else "a newer perseid"
        raise BadInputError(
            f"{what} was written by {writer} (schema {value}), but this is perseid {__version__}, "
            f"which reads schemas up to {SCHEMA}: {remedy}"
        )
    return value


def check_version(version: str, what: str, remedy: str) -> None:
    """Raise `BadInputError` where something comes from a perseid of another minor version.

    What does not say its version is of 0.1, which did not compare: it is let through.
    """
    if version and minor(version) != minor(__version__):
        raise BadInputError(
            f"{what} is of perseid {version}, but this is perseid {__version__}: {remedy}"
        )


def minor(version: str) -> str:
    """E.g. ``0.2`` of ``0.2.1``; versions that share it can work together."""
    return ".".join(version.split(".")[:2])
