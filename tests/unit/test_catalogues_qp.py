"""Redshift PDFs of a catalogue as qp reads them."""

from __future__ import annotations

import io
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qp

from perseid import Catalogue, Storage
from perseid.errors import BadInputError

ROWS = 40
GRID = np.linspace(0, 2, 21)
LEVELS = (0.05, 0.16, 0.5, 0.84, 0.95)


def stored(columns, outputs) -> Catalogue:
    common = {
        "object_id": pa.array([None, *range(2**60, 2**60 + ROWS - 1)]),
        "name/of": [f"é{i}" * (i % 3) for i in range(ROWS)],
        "label": pa.array([None if i == 9 else i for i in range(ROWS)], pa.int32()),
    }
    table = pa.table({**common, **columns})
    table = table.replace_schema_metadata({"perseid.outputs": json.dumps(outputs)})
    store = Storage(f"memory://{uuid.uuid4().hex}")
    for number, part in enumerate((table.slice(0, 7), table.slice(7))):
        data = io.BytesIO()
        pq.write_table(part, data)
        store.put(f"catalogue.parquet/part-{number:05d}.parquet", data.getvalue())
    return Catalogue(store)


def densities(numbers: int) -> np.ndarray:
    return np.random.default_rng(1).gamma(2.0, size=(ROWS, numbers)).astype(np.float32)


@pytest.mark.parametrize(("bins", "numbers"), [(False, 21), (True, 20)])
def test_densities(tmp_path, bins, numbers):
    given = densities(numbers).tolist()
    given[3], given[4] = None, [float("nan")] * numbers
    column = pa.array(given, pa.list_(pa.float32()))
    about = {"name": "z_pdf", "kind": "list", "output": "p", "width": numbers,
             "grid": GRID.tolist(), "bins": bins}  # fmt: skip
    written = stored({"z_pdf": column}, [about]).write(tmp_path / "a.hdf5")
    assert (written.format, written.rows) == ("qp", ROWS - 2)
    found = qp.read(str(tmp_path / "a.hdf5"))
    assert found.npdf == ROWS - 2
    whole = densities(numbers)[[i for i in range(ROWS) if i not in (3, 4)]]
    middles = (GRID[1:] + GRID[:-1]) / 2 if bins else GRID
    step = 0.1
    area = whole.sum(axis=1) if bins else (whole[:, 1:] + whole[:, :-1]).sum(axis=1) / 2
    np.testing.assert_allclose(found.pdf(middles), whole / (area * step)[:, None], rtol=1e-5)
    ids = found.ancil["object_id"].astype(str).tolist()
    assert ids[:4] == ["", str(2**60), str(2**60 + 1), str(2**60 + 4)]
    assert found.ancil["name_of"][5] == "é7"
    assert np.isnan(found.ancil["label"][7])


def test_quantiles(tmp_path):
    values = np.sort(np.random.default_rng(2).uniform(0, 2, (ROWS, 5)), axis=1)
    values[0] = values[0][::-1]  # quantiles of networks may cross
    names = ["z_q05", "z_q16", "z_q50", "z_q84", "z_q95"]
    about = [{"name": name, "kind": "quantiles", "output": "q", "level": level}
             for name, level in zip(names, LEVELS, strict=True)]  # fmt: skip
    columns = {name: values[:, place] for place, name in enumerate(names)}
    stored(columns, about).write(tmp_path / "a.hdf5", where="label < 30 or label is null")
    found = qp.read(str(tmp_path / "a.hdf5"))
    assert found.npdf == 30
    np.testing.assert_allclose(found.ppf(LEVELS), np.sort(values, axis=1)[:30], rtol=1e-6)


def test_a_catalogue_without_pdfs(tmp_path):
    with pytest.raises(BadInputError, match="has no PDFs and no quantiles"):
        stored({"z_pred": np.ones(ROWS)}, []).write(tmp_path / "a.hdf5")
    about = {"name": "z_pdf", "kind": "list", "output": "p", "width": 2, "grid": [0, 1]}
    column = pa.array([None] * ROWS, pa.list_(pa.float32()))
    with pytest.raises(BadInputError, match="has a PDF"):
        stored({"z_pdf": column}, [about]).write(tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []
