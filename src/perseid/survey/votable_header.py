"""Units, UCDs and descriptions that a Parquet file carries as a VOTable without rows (VOParquet).

IVOA note "VOParquet", https://www.ivoa.net/documents/Notes/VOParquet/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from perseid.survey.column_spec import ColumnSpec

CONTENT_KEY = b"IVOA.VOTable-Parquet.content"
_LONGEST = 4 << 20
"""Bytes above which a header is not read: it describes columns only."""


def votable_fields(metadata: Mapping[bytes, bytes] | None) -> dict[str, ColumnSpec]:
    """What a file's metadata says of its columns, by name; empty where it says nothing.

    A header that is no XML counts as none: it is about units, and the rows can do without.
    """
    from xml.etree import ElementTree  # not at the top: most workers read no Parquet

    content = (metadata or {}).get(CONTENT_KEY, b"")
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
    """The columns with what the header says of them, where they do not say it themselves."""
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
