"""Our Parquet files as other programs read them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perseid.errors import BadInputError
from perseid.pipeline.parquet_writer import ParquetColumn, ParquetType, ParquetWriter, Strings

DTYPES = {
    ParquetType.BOOL: "?",
    ParquetType.UINT64: np.uint64,
    ParquetType.INT32: "i4",
    ParquetType.INT64: "i8",
    ParquetType.FLOAT32: "f4",
    ParquetType.FLOAT64: "f8",
}


def written(columns, groups, metadata=None) -> bytes:
    file = io.BytesIO()
    with ParquetWriter(file, columns, metadata) as writer:
        for group in groups:
            writer.write(group)
    return file.getvalue()


def read(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


@st.composite
def tables(draw):
    """Columns, row groups, and the values expected of each column."""
    kinds = draw(st.lists(st.sampled_from(list(ParquetType)), min_size=1, max_size=5))
    columns = [
        ParquetColumn(
            f"c{i}",
            kind,
            draw(st.booleans()),
            None if kind is ParquetType.UTF8 else draw(st.sampled_from([None, 1, 3])),
        )
        for i, kind in enumerate(kinds)
    ]
    groups, expected = [], {column.name: [] for column in columns}
    for _ in range(draw(st.integers(0, 3))):
        rows = draw(st.integers(0, 40))
        group = {}
        for column in columns:
            group[column.name], values = draw(column_values(column, rows))
            expected[column.name] += values
        groups.append(group)
    return columns, groups, expected


@st.composite
def column_values(draw, column: ParquetColumn, rows: int):
    names: list[str] = []
    if column.kind is ParquetType.UTF8:
        names = draw(st.lists(st.text(max_size=5), min_size=1, max_size=20, unique=True))
        array = draw(hnp.arrays(np.int32, rows, elements=st.integers(0, len(names) - 1)))
    else:
        shape = rows if column.width is None else (rows, column.width)
        array = draw(hnp.arrays(DTYPES[column.kind], shape))
    values = array.tolist()
    if column.optional:
        mask = draw(hnp.arrays(bool, rows))
        values = [None if gone else value for value, gone in zip(values, mask, strict=True)]
        every = mask if array.ndim == 1 else np.repeat(mask[:, None], column.width, axis=1)
        array = np.ma.masked_array(array, every)
    if column.kind is ParquetType.UTF8:
        return Strings(array, names), [None if v is None else names[v] for v in values]
    return array, values


@settings(max_examples=80, deadline=None)
@given(tables())
def test_pyarrow_reads_back_what_was_written(table):
    columns, groups, expected = table
    data = written(columns, groups)
    got = read(data)
    for column in columns:
        np.testing.assert_equal(got[column.name].to_pylist(), expected[column.name])
        field = got.schema.field(column.name)
        assert field.nullable == column.optional
    assert written(columns, groups) == data


def test_types_and_metadata():
    columns = [ParquetColumn(kind.name, kind) for kind in ParquetType]
    zero = {kind.name: np.zeros(1, DTYPES.get(kind, "i4")) for kind in ParquetType}
    got = read(written(columns, [zero | {"UTF8": Strings(np.zeros(1, int), ["é"])}], {"run": "x"}))
    assert [str(f.type) for f in got.schema] == [
        *("bool", "int32", "int64", "float", "double", "string", "uint64")
    ]
    assert got.schema.metadata == {b"run": b"x"}
    assert got["UTF8"].to_pylist() == ["é"]


def test_statistics_and_what_has_none():
    """Other readers skip row groups by them, so a wrong bound would lose rows silently."""
    columns = [ParquetColumn(k.name, k, optional=True) for k in ParquetType]
    columns.append(ParquetColumn("list", ParquetType.FLOAT32, width=2))
    group = {kind: np.ma.masked_equal([7, 5, 0, 9], 9) for kind in ("INT32", "INT64")}
    group |= {kind: np.array([np.nan, 0.0, -1.5, -0.0]) for kind in ("FLOAT32", "FLOAT64")}
    group["BOOL"] = np.array([True, False, True, False])
    group["UINT64"] = np.array([2**64 - 1, 1, 2, 3], np.uint64)
    group["UTF8"] = Strings(np.array([0, 1, 1, 0]), ["zß", "a", "unused"])
    group["list"] = np.arange(8.0).reshape(4, 2)
    group_without = {name: values[:1] for name, values in group.items() if name != "UTF8"}
    group_without |= {"FLOAT32": np.array([np.nan]), "INT32": np.ma.masked_all(1, int)}
    group_without["UTF8"] = Strings(np.zeros(1, int), ["x" * 100])
    data = written(columns, [group, group_without])
    first, second = (pq.ParquetFile(io.BytesIO(data)).metadata.row_group(i) for i in (0, 1))
    found = [first.column(i).statistics for i in range(len(columns))]
    assert [(one.min, one.max, one.null_count) for one in found] == [
        *((False, True, 0), (0, 7, 1), (0, 7, 1), (-1.5, 0.0, 0), (-1.5, 0.0, 0), ("a", "zß", 0)),
        *((1, 2**64 - 1, 0), (0.0, 7.0, 0)),
    ]
    assert np.signbit(found[3].max) == np.False_
    bounds = {c.name: second.column(i).statistics.has_min_max for i, c in enumerate(columns)}
    assert [name for name, there in bounds.items() if not there] == [
        *("INT32", "FLOAT32", "FLOAT64", "UTF8")
    ]
    large = pa.compute.field("UINT64") > pa.scalar(2**63, pa.uint64())
    kept = pq.read_table(io.BytesIO(data), filters=large)
    assert kept["UINT64"].to_pylist() == [2**64 - 1, 2**64 - 1]


def test_units_and_ucds_as_other_programs_read_them(tmp_path):
    columns = [
        ParquetColumn("id", ParquetType.UTF8, ucd="meta.id;meta.main"),
        ParquetColumn("mag", ParquetType.FLOAT32, unit="mag", ucd="phot.mag"),
        ParquetColumn("plain", ParquetType.INT64, description="<&>"),
    ]
    path = tmp_path / "a.parquet"
    group = {"id": Strings(np.zeros(2, int), ["é"]), "mag": np.ones(2), "plain": np.arange(2)}
    path.write_bytes(written(columns, [group]))
    table = Table.read(path, format="parquet.votable")
    assert str(table["mag"].unit) == "mag"
    assert [table[name].meta["ucd"] for name in ("id", "mag")] == ["meta.id;meta.main", "phot.mag"]
    assert table["plain"].description == "<&>"
    assert (table["id"].tolist(), table["plain"].tolist()) == (["é", "é"], [0, 1])


def test_a_repeated_string_costs_nothing():
    names = ["a-rather-long-partition-name/1.pt"]
    rows = 1_000_000
    data = written(
        [ParquetColumn("p", ParquetType.UTF8)], [{"p": Strings(np.zeros(rows, np.int8), names)}]
    )
    assert len(data) < 400
    assert read(data)["p"].to_pylist()[-1] == names[0]


def test_many_columns_and_row_groups():
    columns = [ParquetColumn(f"c{i}", ParquetType.FLOAT32) for i in range(40)]
    group = {c.name: np.full(3, i, "f4") for i, c in enumerate(columns)}
    data = written(columns, [group] * 50)
    file = pq.ParquetFile(io.BytesIO(data))
    assert (file.metadata.num_row_groups, file.metadata.num_rows) == (50, 150)
    assert file.read()["c39"].to_pylist() == [39.0] * 150


def test_more_than_a_byte_of_distinct_strings():
    names = [f"n{i}" for i in range(70_000)]
    codes = np.arange(70_000)[::-1]
    got = read(written([ParquetColumn("p", ParquetType.UTF8)], [{"p": Strings(codes, names)}]))
    assert got["p"].to_pylist() == names[::-1]


def test_big_endian_and_strided_values():
    values = np.arange(20, dtype=">f8")[::2]
    assert read(written([ParquetColumn("z", ParquetType.FLOAT64)], [{"z": values}]))[
        "z"
    ].to_pylist() == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("columns", "group", "sentence"),
    [
        ([], {}, "at least one column"),
        ([ParquetColumn("a", ParquetType.INT32)], {}, "no column 'a'"),
        (
            [ParquetColumn("a", ParquetType.INT32), ParquetColumn("b", ParquetType.INT32)],
            {"a": np.zeros(1), "b": np.zeros(2)},
            "equally long",
        ),
        ([ParquetColumn("a", ParquetType.UTF8)], {"a": np.zeros(1)}, "not UTF8"),
        (
            [ParquetColumn("a", ParquetType.INT32)],
            {"a": np.ma.masked_equal([0, 1], 0)},
            "not optional",
        ),
    ],
)
def test_what_cannot_be_written(columns, group, sentence):
    with pytest.raises(BadInputError, match=sentence):
        written(columns, [group])
