"""Arrow columns as arrays: every kind of value, with nulls, sliced, and without pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perseid.errors import BadPartitionError
from perseid.survey.formats.arrow import Field
from perseid.survey.formats.arrow_values import bands_of_all, to_array

BEHIND_NULL = pa.ListArray.from_arrays(
    pa.array([0, 2, 4, 6], pa.int32()),
    pa.array([1, 2, 3, 4, 5, 6]),
    mask=pa.array([False, True, False]),
)
"""Its null list has values that no row has."""
DICTIONARY_WITH_NULL = pa.DictionaryArray.from_arrays(
    pa.array([0, 1, None, 0], pa.int8()), pa.array(["s", None])
)
COLUMNS = {
    "int16": pa.array([-3, 7, 0], pa.int16()),
    "int16 with nulls": pa.array([-3, None, 7], pa.int16()),
    "uint64": pa.array([2**64 - 1, None, 2**53 + 1], pa.uint64()),
    "float16": pa.array(np.array([1.5, -2, 0], np.float16)),
    "float64": pa.array([1.5, None, float("inf")]),
    "bool": pa.array([True, False, True, True, False, False, True, False, True, True]),
    "bool with nulls": pa.array([True, None, False, True]),
    "string": pa.array(["a", None, "häß", ""]),
    "large_string": pa.array(["a", None, "bc"], pa.large_string()),
    "string_view": pa.array(["a", None, "longer than twelve bytes"], pa.string_view()),
    "binary": pa.array([b"a", None, "ß".encode()], pa.binary()),
    "large_binary": pa.array([b"a", None, b""], pa.large_binary()),
    "binary_view": pa.array([b"a", None, b"b"], pa.binary_view()),
    "fixed_size_binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "dictionary": pa.array(["s", "e", None, "s"]).dictionary_encode(),
    "dictionary with a null": DICTIONARY_WITH_NULL,
    "dictionary of nulls": pa.array([None, None], pa.string()).dictionary_encode(),
    "list": pa.array([[1.0, 2.0], None, [3.0, None]]),
    "large_list": pa.array([[1, 2], [3, 4]], pa.large_list(pa.int32())),
    "list behind null": BEHIND_NULL,
    "fixed_size_list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
    "nested": pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], None]),
    "list of text": pa.array([["g", "r"], ["g", None]]),
    "empty": pa.array([], pa.list_(pa.float32())),
}


def plain(value: object) -> object:
    """What an array has for a value of Arrow: text of bytes, and None at each place of a null."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def is_same(found: object, value: object) -> bool:
    """Whether a row is that value; of a null list every value is None."""
    if isinstance(found, list):
        inner = value if isinstance(value, list) else [None] * len(found)
        return len(inner) == len(found) and all(map(is_same, found, inner))
    return found == value


@pytest.mark.parametrize("cut", [slice(None), slice(1, None)], ids=["whole", "sliced"])
@pytest.mark.parametrize("name", COLUMNS)
def test_an_array_has_the_values_of_its_column(name: str, cut: slice) -> None:
    column = COLUMNS[name][cut]
    rows, values = to_array(column, "here").tolist(), plain(column.to_pylist())
    assert len(rows) == len(values)
    assert all(map(is_same, rows, values)), (rows, values)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list], ids=["list", "large_list"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_field_of_a_list_of_structs_keeps_which_lists_are_null(kind: object, first: int) -> None:
    struct = pa.struct([("band", pa.string()), ("flux", pa.int64())])
    rows = [[{"band": "g", "flux": 1}, {"band": "r", "flux": 2}], None, [
        {"band": "g", "flux": 3}, {"band": "r", "flux": 4}]]  # fmt: skip
    table = pa.table({"image": pa.array(rows, kind(struct))}).slice(first)  # type: ignore[operator]
    (batch,) = table.to_batches()
    flux = Field("image", "flux").values(batch)
    assert flux.to_pylist() == [[1, 2], None, [3, 4]][first:]
    assert bands_of_all(Field("image", "band").values(batch)) == ("g", "r")


@pytest.mark.parametrize(
    ("rows", "bands"),
    [
        ([["g", "r"], None, ["g", "r"]], ("g", "r")),
        ([["g", "r"], ["r", "g"]], None),
        ([["g", "r"], ["g", "r", "g", "r"]], None),
        ([None, None], ()),
        ([], ()),
    ],
    ids=["the same", "another order", "another number", "none", "no rows"],
)
def test_bands_of_all_rows(rows: list[object], bands: tuple[str, ...] | None) -> None:
    assert bands_of_all(pa.array(rows, pa.list_(pa.string()))) == bands


def test_ragged_lists_and_long_texts_are_refused() -> None:
    with pytest.raises(BadPartitionError, match="there has lists of 1 to 2 values: all must be"):
        to_array(pa.array([[1], None, [2, 3]]), "there")
    for kind in (pa.string(), pa.large_binary(), pa.string_view(), pa.binary(300)):
        with pytest.raises(BadPartitionError, match="there has a text of 300 characters; 256"):
            to_array(pa.array([None, b"x" * 300], kind), "there")
    assert to_array(pa.array(["ß" * 256]), "there").tolist() == ["ß" * 256]
    with pytest.raises(BadPartitionError, match="there has bytes that are not UTF-8"):
        to_array(pa.array([b"\xff"]), "there")


READ = """
import sys
from perseid.storage import Storage
from perseid.survey.read_options import ReadOptions
from perseid.survey.reader import open_partition
with open_partition(Storage(sys.argv[1]), "1.parquet") as reader:
    blocks = list(reader.blocks(8))
big = [name for name in ("pandas", "pyarrow.compute") if name in sys.modules]
print(len(blocks), len(reader.bands), big)
"""


def test_reading_costs_no_memory_for_pandas_and_compute_functions(tmp_path: Path) -> None:
    """Importing and first using these takes 50 MB, which a worker's limit does not have."""
    images = [[[[1.0, 2.0]] * 2] * 2] * 16
    image = pa.StructArray.from_arrays([pa.array([["g", "r"]] * 16), pa.array(images)],
                                       names=["band", "flux"])  # fmt: skip
    ids, labels = pa.array([f"id-{n}" for n in range(16)]), pa.array(["s", None] * 8)
    table = {"image": image, "object_id": ids, "label": labels.dictionary_encode()}
    pq.write_table(pa.table({**table, "redshift": [0.5, None] * 8}), tmp_path / "1.parquet")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split(maxsplit=2) == ["2", "2", "[]\n"], done.stderr
