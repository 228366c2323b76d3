"""Units, UCDs and descriptions that a Parquet file carries as a VOTable without rows (VOParquet).

IVOA note "VOParquet", https://www.ivoa.net/documents/Notes/VOParquet/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from perseid.survey.column_spec import ColumnSpec

CONTENT_KEY = b"IVOA.VOTable-Parquet.content"
_LONGEST = 4 << 20
"""Largest header that is read, bytes; it only describes columns."""


def votable_fields(metadata: Mapping[bytes, bytes] | None) -> dict[str, ColumnSpec]:
    """Column descriptions in a file's metadata, by name; empty if there are none.

    An invalid header is ignored, since it only adds units and descriptions.
    """
    from xml.etree import ElementTree  # not at the top: most workers read no Parquet

    content = (metadata or {}).get(CONTENT_KEY, b"")
    # Entities are refused because nested ones can expand to gigabytes ("billion laughs").
    if not content or len(content) > _LONGEST or b"<!ENTITY" in content:
        return {}
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError:
        return {}
    found = {}
    for field in root.iter():
        if field.tag.rpartition("}")[2] == "FIELD" and (name := field.get("name")):
            texts = [one.text or "" for one in field if one.tag.endswith("DESCRIPTION")]
            said = field.get("unit", ""), field.get("ucd", ""), "".join(texts).strip()
            found[name] = ColumnSpec(name, name, "", (), *said)
    return found


def with_fields(
    specs: Iterable[ColumnSpec], fields: Mapping[str, ColumnSpec]
) -> tuple[ColumnSpec, ...]:
    """Complete the columns' own descriptions from those of the header."""
    return tuple(
        replace(
            spec,
            unit=spec.unit or fields[spec.source].unit,
            ucd=spec.ucd or fields[spec.source].ucd,
            description=spec.description or fields[spec.source].description,
        )
        if spec.source in fields
        else spec
        for spec in specs
    )
