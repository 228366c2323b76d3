"""One partition, read block by block while the last block is being computed on."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
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
from perseid.survey.formats import creatable_format, format_for, open_table
from perseid.survey.missing import NO_SENTINELS, MissingValues
from perseid.survey.names import FURTHER
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.table import RawTable, Writer

BLOCK_BYTES = 8 << 20
"""Pixels fetched at a time: large enough that a request's latency does not matter (about 40 ms
against 160 ms at 50 MB/s), small enough that two blocks are little memory."""
_MAPPED_BYTES = 2 << 20
"""Pixels read at a time out of a memory map, where there is no request to wait for."""


class PartitionReader:
    """An opened partition; a context manager.

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
        self._source, self._missing = source, missing
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
        """Columns of the file that nothing here reads, by the file's own names."""
        return self._table.unused

    @property
    def described(self) -> tuple[ColumnSpec, ...]:
        """Every column of the file by its own name, where `ReadOptions.describe` asks for them."""
        return self._table.described

    @property
    def remark(self) -> str:
        """What a user should know of the file, to follow "it has"; empty: nothing."""
        return self._table.remark

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the images' bands, where the file has them and `ReadOptions.describe` asks."""
        return self._table.bands

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

        On a disk there are no requests: pages of the memory map are read in `decode_seconds`
        where a checksum is computed, else as they are touched.
        """
        return self._source.stats

    def blocks(self, rows_per_block: int | None = None) -> Iterator[Cutouts]:
        """All rows in order, `rows_per_block` at a time (the last block may be shorter).

        Several blocks are fetched in one go, about `BLOCK_BYTES` of pixels, and the next ones
        while the caller computes. A block's arrays are read-only views; they stay valid, but
        hold the memory of all that was fetched with them.
        """
        fetched = self._rows_fetched(rows_per_block)
        step = rows_per_block or fetched
        with ThreadPoolExecutor(1, "perseid-prefetch") as pool:
            ahead = pool.submit(self._read, 0, fetched) if self.rows else None
            for start in range(0, self.rows, fetched):
                part = _result(ahead)
                following = start + fetched
                more = following < self.rows
                # Asked for before the block is given out, so that fetching goes on while the caller
                # computes.
                ahead = pool.submit(self._read, following, fetched) if more else None
                yield from part.batches(step)
                del part
                # Resident memory stays at two blocks, however large the mapped file is.
                self._table.release(start, min(following, self.rows))

    def read(self) -> Cutouts:
        """All rows at once: views of the memory map where there is one, else one copy."""
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
        """Rows `start` to `stop` alone, fetched as ranges where the format has fixed offsets."""
        return self._read(start, max(0, stop - start))

    def close(self) -> None:
        """Give up the file; arrays already given stay valid."""
        self._table.close()

    def __enter__(self) -> PartitionReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows_fetched(self, rows_per_block: int | None) -> int:
        if rows_per_block is not None and rows_per_block < 1:
            raise BadInputError(f"a block has at least one row, not {rows_per_block}")
        size = _MAPPED_BYTES if self._source.mapped else BLOCK_BYTES
        rows = max(1, size // self.columns.image_bytes)
        step = rows_per_block or rows
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
    """Open one partition: a memory map on this machine's disk, ranges of an object elsewhere.

    Parameters
    ----------
    storage, key
        Where it is.
    missing
        Numbers that stand for missing magnitudes and redshifts, and become NaN; by default every
        number is a value. Nulls of a format become NaN in any case.
    options
        Names of columns in the file, where they cannot be told by their usual names, further
        columns, layout of images.

    Raises
    ------
    BadPartitionError
        It is corrupt, truncated, empty, or has wrong columns, shapes or dtypes.
    BadInputError
        Its suffix tells no known format.
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
    """A whole file of cutouts, by path or URL; see `open_partition` for what is raised."""
    with open_partition(*Storage.holding(url)) as reader:
        return reader.read()


def write_cutouts(cutouts: Cutouts, url: str | Path) -> None:
    """Write a file of cutouts, by path or URL, in the format of its suffix.

    Little-endian native arrays as they are, bit for bit; the file appears whole or not at all.
    """
    with creating(*Storage.holding(url), Columns.of(cutouts)) as writer:
        writer.write(cutouts)


@contextmanager
def creating(storage: Storage, key: str, columns: Columns) -> Iterator[Writer]:
    """A writer of one file, which gets its name only when it is complete.

    On a disk it grows beside its final name and is renamed; elsewhere it grows in the temporary
    folder (``TMPDIR``) and is uploaded.
    """
    path = storage.local_path(key)
    folder = path.parent if path is not None else Path(tempfile.gettempdir())
    name = Path(key).name
    # Hidden and unique: discovery never takes it for a partition, and two writers never share it.
    temporary = folder / f".{name.split('.')[0]}.{os.getpid()}-{time.monotonic_ns()}.part"
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


def _result(future: Future[Cutouts] | None) -> Cutouts:
    """The block that is being fetched; requests carry deadlines of their own."""
    assert future is not None
    return future.result()
