"""Row limits above which a run's catalogue takes another form.

All limits count rows, whose number does not depend on the engine, the transport or the world size.
So the form of a catalogue depends on the survey alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueLimits:
    """Row limits of a catalogue. Every run uses the defaults; tests set smaller values."""

    single_file: int = 2_000_000
    """Rows above which the catalogue is a folder of parts, and no process holds all of its
    columns."""
    part: int = 1_000_000
    """Most rows in a part that summarize writes. A part holds the rows of whole ranks, so a single
    rank with more rows than this still makes one part."""
    exact_ranks: int = 50_000_000
    """Rows above which only the `ranked` most anomalous objects get a rank, and every scored row
    gets a percentile instead: ranking all of them takes 16 bytes of memory per row."""
    ranked: int = 100_000


LIMITS = CatalogueLimits()
