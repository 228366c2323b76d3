"""Split a survey into numbered partitions, as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perseid.errors import BadInputError, BadPartitionError
from perseid.plaintext import option
from perseid.storage import Storage, scan
from perseid.survey.cutouts import Cutouts
from perseid.survey.description import description_of
from perseid.survey.discovery import Layout, SurveyListing, discover, first_key
from perseid.survey.file_columns import Columns
from perseid.survey.file_table import Writer
from perseid.survey.formats import suffixes
from perseid.survey.kinds import SURVEY_FILE
from perseid.survey.partition import parse_size, rows_per_partition
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import creating, open_partition

_OURS = re.compile(rf"\d+\.[a-z0-9]+|\.\d+\.\d+-\d+\.part|{re.escape(SURVEY_FILE)}")
"""Names of partitions, of unfinished ones that a killed split left behind, and of what describes
them."""


@dataclass(frozen=True)
class SplitProgress:
    """Progress of a split."""

    rows: int
    """Rows written."""
    total_rows: int
    partitions: int
    """Partitions complete under their final names."""
    total_partitions: int


@dataclass(frozen=True)
class SplitResult:
    """What a split wrote."""

    url: str
    """The destination, a plain path on disk."""
    rows: int
    partitions: int
    rows_per_partition: int
    """Rows of every partition but the last."""
    files: int
    """How many files the survey has."""
    notes: tuple[str, ...] = ()
    """Sentences about files in the survey's folder that were not read."""


def split(
    survey: str | Path,
    dest: str | Path,
    *,
    size: str | int = "25MB",
    rows: int | None = None,
    format: str = ".pt",
    overwrite: bool = False,
    options: ReadOptions = PLAIN,
    progress: Callable[[SplitProgress], None] | None = None,
) -> SplitResult:
    """Write the rows of a survey, in order, as ``1.pt``, ``2.pt``, …

    Rows are streamed, so memory does not grow with the survey. A partition gets its name when it is
    complete. What the survey's ``survey.json`` says of labels and bands is written beside the
    partitions, last.

    Parameters
    ----------
    survey
        A file, or a folder or URL prefix of files in natural order, in any of the formats.
    dest
        Folder or URL prefix for the partitions.
    size
        Size of a partition, e.g. ``25MB``, or bytes; see `rows_per_partition`.
    rows
        Rows per partition, instead of `size`.
    format
        Suffix of the partitions, with or without its dot.
    overwrite
        Allow a destination that is not empty: numbered partitions in it and their ``survey.json``
        are removed first, other objects stay.
    options
        Names of the survey's columns, for columns without a usual name, and its image layout.
    progress
        Called after every block.

    Raises
    ------
    BadInputError
        The destination is not empty, or lies in the source; the size is too small.
    BadPartitionError
        A file of the survey cannot be read, or differs from the first one in shape or columns.
    """
    listing = discover(survey)
    store, keys = Storage(listing.location), [info.key for info in listing.partitions]
    target = Storage(dest)
    suffix = "." + format.lstrip(".").lower()
    if suffix not in suffixes():
        raise BadInputError(f"no format {format!r} of partitions (known: {' '.join(suffixes())})")
    _check_destination(listing, target, overwrite=overwrite)
    columns = _columns(store, keys, options)
    many = rows if rows is not None else rows_per_partition(_bytes(size), columns.shape)
    if many < 1:
        raise BadInputError(f"a partition needs at least 1 row, not {many}")
    # Only now, after all files of the survey were checked, so that a bad survey deletes nothing.
    if overwrite:
        there = scan(target).objects
        target.delete([info.key for info in there if _OURS.fullmatch(info.key)])
    total = max(1, -(-columns.rows // many))
    with _Partitions(target, suffix, columns, many, total, progress) as partitions:
        for block in _blocks(store, keys, options):
            partitions.write(block)
    if said := description_of(listing).of_partitions():
        target.put(SURVEY_FILE, json.dumps(said, indent=2).encode())
    return SplitResult(target.where(), columns.rows, total, many, len(keys), listing.notes)


def _bytes(size: str | int) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _columns(store: Storage, keys: list[str], options: ReadOptions) -> Columns:
    """The common columns of all files, with the total rows; raises `BadPartitionError` if they
    differ."""
    first: Columns | None = None
    rows = 0
    for key in keys:
        with open_partition(store, key, options=options) as reader:
            has = reader.columns
        first = first or has
        if not has.is_like(first):
            raise BadPartitionError(
                f"{store.where(key)} has {has.describe()}, "
                f"but {store.where(keys[0])} has {first.describe()}"
            )
        rows += has.rows
    assert first is not None
    return first.with_rows(rows)


def _blocks(store: Storage, keys: list[str], options: ReadOptions) -> Iterator[Cutouts]:
    for key in keys:
        with open_partition(store, key, options=options) as reader:
            yield from reader.blocks()


def _check_destination(listing: SurveyListing, target: Storage, *, overwrite: bool) -> None:
    source, place = _real(Storage(listing.location)), _real(target)
    # Partitions inside the survey's own folder would become a part of the survey.
    below = listing.layout is not Layout.FILES and (place + "/").startswith(source + "/")
    if below or place == source or (source + "/").startswith(place + "/"):
        raise BadInputError(
            f"the partitions would be written to {target.where()}, where the survey lies; "
            "choose another folder"
        )
    if not overwrite:
        there = first_key(target)
        if there is not None:
            raise BadInputError(
                f"{target.where()} is not empty (it has {there}); "
                f"choose another folder or give {option('overwrite', True)}"
            )


def _real(store: Storage) -> str:
    path = store.local_path()
    return store.url if path is None else str(path.resolve())


class _Partitions:
    """Writes partitions one after the other."""

    def __init__(
        self,
        target: Storage,
        suffix: str,
        columns: Columns,
        rows: int,
        total: int,
        progress: Callable[[SplitProgress], None] | None,
    ) -> None:
        self._target, self._suffix, self._columns = target, suffix, columns
        self._rows, self._total, self._progress = rows, total, progress
        self._stack = ExitStack()
        self._writer: Writer | None = None
        self._written = self._complete = 0

    def __enter__(self) -> _Partitions:
        self._begin()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]
        if kind is None:
            self._complete += 1
            self._report()

    def write(self, block: Cutouts) -> None:
        """Append rows; begins the next partition when the current one is full."""
        while len(block):
            assert self._writer is not None
            room = self._writer.columns.rows - self._writer.written
            if not room:
                self._stack.close()
                self._complete += 1
                self._begin()
                continue
            self._writer.write(block[:room])
            self._written += min(room, len(block))
            block = block[room:]
            self._report()

    def _begin(self) -> None:
        rows = min(self._rows, self._columns.rows - self._written)
        key = f"{self._complete + 1}{self._suffix}"
        context = creating(self._target, key, self._columns.with_rows(rows))
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(context)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(
                SplitProgress(self._written, self._columns.rows, self._complete, self._total)
            )
