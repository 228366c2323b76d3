"""Catalogues in other forms, read back by the tools that they are made for."""

from __future__ import annotations

import csv
import itertools
import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import Table

from perseid import Catalogue, Storage
from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError, StorageError
from perseid.pipeline.voparquet import VOField, votable_pairs

HOSTILE = ["plain", "=1+1", 'quo"te, comma', "Ångström ∅", "line\nbreak", "\x1b[31m", None, "<&>"]
COLUMNS = {
    "object_id": pa.array([2**64 - 1, 2**53 + 1, None, 0, 1, 2, 3, 4], pa.uint64()),
    "partition": [f"{i}.pt" for i in range(8)],
    "row": pa.array(range(8), pa.int32()),
    "z_pred": pa.array([0.1, np.nan, 3e38, -0.0, 1e-38, 0.5, 0.25, 7], pa.float32()),
    "z_spec": [0.1, None, 1e308, -1.5, 0.0, 1.0, 2.0, 3.0],
    "label": pa.array([1, None, 3, 4, 5, 6, 7, -(2**31)], pa.int32()),
    "flag": pa.array([0, 1, 0, 0, 0, 0, 0, 0], pa.int32()),
    "name": HOSTILE,
    "good": [True, None, False, True, True, False, False, True],
    "tiny": pa.array([1, None, -128, 127, 0, 1, 2, 3], pa.int8()),
    "small": pa.array([0, None, 255, 1, 2, 3, 4, 5], pa.uint8()),
    "medium": pa.array([0, None, 65535, 1, 2, 3, 4, 5], pa.uint16()),
    "half": pa.array([0.5, None, 1, 2, 3, 4, 5, 6], pa.float16()),
    "mags": pa.array([[1.0, 2.0], None, *[[3.0, 4.0]] * 6], pa.list_(pa.float32())),
    "=NAME": list(range(8)),
}
"""A catalogue with carried columns of all types, each with its extreme values."""
VALUES = {name: pa.array(v).to_pylist() for name, v in COLUMNS.items()}
UNITS = {"mags": "mag", "z_spec": ""}


def stored(columns=COLUMNS, store: Storage | None = None, parts: int = 1) -> Catalogue:
    store = store or Storage(f"memory://{uuid.uuid4().hex}")
    table = pa.table(columns)
    pairs = votable_pairs(
        VOField(n, "double", "", UNITS.get(n, ""), "em.wl", "Two\nlines.") for n in columns
    )
    table = table.replace_schema_metadata(pairs | {"run_id": "r"})
    size = -(-len(table) // parts)
    for number in range(parts):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(number * size, size), sink)
        key = f"catalogue.parquet/part-{number:05d}.parquet" if parts > 1 else "catalogue.parquet"
        store.put(key, sink.getvalue().to_pybytes())
    return Catalogue(store)


def plain(column) -> list:
    """The values of an astropy column: None if one is masked or NaN, text as text."""
    out = []
    for value in column:
        if value is np.ma.masked or np.all(getattr(value, "mask", False)):
            value = None
        elif isinstance(value, bytes):
            value = value.decode()
        elif hasattr(value, "tolist"):
            value = value.tolist()
        out.append(None if isinstance(value, float) and np.isnan(value) else value)
    return out


def wanted(name: str) -> list:
    values = VALUES[name]
    return [None if isinstance(v, float) and np.isnan(v) else v for v in values]


@pytest.mark.parametrize("parts", [1, 3])
def test_fits(tmp_path, parts):
    catalogue = stored(parts=parts)
    assert catalogue.write(tmp_path / "a.fits").rows == 8
    table = Table.read(tmp_path / "a.fits")
    assert table.colnames == list(COLUMNS)
    for name in set(COLUMNS) - {"name", "good", "mags", "object_id"}:
        assert plain(table[name]) == wanted(name), name
    ids = [None if value is None else str(value) for value in wanted("object_id")]
    assert plain(table["object_id"]) == ids, "no integer of FITS is left to stand for a missing one"
    assert table["mags"].unit == "mag"
    np.testing.assert_array_equal(table["mags"][0], [1, 2])
    assert plain(table["mags"])[1] is None
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in table["name"]]
    assert texts[3] == "\\xc5ngstr\\xf6m \\u2205"
    assert texts[:3] == HOSTILE[:3]
    with fits.open(tmp_path / "a.fits") as file:
        file.verify("exception")
        assert file[1].header["TUCD5"] == "em.wl"
    assert (tmp_path / "a.fits").stat().st_size % 2880 == 0


@pytest.mark.parametrize(
    "values",
    [
        [2**64 - 1, 2**63, 0],
        [2**63 - 1, None, 0],
        [-(2**63), None, 2**63 - 2],
        [-(2**15), None],
        [-(2**31), None],
        [None, None],
    ],
)
def test_integers_in_fits_are_exact_and_missing_ones_are_missing(tmp_path, values):
    kind = pa.uint64() if max(v or 0 for v in values) > 2**63 else pa.int64()
    stored({"id": pa.array(values, kind)}).write(tmp_path / "a.fits")
    assert plain(Table.read(tmp_path / "a.fits")["id"]) == values


