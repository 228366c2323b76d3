"""The catalogue of a run as it lies in the store: one file, or a folder of parts.

``catalogue.parquet`` is one object for small runs, and for large ones the prefix of the objects
``catalogue.parquet/part-*.parquet``, in the order of their numbers. All code that reads a catalogue
does so through this module, so no other code has to know about the two forms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from perseid.errors import BadInputError, NotFoundError, PerseidError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.storage import ObjectInfo, Storage
from perseid.survey.bytesource import SourceFile, open_source
from perseid.survey.formats.arrow import pyarrow_module
from perseid.survey.partition import natural_key

BATCH_ROWS = 1 << 16
"""Rows held in memory at once while a catalogue is read as a stream."""
PARQUET_END = b"PAR1"
"""The last bytes of every complete Parquet file."""


def catalogue_parts(store: Storage) -> tuple[ObjectInfo, ...]:
    """The objects that a run's catalogue consists of, in the order of its rows.

    Parameters
    ----------
    store
        Storage of the run's own prefix.

    Raises
    ------
    NotFoundError
        The run has no catalogue.

    Examples
    --------
    >>> store = Storage("memory://docs-parts")
    >>> store.put("catalogue.parquet/part-00001.parquet", b"PAR1PAR1")
    >>> [part.key for part in catalogue_parts(store)]
    ['catalogue.parquet/part-00001.parquet']
    """
    try:
        return (store.info(layout.CATALOGUE),)
    except NotFoundError:
        found = [info for info in store.list(layout.CATALOGUE) if layout.is_catalogue(info.key)]
    if not found:
        raise NotFoundError(
            f"{store.where()} has no {layout.CATALOGUE}: the run was not published, or is one "
            "of script mode"
        )
    return tuple(sorted(found, key=lambda info: natural_key(info.key)))


def catalogue_bytes(store: Storage) -> int:
    """Total size of a run's catalogue in bytes; raises `NotFoundError` if there is none."""
    return sum(part.size for part in catalogue_parts(store))


def is_whole(store: Storage, written: object = None) -> bool:
    """Whether the catalogue exists and is complete, judged by the sizes and the last bytes of its
    files.

    `written` is its size in bytes when it was written, if that is known.
    """
    try:
        parts = catalogue_parts(store)
        ends = [
            store.get_range(part.key, max(0, part.size - len(PARQUET_END)), len(PARQUET_END))
            for part in parts
        ]
    except NotFoundError:
        return False
    whole = all(end == PARQUET_END for end in ends)
    return whole and written in (None, sum(part.size for part in parts))


def retire_parts(store: Storage, written: Collection[str]) -> None:
    """Delete the remains of an earlier catalogue of this run: parts or a file not in `written`.

    A run that is published again may have fewer parts than before, or be one file now. On a disk a
    file cannot take the place of a folder, so call this before the first part is put there.
    """
    try:
        former = [part.key for part in catalogue_parts(store)]
    except NotFoundError:
        former = []
    store.delete([key for key in former if key not in written])
    folder = store.local_path(layout.CATALOGUE)
    if folder is not None and layout.CATALOGUE in written and folder.is_dir():
        with suppress(OSError):  # it also holds foreign files: the write that follows reports it
            folder.rmdir()


class StoredCatalogue:
    """A run's catalogue, read part by part.

    Parameters
    ----------
    store
        Storage of the run's own prefix.

    Raises
    ------
    NotFoundError
        The run has no catalogue, or only that of the run which it replaces.
    """

    def __init__(self, store: Storage) -> None:
        self._store = store
        self.parts = catalogue_parts(store)
        """The catalogue's objects, in the order of its rows."""
        self.where = store.where(layout.CATALOGUE)
        """Path or URL of the catalogue, for messages."""
        self._refuse_former()

    def _refuse_former(self) -> None:
        # A run that replaces another one may end before it has removed that one's catalogue.
        try:
            manifest = parse_json(self._store.get(layout.MANIFEST))
        except NotFoundError:
            return  # a catalogue on its own
        run = manifest.get("run_id") if isinstance(manifest, dict) else None
        former = self.metadata.get("run_id")
        if None not in (run, former) and run != former:
            raise NotFoundError(
                f"{self._store.where()} has no catalogue of run {run} yet: the one that lies "
                f"there is of the former run {former}"
            )

    @cached_property
    def schema(self) -> Any:
        """The ``pyarrow.Schema`` of the first part, including its metadata."""
        return self._open(self.parts[0]).schema_arrow

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Key-value pairs from the footer of the first part, without Arrow's own schema."""
        pairs = self._open(self.parts[0]).metadata.metadata or {}
        return {
            key.decode(): value.decode() for key, value in pairs.items() if key != b"ARROW:schema"
        }

    @cached_property
    def num_rows(self) -> int:
        """Number of objects in all parts."""
        return sum(int(self._open(part).metadata.num_rows) for part in self.parts)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """``pyarrow.RecordBatch`` objects of at most `BATCH_ROWS` rows, in order.

        Memory holds one batch, whatever the size of the catalogue.

        Parameters
        ----------
        columns
            Names of the columns to read; None reads all of them.

        Raises
        ------
        BadInputError
            A part is not a Parquet file, or lacks a column.
        """
        for part in self.parts:
            try:
                yield from self._open(part).iter_batches(BATCH_ROWS, columns=columns)
            except pyarrow_module().ArrowException as error:
                raise self._sentence(part, error) from error

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as one ``pyarrow.Table``; raises the same errors as `batches`."""
        names = list(self.schema.names) if columns is None else list(columns)
        fields = [self.schema.field(name) for name in names]
        schema = pyarrow_module().schema(fields)
        return pyarrow_module().Table.from_batches(self.batches(names), schema)

    def _open(self, part: ObjectInfo) -> Any:
        pa = pyarrow_module()
        try:
            file = pa.PythonFile(SourceFile(open_source(self._store, part.key)), mode="r")
            return pa.parquet.ParquetFile(file, pre_buffer=False)
        except PerseidError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self._sentence(part, error) from error

    def _sentence(self, part: ObjectInfo, error: Exception) -> BadInputError:
        where = self._store.where(part.key)
        # An "Unknown error" means, for example, that no thread could be started: the file may be
        # intact.
        if type(error) is pyarrow_module().ArrowException or isinstance(error, MemoryError):
            return BadInputError(f"{where} cannot be read: {error}")
        return BadInputError(f"{where} is not a Parquet file: {error}")
