"""HDF5 (``.h5``, ``.hdf5``): one dataset per column at the root of the file.

A contiguous image dataset, as we write it, is mapped or read by ranges; a chunked or compressed
one goes through h5py, as does one whose attributes say how its numbers are packed. Links to other
files, external and virtual datasets are refused: a partition must not make a worker read any other
file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, NotInstalledError, PerseidError
from perseid.libraries import library_error
from perseid.plaintext import counted
from perseid.survey.bytesource import LARGEST_READ, ByteSource, SourceFile, corrupt
from perseid.survey.column_spec import ColumnSpec, described
from perseid.survey.content import LONGEST_TEXT, TEXT
from perseid.survey.cutouts import Cutouts
from perseid.survey.file_columns import Columns, as_cutouts, as_dict, check_columns
from perseid.survey.file_table import RawArray, RawTable, Table, Writer
from perseid.survey.picking import pick_columns, unused_names, without_strangers
from perseid.survey.read_options import PLAIN, ReadOptions

BANDS = "image_band"
"""Dataset with the names of the bands of each image."""
_TEXTS = 64
"""Texts to read at once."""
_NAMES = 320
"""Names of bands to read at once, if they are of any length."""
_MOST_BANDS, _MOST_NAMES = 256, 1 << 18
"""Most names of bands that an image may have, and that a chunk may hold if they are of any
length."""
_MOST_RATIO = 10_000
"""Most bytes of a large dataset for each byte that the file holds; gzip reaches 1,032."""


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Read the layout; see `perseid.survey.formats`."""
    h5py = _h5py()
    try:
        file = h5py.File(SourceFile(source), "r")
        sources = without_strangers(
            pick_columns(source.name, file, options),
            lambda key: _is_dataset(h5py, file, key),
        )
        datasets = _datasets(h5py, file, source.name, sources)
        if all(_is_raw(file, dataset) for dataset in datasets.values()):
            # h5py is only needed for the layout; the pixels are mapped or read by ranges.
            arrays = {
                name: RawArray(dataset.id.get_offset() or 0, dataset.dtype, dataset.shape)
                for name, dataset in datasets.items()
            }
            names, about = list(file), _described(h5py, file) if options.describe else ()
            bands = _bands(h5py, file, source.name, sources)
            file.close()
            table: Table = RawTable(source, arrays, sources=sources, options=options)
        else:
            names, about = list(file), _described(h5py, file) if options.describe else ()
            bands = _bands(h5py, file, source.name, sources)
            table = _Datasets(source, file, datasets, sources, options)
        table.unused, table.described = unused_names(names, sources.values()), about
        table.known_bands = bands
        return table
    except PerseidError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise corrupt(source, "HDF5", error) from error


