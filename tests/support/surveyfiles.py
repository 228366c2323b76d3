"""Files of cutouts as other tools write them, from a dict of arrays: one writer a format."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
from astropy.io import fits
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

Arrays = Mapping[str, NDArray[Any]]
FORMATS = (".pt", ".safetensors", ".npz", ".h5", ".fits", ".parquet")


def write(path: Path, arrays: Arrays) -> Path:
    """Write a file in the format of its suffix; masked values become the format's own nulls."""
    writers = {
        ".pt": _pt, ".safetensors": _safetensors, ".npz": _npz, ".h5": _h5, ".fits": _fits,
        ".parquet": _parquet,
    }  # fmt: skip
    writers[path.suffix](path, arrays)
    return path


def _pt(path: Path, arrays: Arrays) -> None:
    tensors = {
        name: array.tolist() if array.dtype.kind == "U" else torch.from_numpy(np.array(array))
        for name, array in arrays.items()
    }
    image = tensors.pop("image")
    redshift = tensors.pop("redshift", torch.full((len(image),), torch.nan))
    magnitude = tensors.pop("magnitude", None)
    dataset = TensorDataset(image, magnitude, redshift) if magnitude is not None else (
        TensorDataset(image)
    )  # fmt: skip
    for name, tensor in tensors.items():
        setattr(dataset, name, tensor)
    torch.save(dataset, path)


def _safetensors(path: Path, arrays: Arrays) -> None:
    safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, path)


def _npz(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)


def _h5(path: Path, arrays: Arrays) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                file[name] = array


def _fits(path: Path, arrays: Arrays) -> None:
    codes = {"f4": "E", "f8": "D", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "u2": "I",
             "u4": "J", "u8": "K", "b1": "L"}  # fmt: skip
    columns = []
    for name, array in arrays.items():
        data, kind, null = np.ma.getdata(array), array.dtype.str[1:], None
        count = "" if array.ndim == 1 else str(int(np.prod(array.shape[1:])))
        if array.dtype.kind == "U":
            columns.append(fits.Column(name, f"{array.dtype.itemsize // 4}A", array=data))
            continue
        if np.ma.is_masked(array):
            null = -77 if array.dtype.kind in "iu" else None
            data = np.where(array.mask, -77 if null else np.nan, data).astype(array.dtype)
        zero = 1 << (8 * array.dtype.itemsize - 1) if kind in ("u2", "u4", "u8") else None
        dim = f"({','.join(map(str, array.shape[:0:-1]))})" if array.ndim > 2 else None
        columns.append(
            fits.Column(name, count + codes[kind], array=data, bzero=zero, dim=dim, null=null)
        )
    fits.BinTableHDU.from_columns(columns).writeto(path)


def _parquet(path: Path, arrays: Arrays) -> None:
    """Lists of any length, as pandas and most tools write them."""
    columns = {}
    for name, array in arrays.items():
        flat = np.ma.getdata(array).reshape(-1)
        mask = np.ma.getmaskarray(array).reshape(-1) if np.ma.is_masked(array) else None
        values = pa.array(flat, mask=mask)
        if name == "image" and "magnitude" not in arrays:
            values = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
        elif array.ndim > 1:
            width = int(np.prod(array.shape[1:]))
            ends = np.arange(0, len(flat) + 1, width, dtype=np.int32)
            values = pa.ListArray.from_arrays(ends, values)
        columns[name] = values
    pq.write_table(pa.table(columns), path)


def as_bytes(save: Any, *args: Any) -> bytes:
    """What a function writes into a file object."""
    file = io.BytesIO()
    save(file, *args)
    return file.getvalue()
