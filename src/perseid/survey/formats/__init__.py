"""File formats of cutouts, one module each, chosen by the file's suffix.

A format's module has ``open_table(source, options) -> Table`` and ``create(path, columns) ->
Writer``.
"""

from __future__ import annotations

import importlib
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from perseid.errors import BadInputError, BadPartitionError
from perseid.survey.bytesource import ByteSource
from perseid.survey.file_columns import Columns
from perseid.survey.file_table import Table, Writer
from perseid.survey.gunzip import UnpackedSource
from perseid.survey.read_options import PLAIN, ReadOptions

_MODULES = {
    ".pt": "pt",
    ".pth": "pt",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".fits": "fits",
    ".fits.gz": "fits",
    ".fits.fz": "fits",
    ".parquet": "parquet",
}


_NEEDED = {"hdf5": "h5py", "fits": "astropy", "parquet": "pyarrow"}
"""The package of the extra ``formats`` that each module needs."""


READ_ONLY = (".fits.gz", ".fits.fz")
"""Suffixes that can be read but not written."""


class Format(Protocol):
    """Interface of a format's module."""

    def open_table(self, source: ByteSource, options: ReadOptions = PLAIN) -> Table:
        """Read the layout; raises `BadPartitionError`."""

    def create(self, path: Path, columns: Columns) -> Writer:
        """Begin a file on disk."""


def suffixes() -> tuple[str, ...]:
    """The suffixes that are read and written, with their dots."""
    return tuple(suffix for suffix in _MODULES if suffix not in READ_ONLY)


def suffix_of(name: str) -> str:
    """The known suffix of a file's name, or an empty string."""
    last = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    return next((suffix for suffix in ("".join(last), *last[-1:]) if suffix in _MODULES), "")


def format_for(name: str) -> Format:
    """The format of a file's name; raises `BadInputError` for an unknown suffix."""
    suffix = suffix_of(name)
    if not suffix:
        known = " ".join(_MODULES)
        raise BadInputError(f"{name}: the suffix is not that of a known format (known: {known})")
    module = importlib.import_module(f"{__name__}.{_MODULES[suffix]}")
    return cast(Format, module)


def creatable_format(name: str) -> Format:
    """The format that a file of this name is written in.

    Raises `BadInputError` for an unknown suffix, or one that is only read.
    """
    if suffix_of(name) in READ_ONLY:
        raise BadInputError(
            f"{name}: {suffix_of(name)} can be read but not written; write .fits instead"
        )
    return format_for(name)


def needed_package(name: str) -> str | None:
    """The package besides numpy that is needed to read a file of this name, or None."""
    return _NEEDED.get(_MODULES.get(suffix_of(name), ""))


def open_table(source: ByteSource, options: ReadOptions = PLAIN) -> Table:
    """Open a file in the format of its suffix; raises `BadPartitionError` if it is not such a
    file."""
    if source.size == 0:
        raise BadPartitionError(f"{source.name} is empty (0 bytes)")
    if source.name.lower().endswith(".gz"):
        source = UnpackedSource(source)
    return format_for(source.name).open_table(source, options)