def _bands(h5py: Any, file: Any, where: str, sources: Mapping[str, str]) -> tuple[str, ...]:
    """Band names: a list for each row in ``image_band``, as the Multimodal Universe has them."""
    if "image" not in sources or not _is_dataset(h5py, file, BANDS):
        return ()
    dataset = file[BANDS]
    if dataset.ndim != 2 or not dataset.size or not h5py.check_string_dtype(dataset.dtype):
        return ()
    _check_names(dataset, f"{where}: {BANDS}")
    names = _names(dataset, 0, 1)[0]
    # Text a few rows at a time: many rows may refer to one long text that the file stores once.
    step = max(1, (_NAMES if dataset.dtype.kind == "O" else _MOST_NAMES) // len(names))
    for at in range(0, len(dataset), step):
        if (_names(dataset, at, at + step) != names).any():
            raise BadPartitionError(
                f"{where}: its rows have different bands, or in different orders: write rows of "
                "the same bands into one file"
            )
    return tuple(
        one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in names
    )


def _check_names(dataset: Any, place: str) -> None:
    """Refuse names of bands that are none, or so many in a chunk that reading them takes hours or
    more memory than a worker has."""
    length, chunk = dataset.dtype.itemsize, math.prod(dataset.chunks or (1,))
    most = _MOST_NAMES if dataset.dtype.kind == "O" else 16 * _MOST_NAMES
    if dataset.shape[1] > _MOST_BANDS or length > LONGEST_TEXT or chunk > most:
        raise BadPartitionError(
            f"{place} has {counted(dataset.shape[1], 'name')} of {length:,} bytes for each image, "
            f"{chunk:,} in a chunk: at most {_MOST_BANDS} of {LONGEST_TEXT} bytes, and {most:,} in "
            "a chunk, are read"
        )
    _check_stored(dataset, place)


def _names(dataset: Any, start: int, stop: int) -> NDArray[Any]:
    """Names of the bands of some rows: bytes, or text."""
    rows = dataset[start:stop] if dataset.dtype.kind == "S" else dataset.asstr()[start:stop]
    return np.asarray(rows)


def _check_stored(dataset: Any, place: str) -> None:
    """Refuse a large dataset of which the file holds next to nothing: it was never written, and a
    file of a few kilobytes would keep a run busy for days."""
    size, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if size > LARGEST_READ and size > _MOST_RATIO * stored:
        raise BadPartitionError(
            f"{place} has {size:,} bytes, of which the file holds {stored:,}: it was never written"
        )


def create(path: Path, columns: Columns) -> Writer:
    """Begin a file on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise library_error(error, "HDF5 needs h5py: pip install h5py") from error
    return h5py


def _is_dataset(h5py: Any, file: Any, key: str) -> bool:
    linked = isinstance(file.get(key, getlink=True), h5py.HardLink)
    return linked and isinstance(file[key], h5py.Dataset)


def _described(h5py: Any, file: Any) -> tuple[ColumnSpec, ...]:
    """The datasets at the root; units are in the attribute ``unit`` or ``units`` by convention."""
    every = {key: file[key] for key in file if _is_dataset(h5py, file, key)}
    return tuple(
        described(
            key,
            _dtype(h5py, data),
            data.shape,
            unit=_attribute(data, "unit") or _attribute(data, "units"),
            ucd=_attribute(data, "ucd"),
            description=_attribute(data, "description"),
        )
        for key, data in every.items()
        if data.shape
    )


def _attribute(dataset: Any, name: str) -> str:
    value = dataset.attrs.get(name, "")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _datasets(h5py: Any, file: Any, where: str, sources: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, key in sources.items():
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise BadPartitionError(f"{where}: {key} is a link, which is not followed")
        dataset = file[key]
        if not isinstance(dataset, h5py.Dataset):
            raise BadPartitionError(f"{where}: {key} is a group, not a dataset")
        # Such a dataset refers to a file on the worker's machine, which a partition must not
        # choose.
        if dataset.external or dataset.is_virtual or dataset.shape is None:
            raise BadPartitionError(f"{where}: {key} lies in another file or is empty")
        _check_stored(dataset, f"{where}: {key}")
        _check_filters(h5py, dataset, f"{where}: {key}")
        found[name] = dataset
    return found


def _check_filters(h5py: Any, dataset: Any, place: str) -> None:
    """Refuse a dataset whose filter is not installed, before anything is read."""
    created = dataset.id.get_create_plist()
    for number in range(created.get_nfilters()):
        code, _, _, name = created.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            known = name.decode("utf-8", "replace") or "unnamed"
            raise NotInstalledError(
                f"{place} is compressed by the HDF5 filter {code} ({known}), which is not "
                "installed: pip install hdf5plugin and set HDF5_PLUGIN_PATH, or write the file "
                "again with gzip"
            )


def _dtype(h5py: Any, dataset: Any) -> np.dtype[Any]:
    """Dtype of a dataset's values; h5py represents variable-length text as Python objects."""
    if h5py.check_string_dtype(dataset.dtype):
        return TEXT
    return np.dtype(np.float64) if _Packing.of(dataset).scaled else np.dtype(dataset.dtype)


@dataclass(frozen=True)
class _Packing:
    """How the attributes of a dataset say that its numbers are packed: those of netCDF, which
    xarray writes too."""

    scale: float = 1.0
    """``scale_factor``."""
    offset: float = 0.0
    """``add_offset``."""
    nulls: tuple[float, ...] = ()
    """``_FillValue`` and ``missing_value``: numbers, as stored, that mean missing."""

    @classmethod
    def of(cls, dataset: Any) -> _Packing:
        if dataset.dtype.kind not in "iuf":
            return cls()
        scale, offset = _numbers(dataset, "scale_factor"), _numbers(dataset, "add_offset")
        nulls = (*_numbers(dataset, "_FillValue"), *_numbers(dataset, "missing_value"))
        return cls(scale[0] if scale else 1.0, offset[0] if offset else 0.0, nulls)

    @property
    def scaled(self) -> bool:
        return (self.scale, self.offset) != (1, 0)

    def values(self, raw: NDArray[Any]) -> NDArray[Any]:
        """The numbers that are meant; a masked array if some are missing."""
        missing = np.zeros(raw.shape, np.bool_)
        for null in self.nulls:  # rounded as the numbers are: 99.9 as float32
            missing |= raw == (np.asarray(null, raw.dtype) if raw.dtype.kind == "f" else null)
        values = raw.astype(np.float64) * self.scale + self.offset if self.scaled else raw
        return np.ma.masked_array(values, mask=missing) if missing.any() else values


def _numbers(dataset: Any, name: str) -> tuple[float, ...]:
    """The numbers of an attribute; NaN means missing in any case and is left out."""
    value = np.ravel(dataset.attrs[name]) if name in dataset.attrs else np.empty(0)
    return tuple(value[value == value].tolist()) if value.dtype.kind in "iuf" else ()


def _is_raw(file: Any, dataset: Any) -> bool:
    """Whether the file stores its bytes as they are in memory (true if it has no rows)."""
    if dataset.size == 0:
        return True
    plain = dataset.chunks is None and not dataset.compression and not file.userblock_size
    plain = plain and _Packing.of(dataset) == _Packing()
    return bool(plain and dataset.dtype.kind in "iuf" and dataset.id.get_offset() is not None)


class _Datasets(Table):
    """Columns that h5py decodes."""

    def __init__(
        self,
        source: ByteSource,
        file: Any,
        datasets: dict[str, Any],
        sources: Mapping[str, str],
        options: ReadOptions,
    ) -> None:
        h5py = _h5py()
        found = {n: (_dtype(h5py, d), d.shape) for n, d in datasets.items()}
        columns = check_columns(source.name, found, sources, options)
        super().__init__(source, columns)
        self._file, self._datasets = file, datasets
        self._packings = {name: _Packing.of(dataset) for name, dataset in datasets.items()}
        for name, dataset in datasets.items():
            chunk = np.prod(dataset.chunks or (1,), dtype=np.float64) * dataset.dtype.itemsize
            # HDF5 decodes a whole chunk at a time, so the size of a chunk bounds the memory.
            if chunk > LARGEST_READ:
                raise BadPartitionError(f"{source.name}: {name} has chunks of {chunk:.0f} bytes")
        self._small = {name: self._part(name, 0, columns.rows) for name in columns.stored}

    def read(self, start: int, stop: int) -> Cutouts:
        arrays = {name: column[start:stop] for name, column in self._small.items()}
        if "image" in self._datasets:
            arrays["image"] = self._part("image", start, stop)
        return as_cutouts(arrays)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _part(self, name: str, start: int, stop: int) -> NDArray[Any]:
        dataset = self._datasets[name]
        if (stop - start) * np.prod(dataset.shape[1:]) * dataset.dtype.itemsize > LARGEST_READ:
            raise BadPartitionError(f"{self.source.name}: {name} is too large for one read")
        try:
            if name != "image" and self.columns.kept(name)[0] == TEXT:
                array = self._text(dataset, start, stop)
            else:
                array = self._packings[name].values(dataset[start:stop])
        except UnicodeDecodeError as error:
            raise BadPartitionError(
                f"{self.source.name}: {name} has text that is not UTF-8: write it again"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise corrupt(self.source, "HDF5", error) from error
        return self.columns.column(name, array, self.source.name)

    def _text(self, dataset: Any, start: int, stop: int) -> NDArray[Any]:
        """Read text a few rows at a time: many rows may refer to one long text that the file stores
        once."""
        rows: list[str] = []
        for at in range(start, stop, _TEXTS):
            part = dataset.asstr("utf-8")[at : min(at + _TEXTS, stop)]
            rows += [str(text)[: LONGEST_TEXT + 1] for text in np.ravel(part)]
        return np.array(rows, TEXT)


class _Writer(Writer):
    format = ".h5"
    takes_text = True

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        h5py = _h5py()
        self._file = h5py.File(path, "w")
        self._file.attrs["format"] = "perseid cutouts 1"
        for name, kept in columns.dtypes.items():
            dtype = h5py.string_dtype() if kept == TEXT else kept
            self._file.create_dataset(name, (columns.rows, *columns.row_shape(name)), dtype)

    def _block(self, block: Cutouts) -> None:
        for name, array in as_dict(block).items():
            values = array.astype(object) if array.dtype.kind == "U" else array
            self._file[name][self.written : self.written + len(block)] = values

    def _finish(self) -> None:
        try:
            self._file.close()
        except RuntimeError as error:  # what h5py raises for a full disk
            raise OSError(str(error)) from error

    def abort(self) -> None:
        self._file.close()
