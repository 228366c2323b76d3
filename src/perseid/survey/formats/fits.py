"""FITS (``.fits``): a binary table with one row per object and a fixed-length image column.

All rows have the same length, so any row can be read by its position. FITS 4.0, section 7.3:
numbers are big-endian, the image's shape is in ``TDIMn`` with the fastest axis first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, PerseidError
from perseid.libraries import library_error
from perseid.plaintext import counted
from perseid.survey.bytesource import ByteSource, SourceFile, corrupt
from perseid.survey.column_spec import ColumnSpec, described
from perseid.survey.content import join
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, as_dict, check_columns
from perseid.survey.file_table import Table, Writer
from perseid.survey.formats.fits_headers import HeaderChecks
from perseid.survey.formats.fits_images import ImageTable, image_hdu
from perseid.survey.names import FURTHER
from perseid.survey.picking import pick_columns, unused_names, without_strangers
from perseid.survey.read_options import PLAIN, ReadOptions

_FETCHED_BYTES = 8 << 20
"""Of rows whose pixels are not wanted, read at once."""
_BLOCK = 2880
"""Bytes of a FITS block; every file is a whole number of blocks."""
_CODES = {"float32": "E", "float64": "D", "int64": "K", "uint64": "K", "int32": "J"}
_UNSIGNED = 1 << 63
"""``TZERO`` of unsigned integers of 64 bits."""


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Find the first table with an image column; see `perseid.survey.formats`."""
    fits = _astropy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever astropy only warns about is checked below
            headers = HeaderChecks(fits, source)
            hdus = fits.open(SourceFile(source), memmap=False, lazy_load_hdus=True)
            table = _find(fits, headers, hdus, source, options)
            # Rows of a table are read directly from the bytes; only images need astropy afterwards.
            if not isinstance(table, ImageTable):
                hdus.close()
            return table
    except PerseidError:
        raise
    except Exception as error:  # astropy raises many kinds on corrupt headers
        raise corrupt(source, "astropy", error) from error


def create(path: Path, columns: Columns) -> Writer:
    """Begin a table on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _astropy() -> Any:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise library_error(error, "FITS needs astropy: pip install astropy") from error
    return fits


def _find(
    fits: Any, headers: HeaderChecks, opened: Any, source: ByteSource, options: ReadOptions
) -> Table:
    hdus = []
    for hdu in headers.checked(opened):
        hdus.append(hdu)
        if _is_table(fits, hdu):
            used = _used(hdu, source, options)
            if "image" in used or (used and not options.needs_image):
                return _of_table(hdu, source, used, options)
    return _of_image(fits, opened, hdus, source, options)


def _is_table(fits: Any, hdu: Any) -> bool:
    return isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU)


def _used(hdu: Any, source: ByteSource, options: ReadOptions) -> dict[str, str]:
    named = pick_columns(source.name, _names(hdu), options)
    return without_strangers(named, partial(_is_plain, hdu.columns))


def _names(hdu: Any) -> list[str]:
    """Names of the table's columns; FITS allows columns without one."""
    return [name for name in hdu.columns.names if name]


def _name_all(columns: Any) -> None:
    """Give every column a name of its own, without which NumPy makes no dtype of a row."""
    seen: set[str] = set()
    for number, column in enumerate(columns, start=1):
        if not column.name or column.name in seen:
            column.name = f"{column.name or 'unnamed'} (column {number})"
        seen.add(column.name)


def _of_table(hdu: Any, source: ByteSource, used: dict[str, str], options: ReadOptions) -> Table:
    if hdu.header.get("ZTABLE"):
        raise BadPartitionError(
            f"{source.name} is a tile-compressed table, which is not read: uncompress it with "
            "`funpack`"
        )
    start = int(hdu.fileinfo()["datLoc"])
    _name_all(hdu.columns)
    row = hdu.columns.dtype.newbyteorder(">")
    if row.itemsize != hdu.header["NAXIS1"]:
        raise BadPartitionError(
            f"{source.name}: rows have {hdu.header['NAXIS1']} bytes, their columns {row.itemsize}"
        )
    fields = {n: _Field.of(hdu.columns[f], row, f"{source.name}: {f}") for n, f in used.items()}
    table = _Rows(source, start, int(hdu.header["NAXIS2"]), row, fields, options)
    table.unused = unused_names(_names(hdu), used.values())
    if options.describe:
        table.described = tuple(_described(hdu, row))
    return table


