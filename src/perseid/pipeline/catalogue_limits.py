"""How many rows a run may have before its catalogue is written another way.

Each limit is one of rows, which every engine, transport and world size counts alike: so the form of
a catalogue depends on the survey alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueLimits:
    """Limits of rows; the defaults are those of every run, others are for tests."""

    single_file: int = 2_000_000
    """A catalogue with more rows is a folder of parts, and no process holds its columns."""
    part: int = 1_000_000
    """A part that summarize writes holds the rows of some ranks: no more than this, or one rank."""
    exact_ranks: int = 50_000_000
    """Where a survey has more rows, only the first `ranked` have a rank, and every scored row has
    a percentile: ranking all of them takes 16 bytes of memory per row."""
    ranked: int = 100_000


LIMITS = CatalogueLimits()
