"""HDF5 (``.h5``, ``.hdf5``): one dataset a column at the root of the file.

A contiguous image dataset, as we write it, is mapped or read by ranges; a chunked or compressed
one goes through h5py. Links to other files, external and virtual datasets are refused: a
partition must not make a worker read something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadPartitionError, NotInstalledError, PerseidError
from perseid.survey.bytesource import LARGEST_READ, ByteSource, SourceFile, corrupt
from perseid.survey.cutouts import Cutouts
from perseid.survey.table import (
    NAMES,
    Columns,
    RawArray,
    RawTable,
    Table,
    Writer,
    as_cutouts,
    as_dict,
    canonical,
    check_columns,
    native,
)


def open_table(source: ByteSource) -> Table:
    """Read the layout; see `perseid.survey.formats`."""
    h5py = _h5py()
    try:
        file = h5py.File(SourceFile(source), "r")
        datasets = _datasets(h5py, file, source.name)
        if all(_is_raw(file, dataset) for dataset in datasets.values()):
            arrays = {
                name: RawArray(dataset.id.get_offset() or 0, dataset.dtype, dataset.shape)
                for name, dataset in datasets.items()
            }
            file.close()
            return RawTable(source, arrays)
        return _Datasets(source, file, datasets)
    except PerseidError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise corrupt(source, "HDF5", error) from error


def create(path: Path, columns: Columns) -> Writer:
    """Begin a file on disk; see `perseid.survey.formats`."""
    return _Writer(path, columns)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise NotInstalledError("HDF5 needs h5py: pip install 'perseid[formats]'") from error
    return h5py


def _datasets(h5py: Any, file: Any, where: str) -> dict[str, Any]:
    found = {}
    for key in file:
        name = canonical(key)
        if name not in NAMES:
            continue
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise BadPartitionError(f"{where}: {key} is a link, which is not followed")
        dataset = file[key]
        if not isinstance(dataset, h5py.Dataset):
            raise BadPartitionError(f"{where}: {key} is a group, not a dataset")
        if dataset.external or dataset.is_virtual or dataset.shape is None:
            raise BadPartitionError(f"{where}: {key} lies in another file or is empty")
        found[name] = dataset
    return found


def _is_raw(file: Any, dataset: Any) -> bool:
    """Whether its bytes lie in the file as in memory (none at all where it has no rows)."""
    if dataset.size == 0:
        return True
    plain = dataset.chunks is None and not dataset.compression and not file.userblock_size
    return bool(plain and dataset.dtype.kind in "iuf" and dataset.id.get_offset() is not None)


class _Datasets(Table):
    """Columns that h5py decodes."""

    def __init__(self, source: ByteSource, file: Any, datasets: dict[str, Any]) -> None:
        columns = check_columns(source.name, {n: (d.dtype, d.shape) for n, d in datasets.items()})
        super().__init__(source, columns)
        self._file, self._datasets = file, datasets
        for name, dataset in datasets.items():
            chunk = np.prod(dataset.chunks or (1,), dtype=np.float64) * dataset.dtype.itemsize
            if chunk > LARGEST_READ:
                raise BadPartitionError(f"{source.name}: {name} has chunks of {chunk:.0f} bytes")
        self._small = {name: self._part(name, 0, columns.rows) for name in columns.small}

    def read(self, start: int, stop: int) -> Cutouts:
        arrays = {name: column[start:stop] for name, column in self._small.items()}
        return as_cutouts({"image": self._part("image", start, stop), **arrays})

    def close(self) -> None:
        self._file.close()
        super().close()

    def _part(self, name: str, start: int, stop: int) -> NDArray[Any]:
        dataset = self._datasets[name]
        if (stop - start) * np.prod(dataset.shape[1:]) * dataset.dtype.itemsize > LARGEST_READ:
            raise BadPartitionError(f"{self.source.name}: {name} is too large for one read")
        try:
            array = dataset[start:stop]
        except (OSError, RuntimeError, ValueError) as error:
            raise corrupt(self.source, "HDF5", error) from error
        return native(array, self.columns.dtypes[name], self.source.name)


class _Writer(Writer):
    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(columns)
        self._file = _h5py().File(path, "w")
        self._file.attrs["format"] = "perseid cutouts 1"
        for name, dtype in columns.dtypes.items():
            self._file.create_dataset(name, (columns.rows, *columns.row_shape(name)), dtype)

    def _block(self, block: Cutouts) -> None:
        for name, array in as_dict(block).items():
            self._file[name][self.written : self.written + len(block)] = array

    def _finish(self) -> None:
        try:
            self._file.close()
        except RuntimeError as error:  # what h5py raises for a full disk
            raise OSError(str(error)) from error

    def abort(self) -> None:
        self._file.close()