def _of_image(
    fits: Any, opened: Any, hdus: list[Any], source: ByteSource, options: ReadOptions
) -> Table:
    """Read cutouts from an image HDU, and their columns from a table with the same number of
    rows."""
    image = image_hdu(fits, hdus)
    if image is None:
        raise BadPartitionError(
            f"{source.name} has no binary table with an image column, and no image of (n, bands, "
            "height, width)"
        )
    rows = 1 if len(image.shape) == 3 else image.shape[0]
    table = next((h for h in hdus if _is_table(fits, h) and h.header["NAXIS2"] == rows), None)
    if table is None:
        return ImageTable(source, opened, image, {}, {}, options)
    used = _used(table, source, options)
    used.pop("image", None)
    columns = _of_table(table, source, used, replace(options, needs_image=False))
    read = columns.read(0, rows)
    small = {name: array for name, array in as_dict(read).items() if name != "image"}
    small |= {f"{FURTHER}{name}": array for name, array in read.further.items()}
    found = ImageTable(source, opened, image, small, used, options)
    found.unused, found.described = columns.unused, columns.described
    return found


def _described(hdu: Any, row: np.dtype[Any]) -> Iterator[ColumnSpec]:
    """Describe every column of the table; by convention UCDs are in ``TUCDn`` and descriptions in
    ``TCOMMn``."""
    for number, name in enumerate(hdu.columns.names, start=1):
        if not name:
            continue
        if not _is_plain(hdu.columns, name):
            yield ColumnSpec(name, name, kind="")
            continue
        field = _Field.of(hdu.columns[name], row, name)
        comment = hdu.header.get(f"TCOMM{number}") or hdu.header.get(f"TDESC{number}")
        yield described(
            name,
            field.dtype,
            (0, *field.shape),
            unit=hdu.columns[name].unit,
            ucd=hdu.header.get(f"TUCD{number}"),
            description=comment,
        )


def _is_plain(columns: Any, name: str) -> bool:
    return columns[name].format.format not in ("P", "Q", "X")


