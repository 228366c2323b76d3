"""Options for reading the files of a survey: column names, further columns, image layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from perseid.survey.column_spec import ColumnSpec
from perseid.survey.names import NO_NAMES, ColumnNames

ImageLayout = Literal["channels-last", "channels-first"]
CHANNELS_LAST: Final = "channels-last"
CHANNELS_FIRST: Final = "channels-first"
LAYOUTS: Final[tuple[ImageLayout, ...]] = (CHANNELS_LAST, CHANNELS_FIRST)
"""Axis orders of an image in a file: (height, width, bands), or (bands, height, width)."""


def channels_last(layout: str | None) -> bool | None:
    """Translate a name of `LAYOUTS` for `ReadOptions.channels_last`; None stays None."""
    return None if layout is None else layout == CHANNELS_LAST


@dataclass(frozen=True)
class ReadOptions:
    """Options for a reader."""

    names: ColumnNames = field(default_factory=lambda: NO_NAMES)
    """Names of our columns in the files, for columns without one of the usual names."""
    further: tuple[ColumnSpec, ...] = ()
    """Further columns, which are read into `Cutouts.further`. A file that lacks one is read without
    it."""
    channels_last: bool | None = None
    """Whether images are stored as (height, width, bands). None: inferred from the shape if that is
    unambiguous, otherwise (bands, height, width)."""
    bands: tuple[str, ...] = ()
    """Band names in the files' order; they take precedence over those in the files."""
    reads_image: bool = True
    """Whether images are read. If not, every file is treated as having none."""
    needs_image: bool = True
    """Whether a file without images is an error; otherwise its images are (n, 0, 0, 0)."""
    describe: bool = False
    """Whether the opened table lists every column of the file (`Table.described`), for which each
    of them has to be inspected."""


PLAIN: Final = ReadOptions()
"""The default: every column is looked for under its usual names, and nothing else is read."""
