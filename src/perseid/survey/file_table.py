"""Interface of every format: a table of columns of equal length, read and written by rows."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.masked import has_missing
from perseid.plaintext import counted
from perseid.survey.bytesource import ByteSource
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.content import TEXT, join
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, as_dict, check_columns
from perseid.survey.read_options import PLAIN, ReadOptions


class Table(ABC):
    """An open file, from which any rows can be read."""

    unused: tuple[str, ...] = ()
    """The file's names of columns that are not read, in the file's order."""
    remark: str = ""
    """A warning about the file, worded to follow "it has" in a sentence; empty if there is none."""
    known_bands: tuple[str, ...] = ()
    """What `bands` returns, unless a format looks them up later."""
    described: tuple[ColumnSpec, ...] = ()
    """Every column under the file's own name; empty without `ReadOptions.describe`."""

    def __init__(self, source: ByteSource, columns: Columns) -> None:
        self.source, self.columns = source, columns

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the images' bands, where the file has them; looked up when they are asked for.

        Raises `BadPartitionError` where rows of the file have different ones.
        """
        return self.known_bands

    @property
    def read_names(self) -> list[str]:
        """The columns that are read, by the names that `pick_columns` gives them."""
        images = ["image"] if "image" in self.columns.dtypes else []
        return [*images, *self.columns.stored]

    @abstractmethod
    def read(self, start: int, stop: int) -> Cutouts:
        """Read rows `start` to `stop`; fastest in order. Raises `BadPartitionError`."""

    def release(self, start: int, stop: int) -> None:  # noqa: B027 - optional
        """Hint that these rows are not needed again soon."""

    def close(self) -> None:
        """Close the file; arrays that were returned before stay valid."""
        self.source.close()


@dataclass(frozen=True)
class RawArray:
    """An array stored in the file as it is in memory (perhaps in the other byte order)."""

    start: int
    """Byte of the file where it begins."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    crc: int = 0
    """CRC-32 of all its bytes; 0 if not known."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize


class RawTable(Table):
    """A file whose columns are stored as `RawArray`: memory-mapped, or read by ranges.

    The small columns are read on opening, the images on demand; `others` are small columns that are
    already in memory. The checksum of the images is verified once they have been read in order up
    to the last row.
    """

    def __init__(
        self,
        source: ByteSource,
        arrays: Mapping[str, RawArray],
        others: Mapping[str, NDArray[Any]] | None = None,
        sources: Mapping[str, str] | None = None,
        options: ReadOptions = PLAIN,
    ) -> None:
        where, others = source.name, others or {}
        found = {n: (a.dtype, a.shape) for n, a in arrays.items()}
        found |= {n: (a.dtype, a.shape) for n, a in others.items()}
        columns = check_columns(where, found, sources, options)
        super().__init__(source, columns)
        for name, array in arrays.items():
            if array.start < 0 or array.start + array.num_bytes > source.size:
                raise BadPartitionError(
                    f"{where} is truncated: its {name} column ends at byte "
                    f"{array.start + array.num_bytes} of {source.size}"
                )
        self._images = arrays.get("image")
        self._small = {
            name: columns.column(name, others[name], where)
            if name in others
            else self._whole(name, arrays[name])
            for name in columns.stored
        }
        self._crc, self._crc_row = 0, 0

    def read(self, start: int, stop: int) -> Cutouts:
        array = self._images
        arrays = {name: column[start:stop] for name, column in self._small.items()}
        if array is None:
            return as_cutouts(arrays)
        data = self.source.read(
            array.start + start * array.row_bytes, (stop - start) * array.row_bytes
        )
        self._check(array, data, start, stop)
        images = np.frombuffer(data, array.dtype).reshape(stop - start, *array.shape[1:])
        arrays["image"] = self.columns.column("image", images, self.source.name)
        return as_cutouts(arrays)

    def release(self, start: int, stop: int) -> None:
        if self._images is not None:
            step = self._images.row_bytes
            self.source.release(self._images.start + start * step, (stop - start) * step)

    def _whole(self, name: str, array: RawArray) -> NDArray[Any]:
        data = self.source.read(array.start, array.num_bytes)
        if array.crc and zlib.crc32(data) != array.crc:
            raise BadPartitionError(
                f"{self.source.name} is corrupt: the checksum of {name} differs"
            )
        values = np.frombuffer(data, array.dtype).reshape(array.shape)
        return self.columns.column(name, values, self.source.name)

    def _check(self, images: RawArray, data: memoryview, start: int, stop: int) -> None:
        # A checksum can only be continued in order, so rows read out of order are not checked.
        if not images.crc or start not in (0, self._crc_row):
            return
        self._crc = zlib.crc32(data, self._crc if start else 0)
        self._crc_row = stop
        if stop == self.columns.rows and self._crc != images.crc:
            raise BadPartitionError(f"{self.source.name} is corrupt: the checksum of image differs")


class Writer(ABC):
    """A file being written, block by block; use as a context manager.

    The number of rows is fixed at the start, so that no format needs a second pass.
    """

    format: ClassVar[str]
    """Its name in messages."""
    takes_text = False
    """Whether the format can store text ids."""
    takes_missing = False
    """Whether the format can store missing ids and labels."""

    def __init__(self, columns: Columns) -> None:
        self.columns, self.written = columns, 0
        if TEXT in columns.dtypes.values() and not self.takes_text:
            raise self._refusal("text ids or labels")

    def write(self, block: Cutouts) -> None:
        """Append rows; raises `BadInputError` if they do not match the announced columns."""
        has = Columns.of(block)
        if not has.is_like(self.columns):
            raise BadInputError(
                f"these rows have {has.describe()}, the file takes {self.columns.describe()}"
            )
        if self.written + len(block) > self.columns.rows:
            raise BadInputError(
                f"{counted(self.written + len(block), 'row is', 'rows are')} too many: "
                f"{self.columns.rows} were announced"
            )
        if not self.takes_missing and any(map(has_missing, as_dict(block).values())):
            raise self._refusal("missing ids and labels")
        if len(block):
            self._block(block)
        self.written += len(block)

    def _refusal(self, what: str) -> BadInputError:
        return BadInputError(f"{self.format} files cannot hold {what}: write parquet instead")

    def close(self) -> None:
        """Finish the file; raises `BadInputError` if rows are missing."""
        if self.written != self.columns.rows:
            raise BadInputError(f"{self.written} of {self.columns.rows} rows were written")
        self._finish()

    def abort(self) -> None:  # noqa: B027 - optional
        """Abandon the half-written file."""

    @abstractmethod
    def _block(self, block: Cutouts) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.close()
                return
        except BaseException:
            self._abort()
            raise
        self._abort()

    def _abort(self) -> None:
        with suppress(OSError, RuntimeError, ValueError):  # the first error is the one to report
            self.abort()


class ColumnWriter(Writer):
    """Writes whole columns: images as they arrive, all other columns at the end."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in columns.small}

    def _block(self, block: Cutouts) -> None:
        for name, array in as_dict(block).items():
            if name != "image":
                self._parts[name].append(array.copy())
        self._image(np.ascontiguousarray(block.images).reshape(-1).view(np.uint8).data)

    def _finish(self) -> None:
        whole = {}
        for name, parts in self._parts.items():
            whole[name] = join(parts, self.columns.dtypes[name], self.columns.row_shape(name))
        self._small(whole)

    @abstractmethod
    def _image(self, data: memoryview) -> None: ...

    @abstractmethod
    def _small(self, arrays: dict[str, NDArray[Any]]) -> None: ...
