"""Units and UCDs of a table's columns in its Parquet metadata, as VOParquet lays down.

The footer holds a VOTable without data that describes the columns, so that TOPCAT, astropy and
HATS know their units (IVOA note "VOParquet", https://www.ivoa.net/documents/Notes/VOParquet/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from perseid.pipeline.parquet_pages import ParquetColumn, ParquetType
from perseid.plaintext import printable

VERSION_KEY = "IVOA.VOTable-Parquet.version"
CONTENT_KEY = "IVOA.VOTable-Parquet.content"
_DATATYPES = {
    ParquetType.BOOL: "boolean",
    ParquetType.INT32: "int",
    ParquetType.INT64: "long",
    ParquetType.FLOAT32: "float",
    ParquetType.FLOAT64: "double",
    ParquetType.UTF8: "unicodeChar",
    ParquetType.UINT64: "unicodeChar",  # VOTable has no unsigned 64-bit type; text is exact
}


def votable_metadata(
    columns: Sequence[ParquetColumn], longest: Mapping[str, int]
) -> dict[str, str]:
    """Key-value pairs for the footer; none where no column says what it is.

    `longest`: characters of the longest text of each column of text. Astropy reads the columns of a
    table without rows first, and text of no stated length is not the type of the rows that follow.
    """
    if not any(column.unit or column.ucd or column.description for column in columns):
        return {}
    fields = "".join(_field(column, longest.get(column.name, 0)) for column in columns)
    content = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n'
        f' <RESOURCE>\n  <TABLE>\n{fields}   <PARQUET type="Parquet-local-XML"/>\n'
        "  </TABLE>\n </RESOURCE>\n</VOTABLE>\n"
    )
    return {VERSION_KEY: "1.0", CONTENT_KEY: content}


def _field(column: ParquetColumn, longest: int) -> str:
    size = "" if column.width is None else str(column.width)
    if _DATATYPES[column.kind] == "unicodeChar":
        size = f"{max(1, longest)}*"
    given = {
        "name": column.name,
        "datatype": _DATATYPES[column.kind],
        "arraysize": size,
        "unit": column.unit,
        "ucd": column.ucd,
    }
    words = " ".join(
        f"{key}={quoteattr(printable(value))}" for key, value in given.items() if value
    )
    about = escape(printable(column.description))
    return f"   <FIELD {words}><DESCRIPTION>{about}</DESCRIPTION></FIELD>\n"
