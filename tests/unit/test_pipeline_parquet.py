"""Our Parquet files as other programs read them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perseid.errors import BadInputError
from perseid.pipeline.parquet_writer import ParquetColumn, ParquetType, ParquetWriter, Strings

DTYPES = {
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
    columns = [ParquetColumn(f"c{i}", kind, draw(st.booleans())) for i, kind in enumerate(kinds)]
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
        array = draw(hnp.arrays(DTYPES[column.kind], rows))
    if column.optional:
        array = np.ma.masked_array(array, draw(hnp.arrays(bool, rows)))
    values = array.tolist()
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
        *("int32", "int64", "float", "double", "string", "uint64")
    ]
    assert got.schema.metadata == {b"run": b"x"}
    assert got["UTF8"].to_pylist() == ["é"]


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
