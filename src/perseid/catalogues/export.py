"""A catalogue written in another form: the format is told by the name of what is written."""

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
from perseid.storage import Location, Storage

FORMATS: Mapping[str, Callable[[Selection, Path], int]] = {
    "fits": write_fits,
    "votable": write_votable,
    "csv": write_csv,
    "parquet": write_parquet,
    "hats": write_hats,
    "qp": write_qp,
}
"""What writes each format's file or folder, and returns the number of rows."""
SUFFIXES = {
    ".fits": "fits", ".fit": "fits", ".vot": "votable", ".votable": "votable", ".xml": "votable",
    ".csv": "csv", ".parquet": "parquet", ".hdf5": "qp",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A catalogue in another form: where it lies, and how much of it."""

    where: str
    """Path or URL."""
    format: str
    """One of `FORMATS`."""
    rows: int
    bytes: int


def export(selection: Selection, to: str | Path, form: str | None = None) -> Written:
    """Write rows and columns of a catalogue to a path or URL.

    A file is whole when it appears under its name; one that was there is replaced. A folder gets
    last what makes it a catalogue; it must be new or empty.

    Parameters
    ----------
    selection
        What is written.
    to
        Path or URL of the file, or of the folder of a HATS catalogue.
    form
        One of `FORMATS`; None: as the suffix of `to` says, HATS where it ends with ``/``.

    Raises
    ------
    BadInputError
        The suffix says no format, or the format cannot hold a column.
    AlreadyExistsError
        There are files in the folder for a HATS catalogue.
    StorageError
        The place cannot be written to.
    """
    form = form or format_of(str(to))
    if form == "hats":
        return _export_folder(selection, to)
    store, name = Storage.holding(to)
    with temporary_folder("the export") as folder:
        path = folder / "catalogue"
        rows = FORMATS[form](selection, path)
        store.put(name, path)
        return Written(store.where(name), form, rows, path.stat().st_size)


def _export_folder(selection: Selection, to: str | Path) -> Written:
    store = Storage(to)
    if next(iter(store.list()), None) is not None:
        raise AlreadyExistsError(
            f"{store.where()} holds files already: name a new folder for the HATS catalogue, or "
            "remove this one"
        )
    with temporary_folder("the export") as folder:
        rows = write_hats(selection, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        paths.sort(key=lambda path: (path.name in PROPERTIES, path))
        for path in paths:
            store.put(path.relative_to(folder).as_posix(), path)
        return Written(store.where(), "hats", rows, sum(path.stat().st_size for path in paths))


def format_of(place: str) -> str:
    """The format that a name's suffix says; raises `BadInputError` if it says none."""
    if place.endswith("/"):
        return "hats"
    name = Location.parse(place).name.lower()
    found = next((form for suffix, form in SUFFIXES.items() if name.endswith(suffix)), None)
    if found is None:
        raise BadInputError(
            f"{place} does not say in which format the catalogue is wanted: end the name with "
            f"one of {', '.join(SUFFIXES)}, or with / for a folder of HATS, or name the format by "
            "--format"
        )
    return found