@dataclass(frozen=True)
class _Field:
    """A column of the table, and how its values are decoded from the bytes of a row."""

    name: str
    raw: np.dtype[Any]
    """Dtype of one number as stored in the file."""
    shape: tuple[int, ...]
    """Shape of one row."""
    scale: float = 1.0
    """``TSCALn``."""
    zero: float = 0.0
    """``TZEROn``; half the range of an integer makes it an unsigned one (FITS 4.0, table 19)."""
    null: int | None = None
    """``TNULLn``: the integer that means missing."""
    logical: bool = False
    """Whether values are the letters T and F, with a zero byte for missing."""

    @classmethod
    def of(cls, definition: Any, row: np.dtype[Any], place: str) -> _Field:
        """Make it from astropy's column definition; raises `BadPartitionError`, naming `place`."""
        code = definition.format.format
        if code in ("P", "Q"):
            raise BadPartitionError(
                f"{place} has rows of varying length (format {definition.format}), which are not "
                "read: write the column with a fixed length"
            )
        if code == "X":
            raise BadPartitionError(f"{place} is a column of bits, which is not read")
        field = row[definition.name]
        return cls(
            definition.name,
            field.base,
            field.shape,
            scale=1.0 if definition.bscale in ("", None) else float(definition.bscale),
            zero=0.0 if definition.bzero in ("", None) else float(definition.bzero),
            null=None if definition.null in ("", None) else int(definition.null),
            logical=code == "L",
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of the column's values, big-endian."""
        raw = self.raw.newbyteorder("=")
        if self.logical:
            return np.dtype(np.bool_)
        if raw.kind not in "iu" or (self.scale, self.zero) == (1, 0):
            return raw if (self.scale, self.zero) == (1, 0) else np.dtype(np.float64)
        half = 1 << (8 * raw.itemsize - 1)
        if self.scale == 1 and self.zero == (-half if raw.kind == "u" else half):
            return np.dtype(f"{'i' if raw.kind == 'u' else 'u'}{raw.itemsize}")
        return np.dtype(np.float64)

    def values(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Decode the column in some rows of the table; a masked array if some values are
        missing."""
        raw = np.ascontiguousarray(rows[self.name])
        if self.logical:
            return np.ma.masked_array(raw == ord("T"), mask=raw == 0) if (raw == 0).any() else (
                raw == ord("T")
            )  # fmt: skip
        if raw.dtype.kind == "S":
            return np.char.rstrip(raw)  # trailing blanks are not significant in FITS
        values = self._scaled(raw)
        if self.null is None or raw.dtype.kind not in "iu":
            return values
        missing = raw == self.null
        return np.ma.masked_array(values, mask=missing) if missing.any() else values

    def _scaled(self, raw: NDArray[Any]) -> NDArray[Any]:
        if (self.scale, self.zero) == (1, 0):
            return raw
        if self.dtype.kind in "iu":  # exact: adding half the range flips the first bit
            native = raw.astype(raw.dtype.newbyteorder("="))
            half = 1 << (8 * raw.dtype.itemsize - 1)
            return (native.view(f"u{native.itemsize}") ^ half).view(self.dtype)
        return raw.astype(np.float64) * self.scale + self.zero


class _Rows(Table):
    """Rows of fixed length, mapped or read by ranges."""

    def __init__(
        self,
        source: ByteSource,
        start: int,
        rows: int,
        row: np.dtype[Any],
        fields: dict[str, _Field],
        options: ReadOptions,
    ) -> None:
        found = {}
        for name, field in fields.items():
            # A vector of one element is a scalar in FITS.
            shape = field.shape or ((1,) if name == "magnitude" else ())
            found[name] = (field.dtype, (rows, *shape))
        sources = {name: field.name for name, field in fields.items()}
        super().__init__(source, check_columns(source.name, found, sources, options))
        self._start, self._row = start, row
        self._fields = {name: fields[name] for name in self.read_names}
        if rows < 0 or start + rows * row.itemsize > source.size:
            raise BadPartitionError(
                f"{source.name} is truncated: {counted(rows, 'row ends', 'rows end')} at byte "
                f"{start + rows * row.itemsize} of {source.size}"
            )

    def read(self, start: int, stop: int) -> Cutouts:
        # Whole rows are fetched, pixels that are not wanted among them: a few megabytes at once.
        step = stop - start if "image" in self._fields else _FETCHED_BYTES // self._row.itemsize
        starts = range(start, max(stop, start + 1), max(1, step))
        parts = [self._columns(at, min(at + max(1, step), stop)) for at in starts]
        return as_cutouts(
            {
                name: join([part[name] for part in parts], *self.columns.kept(name))
                for name in self._fields
            }
        )

    def _columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        at, length = self._span(start, stop)
        rows = np.frombuffer(self.source.read(at, length), self._row)
        return {
            name: self.columns.column(name, field.values(rows), self.source.name)
            for name, field in self._fields.items()
        }

    def release(self, start: int, stop: int) -> None:
        self.source.release(*self._span(start, stop))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        step = self._row.itemsize
        return self._start + start * step, (stop - start) * step


class _Writer(Writer):
    format = ".fits"

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        fits = _astropy()
        definitions, fields = [], []
        for name, dtype in columns.dtypes.items():
            shape = columns.row_shape(name)
            count = int(np.prod(shape, dtype=np.int64))
            dim = f"({','.join(map(str, reversed(shape)))})" if name == "image" else None
            code = f"{count if shape else ''}{_CODES[dtype.name]}"
            zero = _UNSIGNED if dtype == np.uint64 else None
            definitions.append(fits.Column(name, code, dim=dim, bzero=zero))
            stored = np.dtype(np.int64) if dtype == np.uint64 else dtype
            fields.append((name, stored.newbyteorder(">"), shape))
        self._row = np.dtype(fields)
        header = fits.BinTableHDU.from_columns(definitions, nrows=0, name="CUTOUTS").header
        # The header was made for no rows, because the rows are streamed; their number is set here.
        header["NAXIS2"] = columns.rows
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close or abort
        self._file.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        self._file.write(header.tostring().encode("ascii"))

    def _block(self, block: Cutouts) -> None:
        rows = np.empty(len(block), self._row)
        for name, array in as_dict(block).items():
            if array.dtype == np.uint64:
                array = (array ^ np.uint64(_UNSIGNED)).view(np.int64)
            rows[name] = array.astype(self._row[name].base)
        self._file.write(rows.data)

    def _finish(self) -> None:
        self._file.write(bytes(-self.columns.rows * self._row.itemsize % _BLOCK))
        self._file.close()

    def abort(self) -> None:
        self._file.close()
