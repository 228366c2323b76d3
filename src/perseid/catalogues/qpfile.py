"""Export of redshift PDFs to qp's HDF5 format, which RAIL and DESC use for photometric redshifts.

https://qp.readthedocs.io: the group ``meta`` states the representation of the PDFs (``interp`` on a
grid, ``hist`` in bins, ``quant`` by quantiles), ``data`` has one row per object, and ``ancil`` the
other columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.catalogues.astropytable import column_values
from perseid.catalogues.selection import Selection
from perseid.errors import BadInputError
from perseid.jsontext import parse_json
from perseid.plaintext import option

OUTPUTS_KEY = "perseid.outputs"
"""Key in a catalogue's footer that describes the columns of the model's outputs."""


@dataclass(frozen=True)
class _Form:
    """How the catalogue represents PDFs, and qp's names for that."""

    columns: tuple[str, ...]
    """Columns with the PDFs: one with lists, or one for each quantile."""
    name: str
    """qp's name of the representation."""
    axis: str
    """Name in ``meta`` of the grid, bins or levels that all objects share."""
    places: NDArray[np.float64]
    """Values of that grid, those bins or levels."""
    data: str
    """Name in ``data`` of the array (objects, numbers)."""


def write_qp(selection: Selection, path: Path) -> int:
    """Write the file and return the number of objects in it; those without a PDF are left out.

    Raises
    ------
    BadInputError
        The catalogue has neither PDFs nor quantiles, or no object has any.
    """
    form = _form(selection)
    others = [name for name in selection.columns if name not in form.columns]
    rows = 0
    import h5py  # imported only here, so that other commands work without it

    with h5py.File(path, "w") as file:
        _write_meta(file.create_group("meta"), form)
        data, ancil = file.create_group("data"), file.create_group("ancil")
        for table in selection.batches():
            pdfs = _pdfs(table, form)
            # qp has no missing values, so objects without a PDF are left out.
            good = np.isfinite(pdfs).all(axis=1)
            _append(data, form.data, pdfs[good])
            for name in others:
                _append(ancil, name, _plain(table[name].combine_chunks())[good])
            rows += int(good.sum())
        if not rows:
            raise BadInputError(f"no selected object of {selection.source} has a PDF")
    return rows


def _form(selection: Selection) -> _Form:
    """The redshift PDFs on a grid or in bins, otherwise the quantiles."""
    known = parse_json(selection.metadata.get(OUTPUTS_KEY, "[]"))
    there = [one for one in known if one["name"] in selection.columns]
    for one in there:
        if one.get("grid"):
            grid = np.asarray(one["grid"], np.float64)
            # Bins are given by their edges, a grid by its points.
            if one.get("bins"):
                return _Form((one["name"],), "hist", "bins", grid, "pdfs")
            return _Form((one["name"],), "interp", "xvals", grid, "yvals")
    quantiles = [one for one in there if one["kind"] == "quantiles"]
    # A model may have several outputs with quantiles; those of one output belong together.
    quantiles = [one for one in quantiles if one["output"] == quantiles[0]["output"]]
    if len(quantiles) < 2:
        raise BadInputError(
            f"{selection.source} has no PDFs and no quantiles: run a model with an output of the "
            f"kind pdf or quantiles, and leave its columns among {option('columns')} of the "
            "catalogue"
        )
    levels = np.asarray([one["level"] for one in quantiles], np.float64)
    return _Form(tuple(one["name"] for one in quantiles), "quant", "quants", levels, "locs")


def _write_meta(meta: Any, form: _Form) -> None:
    given: dict[str, object] = {
        "pdf_name": form.name.encode(),
        "pdf_version": 0,
        form.axis: form.places,
    }
    if form.name == "quant":
        given |= {"ensure_extent": True, "pdf_constructor_name": b"piecewise_linear"}
    # qp expects each entry of `meta` with a leading dimension of 1.
    for name, value in given.items():
        meta.create_dataset(name, data=np.asarray([value]))


def _pdfs(table: Any, form: _Form) -> NDArray[np.float64]:
    """PDFs, (n, numbers), NaN for none; quantiles are sorted, since a network's may cross."""
    columns = [table[name].combine_chunks() for name in form.columns]
    if form.name != "quant" and columns[0].null_count == len(columns[0]):
        numbers = len(form.places) - (form.name == "hist")
        return np.full((len(columns[0]), numbers), np.nan)
    found = [
        np.ma.filled(np.ma.asarray(column_values(column), np.float64), np.nan) for column in columns
    ]
    return found[0] if form.name != "quant" else np.sort(np.stack(found, axis=1), axis=1)


def _plain(column: Any) -> NDArray[Any]:
    """A column for HDF5: text as UTF-8 bytes, missing numbers as NaN or, for 64 bits, text."""
    values = column_values(column)
    if values.dtype.kind == "U":
        return np.char.encode(np.ma.filled(values, ""), "utf-8")
    if np.ma.is_masked(values) and values.dtype.kind in "iub":
        # float64, which has NaN, holds integers of up to 32 bits exactly, but not 64-bit ids.
        texts = ["" if value is None else str(value) for value in column.to_pylist()]
        return np.asarray(texts, np.bytes_) if values.dtype.itemsize == 8 else np.ma.filled(
            values.astype(np.float64), np.nan)  # fmt: skip
    if values.dtype.kind == "O":
        raise BadInputError("lists of different lengths are not written to qp's files: leave the "
                            f"column out by {option('columns')}")  # fmt: skip
    return np.ma.filled(values, np.nan) if values.dtype.kind == "f" else np.asarray(values)


def _append(group: Any, name: str, values: NDArray[Any]) -> None:
    """Append rows to a dataset, which is created with the first rows."""
    name = name.replace("/", "_")  # HDF5 would read it as the name of a group
    if name not in group:
        shape = (None, *values.shape[1:])
        group.create_dataset(name, data=values, maxshape=shape, chunks=True)
        return
    before = group[name]
    if not np.can_cast(values.dtype, before.dtype):  # a longer text, or the first missing value
        wider = np.concatenate([before[()], values])
        del group[name]
        group.create_dataset(name, data=wider, maxshape=(None, *wider.shape[1:]), chunks=True)
        return
    before.resize(len(before) + len(values), axis=0)
    before[len(before) - len(values) :] = values.astype(before.dtype)
