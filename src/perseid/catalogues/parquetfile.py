"""Export to one Parquet file, with units and UCDs in VOParquet metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perseid.catalogues.selection import Selection
from perseid.pipeline.voparquet import TEXT, VOField, text_lengths, votable_pairs
from perseid.survey.formats.arrow import compute_module, pyarrow_module, unwrapped

# VOTable has fewer integer types: unsigned ones take the next larger signed type.
_DATATYPES = {
    "bool": "boolean", "uint8": "unsignedByte", "int8": "short", "int16": "short", "int32": "int",
    "uint16": "int", "uint32": "long", "int64": "long", "float": "float", "halffloat": "float",
    "double": "double",
}  # fmt: skip


def write_parquet(selection: Selection, path: Path) -> int:
    """Write the file and return the number of rows."""
    # Metadata are in the footer, but the writer needs them in the schema from the start.
    schema = selection.schema.with_metadata(footer_pairs(selection, longest_texts(selection)))
    rows = 0
    with pyarrow_module().parquet.ParquetWriter(path, schema) as writer:
        for table in selection.batches():
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            rows += table.num_rows
    return rows


def longest_texts(selection: Selection) -> dict[str, int]:
    """Number of characters of the longest text of each text column; reads these columns once.

    Astropy needs these lengths in the metadata, which are fixed before the first row is written.
    """
    names = [f.name for f in selection.schema if pyarrow_module().types.is_string(f.type)]
    found, pc = dict.fromkeys(names, 0), compute_module()
    # Only text columns are read in this pass, usually a small part of the file.
    for table in selection.only(names).batches() if names else ():
        for name in names:
            found[name] = max(found[name], pc.max(pc.utf8_length(table[name])).as_py() or 0)
    return found


def footer_pairs(selection: Selection, longest: Mapping[str, int]) -> dict[str, str]:
    """Metadata of a file with these columns: those of the run and those of VOParquet.

    `longest` has the number of characters of the longest text of each text column.
    """
    fields = []
    for name in selection.columns:
        meaning = selection.meanings[name]
        datatype, size = vo_type(selection.schema.field(name).type, longest.get(name, 1))
        fields.append(VOField(name, datatype, size, meaning.unit, meaning.ucd, meaning.description))
    return {**selection.metadata, **votable_pairs(fields), **text_lengths(longest)}


def vo_type(kind: Any, longest: int) -> tuple[str, str]:
    """VOTable's ``datatype`` and ``arraysize`` for a column of an Arrow type."""
    leaf, sizes = unwrapped(kind)
    datatype = _DATATYPES.get(str(leaf), TEXT)
    # A list of any length is "*" in VOTable.
    size = "*" if None in sizes else "x".join(str(n) for n in sizes)
    return datatype, f"{max(1, longest)}*" if datatype == TEXT else size
