"""Export to CSV: a header line, then one line per object; missing values are empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perseid.catalogues.selection import Selection
from perseid.plaintext import csv_cell
from perseid.survey.formats.arrow import pyarrow_module


def write_csv(selection: Selection, path: Path) -> int:
    """Write the file and return the number of rows.

    Texts are made safe for spreadsheets (`perseid.plaintext.csv_cell`); lists become JSON arrays.
    """
    pa = pyarrow_module()
    import pyarrow.csv

    # Names may come from a user's model or survey, so they are made safe as well.
    names = [csv_cell(name) for name in selection.columns]
    schema = pa.schema(
        [(name, _written_type(field.type)) for name, field in zip(names, selection.schema,
                                                                   strict=True)]
    )  # fmt: skip
    rows = 0
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for table in selection.batches():
            columns = [_cells(table[name].combine_chunks()) for name in selection.columns]
            writer.write_table(pa.table(columns, schema=schema))
            rows += table.num_rows
    return rows


def _written_type(kind: Any) -> Any:
    types = pyarrow_module().types
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return kind if plain else pyarrow_module().string()


def _cells(column: Any) -> Any:
    """Values of a column as they are written to CSV."""
    pa = pyarrow_module()
    if _written_type(column.type) == column.type and not pa.types.is_string(column.type):
        return column
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        values = column.to_pylist()
        texts = [None if v is None else json.dumps(v, default=str) for v in values]
        return pa.array(texts, pa.string())
    # Each different text is made safe once; columns such as partition repeat few texts.
    texts = column.dictionary_encode()
    safe = pa.array([csv_cell(text) for text in texts.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(texts.indices, safe).cast(pa.string())
