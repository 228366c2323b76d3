"""FITS (``.fits``): a binary table, one row an object, with an image column of fixed offsets.

Rows have one length, so any of them are read by their place. FITS 4.0, section 7.3: numbers are
big-endian, the image's shape is in ``TDIMn`` with the fastest axis first.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, NotInstalledError, PerseidError
from perseid.survey.bytesource import ByteSource, SourceFile, corrupt
from perseid.survey.cutouts import Cutouts
from perseid.survey.table import (
    NAMES,
    Columns,
    Table,
    Writer,
    as_cutouts,
    as_dict,
    canonical,
    check_columns,
    native,
)

_BLOCK = 2880
"""Bytes; a FITS file is a whole number of them."""
_CODES = {"float32": "E", "float64": "D", "int64": "K", "int32": "J"}


def open_table(source: ByteSource) -> Table:
    """Find the first table with an image column; see `perseid.survey.formats`."""
    fits = _astropy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what astropy only warns of is checked below
            with fits.open(SourceFile(source), memmap=False, lazy_load_hdus=True) as hdus:
                return _find(fits, hdus, source)
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
        raise NotInstalledError("FITS needs astropy: pip install 'perseid[formats]'") from error
    return fits


def _find(fits: Any, hdus: Any, source: ByteSource) -> Table:
    for hdu in hdus:
        if not isinstance(hdu, fits.BinTableHDU) or isinstance(hdu, fits.CompImageHDU):
            continue
        fields = {canonical(name): name for name in hdu.columns.names}
        if "image" not in fields:
            continue
        used = {name: fields[name] for name in NAMES if name in fields}
        for name, column in used.items():
            definition = hdu.columns[column]
            if definition.bscale not in ("", None, 1) or definition.bzero not in ("", None, 0):
                raise BadPartitionError(f"{source.name}: {name} is scaled (TSCAL, TZERO)")
        start = int(hdu.fileinfo()["datLoc"])
        row = hdu.columns.dtype.newbyteorder(">")
        if row.itemsize != hdu.header["NAXIS1"]:
            raise BadPartitionError(
                f"{source.name}: rows have {hdu.header['NAXIS1']} bytes, "
                f"their columns {row.itemsize}"
            )
        return _Rows(source, start, int(hdu.header["NAXIS2"]), row, used)
    raise source.failure or BadPartitionError(
        f"{source.name} has no binary table with an image column"
    )


class _Rows(Table):
    """Rows of one length, mapped or read by ranges."""

    def __init__(
        self, source: ByteSource, start: int, rows: int, row: Any, used: dict[str, str]
    ) -> None:
        found = {}
        for name, field in used.items():
            base, shape = row[field].base, row[field].shape
            if name == "magnitude" and not shape:
                shape = (1,)  # a vector of one element is a scalar in FITS
            found[name] = (base, (rows, *shape))
        super().__init__(source, check_columns(source.name, found))
        self._start, self._row, self._used = start, row, used
        if rows < 0 or start + rows * row.itemsize > source.size:
            raise BadPartitionError(
                f"{source.name} is truncated: {rows} rows end at byte "
                f"{start + rows * row.itemsize} of {source.size}"
            )

    def read(self, start: int, stop: int) -> Cutouts:
        at, length = self._span(start, stop)
        rows = np.frombuffer(self.source.read(at, length), self._row)
        arrays = {
            name: native(_field(rows, field), self.columns.dtypes[name], self.source.name)
            for name, field in self._used.items()
        }
        arrays["magnitude"] = arrays["magnitude"].reshape(-1, self.columns.shape[0])
        return as_cutouts(arrays)

    def release(self, start: int, stop: int) -> None:
        self.source.release(*self._span(start, stop))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        step = self._row.itemsize
        return self._start + start * step, (stop - start) * step


def _field(rows: NDArray[Any], field: str) -> NDArray[Any]:
    return np.ascontiguousarray(rows[field])


class _Writer(Writer):
    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        fits = _astropy()
        definitions, fields = [], []
        for name, dtype in columns.dtypes.items():
            shape = columns.row_shape(name)
            count = int(np.prod(shape, dtype=np.int64))
            dim = f"({','.join(map(str, reversed(shape)))})" if name == "image" else None
            code = _CODES[dtype.name]
            definitions.append(fits.Column(name, f"{count if shape else ''}{code}", dim=dim))
            fields.append((name, dtype.newbyteorder(">"), shape))
        self._row = np.dtype(fields)
        header = fits.BinTableHDU.from_columns(definitions, nrows=0, name="CUTOUTS").header
        header["NAXIS2"] = columns.rows
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close or abort
        self._file.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        self._file.write(header.tostring().encode("ascii"))

    def _block(self, block: Cutouts) -> None:
        rows = np.empty(len(block), self._row)
        for name, array in as_dict(block).items():
            rows[name] = array.astype(self._row[name].base)
        self._file.write(rows.data)

    def _finish(self) -> None:
        self._file.write(bytes(-self.columns.rows * self._row.itemsize % _BLOCK))
        self._file.close()

    def abort(self) -> None:
        self._file.close()
