"""Surveys on the command line: find the files, and report those left out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from perseid.survey.discovery import SurveyListing, discover
from perseid.survey.names import NO_NAMES, check_known, column_names, parse_columns
from perseid.survey.read_options import LAYOUTS, ReadOptions, channels_last


class _Arguments(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """As of `argparse.ArgumentParser`."""


class Joined(argparse.Action):
    """Joins the lists of an option that is given more than once; argparse would keep the last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the names of one occurrence to those of the earlier ones."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def add_columns_argument(parser: _Arguments) -> None:
    """Add ``--columns``."""
    parser.add_argument(
        "--columns", metavar="COLUMN=NAME,...", action=Joined,
        help="names of the survey's columns, e.g. object_id=TARGETID,magnitude=[MAG_G,MAG_R] "
        "(default: our names and those of common surveys)",
    )  # fmt: skip


def add_layout_argument(parser: _Arguments) -> None:
    parser.add_argument(
        "--layout", choices=LAYOUTS,
        help="axis order of the images (default: inferred from the shape if that is unambiguous)",
    )  # fmt: skip


def read_options(args: argparse.Namespace) -> ReadOptions:
    """Parse ``--columns`` and ``--layout``; raises `BadInputError` if they are invalid."""
    names = column_names(parse_columns(args.columns)) if args.columns else NO_NAMES
    check_known(names)
    return ReadOptions(names, channels_last=channels_last(args.layout))


def add_missing_argument(parser: _Arguments) -> None:
    """Add ``--missing``, which may be repeated."""
    parser.add_argument(
        "--missing", action="append", metavar="COLUMN=VALUES|none",
        help="values of magnitude or redshift that mean missing, e.g. redshift=-1,-9 (default: "
        "99, -99, -9999 and the like; nulls and NaN always are)",
    )  # fmt: skip


def found(survey: str | Path) -> SurveyListing:
    """The files of a survey (see `discover` for what is raised); its notes go to stderr."""
    listing = discover(survey)
    print_notes(listing.notes)
    return listing


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, one line each, so that stdout contains only the command's result."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
