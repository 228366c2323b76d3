"""Surveys on the command line: find the files, and say what was left out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from perseid.survey.discovery import SurveyListing, discover


def found(survey: str | Path) -> SurveyListing:
    """The files of a survey (see `discover` for what is raised); its notes go to stderr."""
    listing = discover(survey)
    print_notes(listing.notes)
    return listing


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, one line each, so that stdout stays what the command is asked for."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
