"""How the files of one survey are read: names of columns, further columns, layout of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from perseid.survey.column_spec import ColumnSpec
from perseid.survey.names import NO_NAMES, ColumnNames

CHANNELS_LAST, CHANNELS_FIRST = "channels-last", "channels-first"
LAYOUTS: Final = (CHANNELS_LAST, CHANNELS_FIRST)
"""How an image may lie in a file: (height, width, bands), or (bands, height, width)."""


def channels_last(layout: str | None) -> bool | None:
    """What a name of `LAYOUTS` means for `ReadOptions.channels_last`; None says nothing."""
    return None if layout is None else layout == CHANNELS_LAST


@dataclass(frozen=True)
class ReadOptions:
    """What a reader is told besides the file."""

    names: ColumnNames = field(default_factory=lambda: NO_NAMES)
    """Names of our columns in the files, where they cannot be told by their usual names."""
    further: tuple[ColumnSpec, ...] = ()
    """Columns beside ours that are read into `Cutouts.further`. A file that lacks one is read
    without it."""
    channels_last: bool | None = None
    """Whether images lie as (height, width, bands); None: seen from the shape where it leaves no
    doubt, else (bands, height, width)."""
    needs_image: bool = True
    """Whether a file without images is an error; else its images are (n, 0, 0, 0)."""
    describe: bool = False
    """Whether the opened table lists every column of the file (`Table.described`), which takes a
    look at each of them."""


PLAIN: Final = ReadOptions()
"""Every column is looked for under its usual names; nothing else is read."""
