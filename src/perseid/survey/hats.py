"""HATS catalogues: find the files that hold rows, and count the rows.

The layout is that of the IVOA note "HATS: Hierarchical Adaptive Tiling Scheme" (version 1.0):
``dataset/Norder=k/Dir=m/Npix=n.parquet``, or a folder ``Npix=n`` of several files, beside
``hats.properties``. A collection names its main catalogue in ``collection.properties``; its margins
and indexes repeat the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from perseid.errors import PerseidError
from perseid.storage import Storage
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.votable_header import votable_fields
from perseid.textfile import csv_rows, decode

_FILE = r"(?:dataset/)?Norder=(\d+)/Dir=\d+/Npix=(\d+)(?:\.parquet|/[^/]+\.parquet)"
_PIXEL = re.compile(_FILE)
_COLLECTION = "collection.properties"
_PRIMARY = "hats_primary_table_url"
_MARKERS = ("hats.properties", "properties", "dataset/_metadata", "dataset/_common_metadata")
_INFO = "partition_info.csv"
_COMMON = "dataset/_common_metadata"
_METADATA = "dataset/_metadata"
_MOST_METADATA = 64 << 20
"""Largest ``_metadata`` file, bytes, that is read only to count rows."""


def catalogue_prefix(
    storage: Storage, prefix: str, keys: Iterable[str], *, bare: bool
) -> str | None:
    """Find the HATS catalogue in a folder; in a collection it lies in a subfolder.

    Parameters
    ----------
    storage, prefix
        The folder; `prefix` is empty or ends in ``/``.
    keys
        Of all objects below it.
    bare
        Whether no direct file of the folder could be a partition. If there is one (a sky map, say),
        the folder counts as a HATS catalogue only if it also has a HATS metadata file.

    Returns
    -------
    The prefix of its keys, in the form of `prefix`; None if the folder is not a HATS catalogue.
    """
    below = [key.removeprefix(prefix) for key in keys]
    if _COLLECTION in below:
        primary = _properties(storage, prefix + _COLLECTION).get(_PRIMARY, "").strip("/")
        within = f"{primary}/"
        if primary and any(is_pixel(k.removeprefix(within)) for k in below if k.startswith(within)):
            return prefix + within
    marked = any(name in _MARKERS for name in below)
    return prefix if (marked or bare) and any(map(is_pixel, below)) else None


def may_be_catalogue(prefix: str, keys: Iterable[str]) -> bool:
    """Whether some of the keys below a folder are those of a HATS catalogue or collection."""
    below = (key.removeprefix(prefix) for key in keys)
    return any(name == _COLLECTION or name in _MARKERS or is_pixel(name) for name in below)


def is_pixel(name: str) -> bool:
    """Whether a file, named relative to the catalogue, holds the rows of a HEALPix pixel.

    Examples
    --------
    >>> is_pixel("dataset/Norder=3/Dir=0/Npix=7.parquet"), is_pixel("dataset/_metadata")
    (True, False)
    """
    return _PIXEL.fullmatch(name) is not None


def rows_of_files(storage: Storage, keys: Sequence[str]) -> Mapping[str, int]:
    """The rows of each file according to the catalogue's metadata; empty if that does not say.

    `keys` are all partitions of a HATS catalogue, as `discover` found them.
    """
    match = re.search(_FILE + "$", keys[0])
    prefix = keys[0][: match.start()] if match else ""
    found = _of_table(storage, prefix, keys) or _of_metadata(storage, prefix)
    return found if all(key in found for key in keys) else {}


def common_fields(storage: Storage, key: str) -> Mapping[str, ColumnSpec]:
    """Column descriptions from the catalogue's ``dataset/_common_metadata``, by name.

    `key` is a file of a pixel; empty for every other file.
    """
    match = re.search(_FILE + "$", key)
    if match is None:
        return {}
    try:
        import pyarrow
        from pyarrow import parquet

        data = storage.get(key[: match.start()] + _COMMON)
        return votable_fields(parquet.read_schema(pyarrow.BufferReader(data)).metadata)
    except (PerseidError, ImportError, OSError, ValueError):
        return {}


def _of_table(storage: Storage, prefix: str, keys: Sequence[str]) -> dict[str, int]:
    """Count rows from ``partition_info.csv``, which lists rows per pixel: for pixels of a single
    file."""
    try:
        text = decode(storage.get(prefix + _INFO), _INFO)
        table = [
            ((row["Norder"], row["Npix"]), int(row["num_rows"])) for row in csv_rows(text, _INFO)
        ]
    except (PerseidError, ValueError, KeyError, TypeError):
        return {}
    rows, found = dict(table), dict[str, int]()
    for key in keys:
        match = re.search(_FILE + "$", key)
        if match is not None and key.endswith(f"Npix={match[2]}.parquet"):
            found[key] = rows.get((match[1], match[2]), 0)
    return found


def _of_metadata(storage: Storage, prefix: str) -> dict[str, int]:
    """Count rows from ``dataset/_metadata``, which holds the footers of all files."""
    key = prefix + _METADATA
    try:
        import pyarrow
        from pyarrow import parquet

        if storage.size(key) > _MOST_METADATA:
            return {}
        footer = parquet.read_metadata(pyarrow.BufferReader(storage.get(key)))
    except (PerseidError, ImportError, OSError, ValueError):
        return {}
    found: dict[str, int] = {}
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        path = group.column(0).file_path
        if path:
            name = f"{prefix}dataset/{path}"
            found[name] = found.get(name, 0) + group.num_rows
    return found


def _properties(storage: Storage, key: str) -> dict[str, str]:
    """Parse a file of ``name=value`` lines; empty if it cannot be read."""
    try:
        lines = decode(storage.get(key), key).splitlines()
    except PerseidError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}
