"""Read a partition block by block; the next block is fetched while the caller computes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from perseid.errors import (
    BadInputError,
    PerseidError,
    StorageError,
)
from perseid.storage import Storage
from perseid.survey.bytesource import ByteSource, FetchStats, open_source
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.content import join
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, as_dict
from perseid.survey.file_table import RawTable, Writer
from perseid.survey.formats import creatable_format, format_for, open_table
from perseid.survey.missing import NO_SENTINELS, MissingValues
from perseid.survey.names import FURTHER
from perseid.survey.read_options import PLAIN, ReadOptions

BLOCK_BYTES = 8 << 20
"""Bytes of pixels to fetch at a time: large enough to hide the latency of a request (about 40 ms
against 160 ms of transfer at 50 MB/s), small enough that two blocks need little memory."""
_MAPPED_BYTES = 2 << 20
"""Bytes of pixels to read at a time from a memory map, which has no request latency to hide."""


class PartitionReader:
    """An open partition; a context manager.

    Raises `BadPartitionError` from the constructor, `blocks` and `read`, naming the file.
    """

    columns: Columns
    """Rows, shape and dtypes."""

    def __init__(
        self,
        source: ByteSource,
        missing: MissingValues = NO_SENTINELS,
        options: ReadOptions = PLAIN,
    ) -> None:
        self._source, self._missing, self._options = source, missing, options
        began = time.perf_counter()
        self._table = open_table(source, options)
        self._count_decode(began, 0.0)
        self.columns = self._table.columns

    @property
    def name(self) -> str:
        """URL or path, for messages."""
        return self._source.name

    @property
    def rows(self) -> int:
        """How many objects the partition holds."""
        return self.columns.rows

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns of the file that are not read, by the file's own names."""
        return self._table.unused

    @property
    def described(self) -> tuple[ColumnSpec, ...]:
        """Every column under the file's own name; empty without `ReadOptions.describe`."""
        return self._table.described

    @property
    def remark(self) -> str:
        """A warning about the file, worded to follow "it has"; empty if there is none."""
        return self._table.remark

    @property
    def bands(self) -> tuple[str, ...]:
        """Band names from `ReadOptions.bands` or, without those, from the file.

        Raises `BadPartitionError` if the file's rows have different bands.
        """
        return self._options.bands or self._table.bands

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width) of every image."""
        return self.columns.shape

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def stats(self) -> FetchStats:
        """Requests so far, and the seconds spent fetching and decoding.

        On a disk there are no requests. The time for reading pages of the memory map is part of
        `decode_seconds` if a checksum is computed; otherwise pages are read when the caller touches
        them.
        """
        return self._source.stats

    def blocks(self, rows_per_block: int | None = None) -> Iterator[Cutouts]:
        """All rows in order, `rows_per_block` at a time (the last block may be shorter).

        Several blocks are fetched at once, about `BLOCK_BYTES` of pixels, and the next ones while
        the caller computes. A block's arrays are read-only views; they stay valid, but hold the
        memory of all that was fetched with them.
        """
        fetched = self._rows_fetched(rows_per_block)
        step = rows_per_block or fetched
        with ThreadPoolExecutor(1, "perseid-prefetch") as pool:
            ahead = pool.submit(self._read, 0, fetched) if self.rows else None
            for start in range(0, self.rows, fetched):
                part = _result(ahead)
                following = start + fetched
                more = following < self.rows
                # Submitted before the block is handed out, so that fetching overlaps with
                # computing.
                ahead = pool.submit(self._read, following, fetched) if more else None
                yield from part.batches(step)
                del part
                # Keeps resident memory at two blocks, however large the mapped file is.
                self._table.release(start, min(following, self.rows))

    def read(self) -> Cutouts:
        """Read all rows at once: as views of the memory map if there is one, otherwise as one
        copy."""
        if self._source.mapped and isinstance(self._table, RawTable):
            return self._read(0, self.rows)
        images = np.empty((self.rows, *self.shape), np.float32)
        small: dict[str, list[Any]] = {name: [] for name in self.columns.small}
        small |= {name: [] for name in self.columns.further}
        at = 0
        for block in self.blocks():
            further = {f"{FURTHER}{name}": array for name, array in block.further.items()}
            for name, array in (as_dict(block) | further).items():
                if name == "image":
                    images[at : at + len(block)] = array
                else:
                    small[name].append(array.copy())
            at += len(block)
        arrays = {name: join(parts, *self.columns.kept(name)) for name, parts in small.items()}
        return as_cutouts({"image": images, **arrays})

    def rows_at(self, start: int, stop: int) -> Cutouts:
        """Read only rows `start` to `stop`, as ranges if the format has fixed offsets."""
        return self._read(start, max(0, stop - start))

    def close(self) -> None:
        """Close the file; arrays that were returned before stay valid."""
        self._table.close()

    def __enter__(self) -> PartitionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows_fetched(self, rows_per_block: int | None) -> int:
        if rows_per_block is not None and rows_per_block < 1:
            raise BadInputError(f"a block has at least one row, not {rows_per_block}")
        size = _MAPPED_BYTES if self._source.mapped else BLOCK_BYTES
        rows = max(1, size // self.columns.image_bytes)
        step = rows_per_block or rows
        # A whole number of blocks, so that no block is divided between two fetches.
        return max(1, rows // step) * step

    def _read(self, start: int, count: int) -> Cutouts:
        began, fetching = time.perf_counter(), self.stats.total_time
        part = self._missing.apply(self._table.read(start, min(start + count, self.rows)))
        self._count_decode(began, fetching)
        return part

    def _count_decode(self, began: float, fetching: float) -> None:
        elapsed = time.perf_counter() - began
        self.stats.decode_seconds += max(0.0, elapsed - (self.stats.total_time - fetching))


def open_partition(
    storage: Storage,
    key: str,
    missing: MissingValues = NO_SENTINELS,
    options: ReadOptions = PLAIN,
) -> PartitionReader:
    """Open a partition: as a memory map on this machine's disk, otherwise by ranges of the object.

    Parameters
    ----------
    storage, key
        Where it is.
    missing
        Numbers that mean missing in magnitudes and redshifts; they become NaN. By default there are
        none. Nulls of a format always become NaN.
    options
        Names of columns in the file, for columns without a usual name; further columns; image
        layout.

    Raises
    ------
    BadPartitionError
        It is corrupt, truncated, empty, or has wrong columns, shapes or dtypes.
    BadInputError
        Its suffix is not that of a known format.
    NotFoundError, StorageError
        The partition cannot be fetched.
    """
    format_for(key)
    source = open_source(storage, key)
    try:
        return PartitionReader(source, missing, options)
    except BaseException:
        source.close()
        raise


def read_cutouts(url: str | Path) -> Cutouts:
    """Read a whole file of cutouts by path or URL; see `open_partition` for what is raised."""
    with open_partition(*Storage.holding(url)) as reader:
        return reader.read()


def write_cutouts(cutouts: Cutouts, url: str | Path) -> None:
    """Write a file of cutouts, by path or URL, in the format of its suffix.

    Arrays are stored little-endian, bit for bit. The file appears complete or not at all.
    """
    with creating(*Storage.holding(url), Columns.of(cutouts)) as writer:
        writer.write(cutouts)


@contextmanager
def creating(storage: Storage, key: str, columns: Columns) -> Iterator[Writer]:
    """A writer of one file, which gets its final name only when it is complete.

    On a disk it is written in the same folder and then renamed. For an object store it is written
    in the temporary folder (``TMPDIR``) and then uploaded.
    """
    path = storage.local_path(key)
    folder = path.parent if path is not None else Path(tempfile.gettempdir())
    name = Path(key).name
    # Hidden, so that discovery never takes it for a partition; unique, so that two writers never
    # share it.
    temporary = folder / f".{name.split('.')[0]}.{os.getpid()}-{time.monotonic_ns()}.part"
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with creatable_format(name).create(temporary, columns) as writer:
            yield writer
        if path is not None:
            temporary.replace(path)
        else:
            storage.put(key, temporary)
    except PerseidError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).split("\n")[0]
        raise StorageError(f"{storage.where(key)} cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only if it is empty, because nothing could be written


def _result(future: Future[Cutouts] | None) -> Cutouts:
    """Wait for the block that is being fetched; every request has its own deadline."""
    assert future is not None
    return future.result()