@pytest.mark.parametrize("parts", [1, 3])
def test_votable(tmp_path, parts):
    stored(parts=parts).write(tmp_path / "a.vot")
    table = Table.read(tmp_path / "a.vot", format="votable", use_names_over_ids=True)
    assert table["object_id"].tolist()[:2] == [str(2**64 - 1), str(2**53 + 1)]
    for name in set(COLUMNS) - {"object_id", "mags"}:
        values = [v or None for v in wanted(name)] if name == "name" else wanted(name)
        got = [v or None for v in plain(table[name])] if name == "name" else plain(table[name])
        assert got == values, name
    assert (str(table["mags"].unit), table["mags"].meta["ucd"]) == ("mag", "em.wl")
    stored().write(tmp_path / "b.vot", columns=[name for name in COLUMNS if name.isidentifier()])
    votable.parse(tmp_path / "b.vot", verify="exception")


def test_parquet(tmp_path):
    stored(parts=2).write(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    for name in COLUMNS:
        np.testing.assert_equal(table[name].to_pylist(), VALUES[name], err_msg=name)
    some = [name for name in COLUMNS if name not in ("object_id", "good", "mags", "name")]
    stored().write(tmp_path / "b.parquet", columns=some)
    again = Table.read(tmp_path / "b.parquet", format="parquet.votable")
    assert again["z_spec"].meta["ucd"] == "em.wl"


def test_csv(tmp_path):
    stored().write(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == [*list(COLUMNS)[:-1], "'=NAME"]
    found = dict(zip(head, zip(*rows, strict=True), strict=True))
    assert found["object_id"][:3] == (str(2**64 - 1), str(2**53 + 1), "")
    assert found["name"][:6] == ("plain", "'=1+1", 'quo"te, comma', "Ångström ∅", "line\nbreak",
                                 "\\x1b[31m")  # fmt: skip
    assert json.loads(found["mags"][0]) == [1.0, 2.0]
    z_pred = np.asarray(found["z_pred"], np.float32)
    np.testing.assert_array_equal(z_pred, np.asarray(VALUES["z_pred"], np.float32))


@pytest.mark.parametrize("suffix", ["fits", "vot", "csv", "parquet"])
def test_no_row_and_a_single_column(tmp_path, suffix):
    written = stored().write(tmp_path / f"a.{suffix}", columns=["name"], where="row > 100")
    assert (written.rows, Path(written.where).stat().st_size) == (0, written.bytes)
    if suffix != "csv":
        table = Table.read(tmp_path / f"a.{suffix}")
        assert (table.colnames, len(table)) == (["name"], 0)


def test_columns_and_rows_by_the_command(tmp_path, capsys):
    stored(store=Storage(tmp_path / "run"), parts=2)
    to = str(tmp_path / "a.fits")
    options = ["--columns", "z_spec,object_id", "--where", "object_id > 5 and label is not null"]
    assert main(["catalogue", str(tmp_path / "run"), "--to", to, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1
    table = Table.read(to)
    assert (table.colnames, table["object_id"].tolist()) == (["z_spec", "object_id"], [2**64 - 1])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"to": "a.txt"}, BadInputError, "end it with one of .fits"),
        ({"to": "a.fits", "columns": ["nothing"]}, BadInputError, "no column 'nothing'"),
        ({"to": "a.fits", "columns": []}, BadInputError, "no column"),
        ({"to": "a.fits", "where": "z_pred >"}, BadInputError, "cannot be read"),
        ({"to": "a.fits", "where": "nothing > 1"}, BadInputError, "does not have"),
        ({"to": "/proc/nowhere/a.fits"}, StorageError, "/proc/nowhere"),
    ],
)
def test_what_cannot_be_written(tmp_path, monkeypatch, options, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        stored().write(**options)
    assert list(tmp_path.iterdir()) == []


def test_lists_of_different_lengths_are_named(tmp_path):
    columns = {"a": [[1.0], [1.0, 2.0]]}
    for suffix, parts in itertools.product(("fits", "vot"), (1, 2)):
        with pytest.raises(BadInputError, match="column a holds lists of different lengths"):
            stored(columns, parts=parts).write(tmp_path / f"a.{suffix}")
    with pytest.raises(NotFoundError, match=r"has no catalogue\.parquet"):
        Catalogue(Storage(tmp_path)).write("a.fits")


def test_names_that_differ_in_case_only(tmp_path):
    stored({"z": [1.0], "Z": [2.0]}).write(tmp_path / "a.fits")
    assert Table.read(tmp_path / "a.fits").colnames == ["z", "Z_2"]
    with fits.open(tmp_path / "a.fits") as file:
        assert file[1].header["TCOMM1"] == "Two\\nlines."


@pytest.mark.parametrize(
    "name",
    ["z" * 300, "'" * 300, "Ω" * 300, '=<b>"&\t' * 40],
    ids=["long", "quotes", "not ASCII", "markup"],
)
def test_names_of_any_length_can_be_read(tmp_path, name):
    stored({name: [1.0], f"{name}2": [2.0]}).write(tmp_path / "a.fits")
    table = Table.read(tmp_path / "a.fits")
    assert [table[column].tolist() for column in table.colnames] == [[1.0], [2.0]]


def test_more_columns_than_fits_has_are_refused(tmp_path):
    catalogue = stored({f"c{number}": [number] for number in range(1000)})
    with pytest.raises(BadInputError, match="at most 999 columns, and there are 1,000"):
        catalogue.write(tmp_path / "a.fits")
    assert not (tmp_path / "a.fits").exists()
