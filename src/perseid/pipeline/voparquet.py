"""Units and UCDs of a table's columns in its Parquet metadata, following VOParquet.

The footer holds a VOTable without data that describes the columns, so that TOPCAT, astropy and
HATS know their units (IVOA note "VOParquet", https://www.ivoa.net/documents/Notes/VOParquet/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from perseid.pipeline.parquet_pages import ParquetColumn, ParquetType
from perseid.plaintext import printable

VERSION_KEY = "IVOA.VOTable-Parquet.version"
CONTENT_KEY = "IVOA.VOTable-Parquet.content"
TEXT = "unicodeChar"
"""VOTable's type of text. Unsigned 64-bit integers use it too: VOTable has no such type, and text
is exact."""
_DATATYPES = {
    ParquetType.BOOL: "boolean",
    ParquetType.INT32: "int",
    ParquetType.INT64: "long",
    ParquetType.FLOAT32: "float",
    ParquetType.FLOAT64: "double",
    ParquetType.UTF8: TEXT,
    ParquetType.UINT64: TEXT,
}


@dataclass(frozen=True)
class VOField:
    """A column as VOTable describes it."""

    name: str
    datatype: str
    """Data type of VOTable, such as ``double``."""
    arraysize: str = ""
    """Number of elements per value; empty if a value is not an array."""
    unit: str = ""
    ucd: str = ""
    description: str = ""


def votable_metadata(
    columns: Sequence[ParquetColumn], longest: Mapping[str, int]
) -> dict[str, str]:
    """Key-value pairs for the footer; empty if no column has a description.

    `longest` is the length of the longest text in each text column, in characters. Astropy first
    creates an empty table from the VOTable, and text without a stated length gets another type
    there than the rows that follow.
    """
    if not any(column.unit or column.ucd or column.description for column in columns):
        return {}
    pairs = votable_pairs(
        VOField(
            column.name,
            _DATATYPES[column.kind],
            _arraysize(column, longest.get(column.name, 1)),
            column.unit,
            column.ucd,
            column.description,
        )
        for column in columns
    )
    return pairs | text_lengths(longest)


def text_lengths(longest: Mapping[str, int]) -> dict[str, str]:
    """Key-value pairs that tell astropy how long the texts of each column are."""
    return {f"table::len::{name}": str(max(1, length)) for name, length in longest.items()}


def votable_pairs(fields: Iterable[VOField]) -> dict[str, str]:
    """Key-value pairs for the footer of a table with these columns."""
    content = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n'
        f" <RESOURCE>\n  <TABLE>\n{''.join(map(field_xml, fields))}"
        '   <PARQUET type="Parquet-local-XML"/>\n'
        "  </TABLE>\n </RESOURCE>\n</VOTABLE>\n"
    )
    return {VERSION_KEY: "1.0", CONTENT_KEY: content}


def _arraysize(column: ParquetColumn, longest: int) -> str:
    if _DATATYPES[column.kind] == TEXT:
        return f"{max(1, longest)}*"
    return "" if column.width is None else str(column.width)


def field_xml(field: VOField) -> str:
    """The ``FIELD`` element that describes a column."""
    given = {
        "name": field.name,
        "datatype": field.datatype,
        "arraysize": field.arraysize,
        "unit": field.unit,
        "ucd": field.ucd,
    }
    words = " ".join(f'{key}="{escape(printable(text))}"' for key, text in given.items() if text)
    about = escape(printable(field.description))
    return f"   <FIELD {words}><DESCRIPTION>{about}</DESCRIPTION></FIELD>\n"
