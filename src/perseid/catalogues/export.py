"""Export of a catalogue to another format, which follows from the name of the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from perseid.catalogues.csvfile import write_csv
from perseid.catalogues.fitsfile import write_fits
from perseid.catalogues.hatsfolder import PROPERTIES, write_hats
from perseid.catalogues.parquetfile import write_parquet
from perseid.catalogues.qpfile import write_qp
from perseid.catalogues.selection import Selection
from perseid.catalogues.votablefile import write_votable
from perseid.errors import AlreadyExistsError, BadInputError
from perseid.pipeline.rankfiles import temporary_folder
from perseid.plaintext import option
from perseid.storage import Location, Storage

FORMATS: Mapping[str, Callable[[Selection, Path], int]] = {
    "fits": write_fits,
    "votable": write_votable,
    "csv": write_csv,
    "parquet": write_parquet,
    "hats": write_hats,
    "qp": write_qp,
}
"""For each format, the function that writes its file or folder and returns the number of rows."""
SUFFIXES = {
    ".fits": "fits", ".fit": "fits", ".vot": "votable", ".votable": "votable", ".xml": "votable",
    ".csv": "csv", ".parquet": "parquet", ".hdf5": "qp",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """Location, format and size of an exported catalogue."""

    where: str
    """Path or URL."""
    format: str
    """One of `FORMATS`."""
    rows: int
    """Number of rows written."""
    bytes: int
    """Size of the file, or of all files of the folder."""


def export(selection: Selection, to: str | Path, form: str | None = None) -> Written:
    """Write rows and columns of a catalogue to a path or URL.

    A file appears under its name only once it is complete, and replaces an existing file. A folder
    must be new or empty; the files that make it a catalogue are written last.

    Parameters
    ----------
    selection
        The rows and columns to write.
    to
        Path or URL of the file, or of the folder of a HATS catalogue.
    form
        One of `FORMATS`; by default it follows from the suffix of `to`, where ``/`` means HATS.

    Raises
    ------
    BadInputError
        The suffix is not that of a format, or the format cannot hold a column.
    AlreadyExistsError
        The folder for a HATS catalogue is not empty.
    StorageError
        The target cannot be written to.
    """
    form = form or format_of(str(to))
    if form == "hats":
        return _export_folder(selection, to)
    store, name = Storage.holding(to)
    with temporary_folder("the export") as folder:
        # Written locally first: formats with headers need seeking, which object stores lack.
        path = folder / "catalogue"
        rows = FORMATS[form](selection, path)
        store.put(name, path)
        return Written(store.where(name), form, rows, path.stat().st_size)


def _export_folder(selection: Selection, to: str | Path) -> Written:
    store = Storage(to)
    # Files of another catalogue would be taken for parts of this one.
    if next(iter(store.list()), None) is not None:
        raise AlreadyExistsError(
            f"{store.where()} holds files already: name a new folder for the HATS catalogue, or "
            "remove this one"
        )
    with temporary_folder("the export") as folder:
        rows = write_hats(selection, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        # Last the properties: without them, no tool takes the unfinished folder for a catalogue.
        paths.sort(key=lambda path: (path.name in PROPERTIES, path))
        for path in paths:
            store.put(path.relative_to(folder).as_posix(), path)
        return Written(store.where(), "hats", rows, sum(path.stat().st_size for path in paths))


def format_of(place: str) -> str:
    """The format for the suffix of a name; raises `BadInputError` if there is none."""
    if place.endswith("/"):
        return "hats"
    name = Location.parse(place).name.lower()
    # By the end of the name, since users name files such as cat.v2.fits.
    found = next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)
    if found is None:
        raise BadInputError(
            f"the name {place} does not state the format of the catalogue: end it with one of "
            f"{', '.join(SUFFIXES)}, or with / for a folder of HATS, or give the format with "
            f"{option('format')}"
        )
    return found
