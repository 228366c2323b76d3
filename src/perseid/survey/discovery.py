"""Find the files of a survey: one rule for every command, on a disk and in an object store.

The rule, as in docs/reference/survey.md:

1. A file that the user names is taken if its suffix is that of a known format.
2. Of a folder, its direct files with the suffix of a known format (in any case) are taken,
   except those whose name begins with ``.`` or ``_``, and a run's ``catalogue.parquet``.
3. Files in sub-folders are not taken: they may be the same objects again.
4. Of a HATS catalogue, only the files of its HEALPix pixels are taken.
5. Partitions are in natural order of their keys: ``2.pt`` before ``10.pt``.

`SurveyListing.notes` names every file that looks like data but is not taken.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath

from perseid.errors import BadInputError, NotFoundError
from perseid.storage import Location, ObjectInfo, Storage, scan
from perseid.survey.formats import READ_ONLY, suffix_of, suffixes
from perseid.survey.hats import catalogue_prefix, is_pixel, may_be_catalogue
from perseid.survey.partition import natural_key
from perseid.textfile import is_file

RUN_CATALOGUE = "catalogue.parquet"
"""A run's catalogue, which is not a partition although it may lie next to the data with the same
suffix."""
RUN_RATINGS = "ratings.parquet"
"""Ratings that a person gave to a run's objects; not a partition either."""
NAMED = 5
"""How many ignored files a note names; it only counts the rest."""
MOST_LOOKED_AT = 50_000
"""After how many entries of a folder on a disk no further sub-folder is looked into: only notes and
HATS catalogues need them, and ``--data /`` would go on for minutes."""
DATA_SUFFIXES = frozenset((
    ".arrow", ".asdf", ".bz2", ".csv", ".ecsv", ".feather", ".fit", ".fits", ".fts", ".fz", ".gz",
    ".h5", ".hdf", ".hdf5", ".he5", ".lance", ".msgpack", ".nc", ".npy", ".npz", ".parq",
    ".parquet", ".pickle", ".pkl", ".pqt", ".pt", ".pth", ".safetensors", ".tar", ".tfrecord",
    ".tgz", ".tsv", ".vot", ".votable", ".xz", ".zarr", ".zip", ".zst",
))  # fmt: skip
"""Suffixes of files that hold data, whether perseid reads them or not."""

_SPECIAL = (
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


class Layout(StrEnum):
    """How the files of a survey are arranged."""

    FILES = "files"
    """One file, or several, by name."""
    FOLDER = "folder"
    """All files of a folder that the rule takes."""
    HATS = "hats"
    """The files of the HEALPix pixels of a HATS catalogue."""


@dataclass(frozen=True)
class Ignored:
    """A file or folder in a survey's folder that is not part of the survey."""

    key: str
    """Below the listing's location; a folder ends in ``/``."""
    reason: str
    """Why, worded to follow the key in a sentence: ``lies in a sub-folder``."""
    is_data: bool
    """Whether a note names it: it looks like data, or cannot be read."""


@dataclass(frozen=True)
class SurveyListing:
    """The files of a survey, and the files in its folder that do not belong to it."""

    location: Location
    """Keys are relative to it."""
    layout: Layout
    partitions: tuple[ObjectInfo, ...]
    """Key, size in bytes and entity tag of each file, in natural order; never empty."""
    ignored: tuple[Ignored, ...] = ()
    """All other files of the folder, by key; folder markers do not count."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what looks like data and is not read, mixed formats, files twice."""
        kinds = sorted({suffix_of(p.key).lstrip(".") for p in self.partitions})
        notes = []
        if len(kinds) > 1:
            notes.append(f"the partitions have several formats ({', '.join(kinds)}): all are used")
        if same := self._same_bytes():
            said = [" and ".join(map(_printable, keys[:NAMED])) for keys in same[:NAMED]]
            more = f" (and {len(same) - NAMED} more such groups)" if len(same) > NAMED else ""
            notes.append(f"{'; '.join(said)} hold the same bytes{more}, so the survey has their "
                         "objects more than once")  # fmt: skip
        data = [entry for entry in self.ignored if entry.is_data]
        if data:
            them = "looks like data and is" if len(data) == 1 else "look like data and are"
            notes.append(f"{_counted(len(data), 'entry', 'entries')} in {self.location} {them} "
                         f"not read: {_named(data)}")  # fmt: skip
        return tuple(notes)

    def _same_bytes(self) -> list[list[str]]:
        """Keys of partitions that are one file by several names, or in S3 of the same content."""
        by_tag: dict[tuple[str, int], list[str]] = {}
        for info in self.partitions:
            if info.etag and info.size:
                by_tag.setdefault((info.etag, info.size), []).append(info.key)
        return [keys for keys in by_tag.values() if len(keys) > 1]


def discover(
    survey: Location | str | Path | Sequence[str], *, base: Location | None = None
) -> SurveyListing:
    """Find the files of a survey.

    Parameters
    ----------
    survey
        A file, a folder, a URL of either, or the URLs of several files.
    base
        For a folder: the location that keys are relative to, which contains the folder; by default
        the folder itself.

    Raises
    ------
    NotFoundError
        There is nothing at that place, or one of the named files is missing.
    BadInputError
        The folder holds no partition; the list is empty or names a file twice.
    ForbiddenError, StorageError
        The place cannot be listed.

    Examples
    --------
    >>> listing = discover("cutouts/")  # doctest: +SKIP
    >>> [partition.key for partition in listing.partitions]  # doctest: +SKIP
    ['1.pt', '2.pt', '10.pt']
    """
    if isinstance(survey, Sequence) and not isinstance(survey, str):
        return _files([Location.parse(place) for place in survey])
    place = Location.parse(survey)
    # On an object store the check costs a request, so only names with a known suffix are checked.
    may_be_file = place.path is not None or suffix_of(place.name)
    if may_be_file and _is_file(place):
        return _files([place])
    return _folder(place, place if base is None else base)


def first_key(storage: Storage) -> str | None:
    """The first key in a folder, for messages; None if the folder is empty or missing."""
    found = scan(storage)
    keys = [info.key for info in found.objects] + [skipped.key for skipped in found.skipped]
    return min(keys, default=None)


def _is_file(place: Location) -> bool:
    if place.path is not None:
        _refuse_special(place.path)
        return is_file(place.path)
    storage, name = Storage.holding(place)
    return storage.exists(name)


def _refuse_special(path: Path) -> None:
    """Raise `BadInputError` for what would never end, or cannot be mapped: a pipe, a device."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it tells why
    kind = next((word for is_kind, word in _SPECIAL if is_kind(mode)), None)
    if kind is not None:
        raise BadInputError(
            f"{path} is a {kind}, not a file or a folder: write the data to a file, and name that"
        )


def _files(places: Sequence[Location]) -> SurveyListing:
    if not places:
        raise BadInputError("`data` is an empty list: name at least one partition")
    for place in places:
        if place.path is not None:
            _refuse_special(place.path)
    # A partition that is named twice would put its objects into the catalogue twice.
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise BadInputError(f"`data` names {twice[0].url} more than once: name each partition once")
    # The manifest has a single URL that all partition keys are relative to.
    folder = Location.common_folder(places)
    if folder is None or (folder.scheme == "file" and not folder.key):
        raise BadInputError(
            "`data` names partitions of different stores, or without a common folder: a run reads "
            "from one bucket or one folder and those in it"
        )
    unknown = next((place for place in places if not suffix_of(place.name)), None)
    if unknown is not None:
        raise _unknown_suffix(unknown)
    storage = Storage(folder)
    found = [storage.info(place.key_below(folder)) for place in places]
    return SurveyListing(folder, Layout.FILES, _sorted(found))


def _folder(place: Location, base: Location) -> SurveyListing:
    storage = Storage(base)
    below = place.key_below(base)
    found = scan(storage, below, most=MOST_LOOKED_AT)
    prefix = below + "/" if below else ""
    # Sub-folders hold partitions only of a HATS catalogue, which is never taken in part.
    if not found.is_whole and may_be_catalogue(prefix, [info.key for info in found.objects]):
        found = scan(storage, below)
    folders = {parent for info in found.objects for parent in _parents(info.key)}
    partitions: list[ObjectInfo] = []
    ignored: list[Ignored] = []
    for info in found.objects:
        reason = _ignore_reason(info.key.removeprefix(prefix))
        # Web consoles of object stores create empty objects that stand for folders.
        if info.size == 0 and (info.key in folders or _is_marker(storage, info, reason)):
            continue
        if reason:
            ignored.append(Ignored(info.key, reason, _is_data(info.key)))
        else:
            partitions.append(info)
    # An unusable name does not show what the file holds, so a note always names it.
    ignored += [Ignored(skipped.key, skipped.reason, True) for skipped in found.skipped]
    layout, keys = Layout.FOLDER, [info.key for info in found.objects]
    pixels = catalogue_prefix(storage, prefix, keys, bare=not partitions)
    if pixels is not None:
        layout, is_row = Layout.HATS, partial(_is_pixel_of, pixels)
        partitions = [info for info in found.objects if is_row(info.key)]
        # Margins, indexes and metadata of a catalogue are expected, so no note names them.
        ignored = [replace(entry, is_data=False) for entry in ignored if not is_row(entry.key)]
    if not partitions:
        raise _nothing(place, ignored)
    ignored.sort(key=lambda entry: natural_key(entry.key))
    return SurveyListing(base, layout, _sorted(partitions), tuple(ignored))


def _is_pixel_of(prefix: str, key: str) -> bool:
    return key.startswith(prefix) and is_pixel(key.removeprefix(prefix))


def _parents(key: str) -> Iterable[str]:
    parts = key.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _is_marker(storage: Storage, info: ObjectInfo, reason: str) -> bool:
    """Whether an empty object is a folder marker such as ``1.pt/``: the client drops the slash.

    Costs a request, so it is checked only for would-be partitions, and never on a disk.
    """
    return not reason and storage.local_path() is None and not storage.exists(info.key)


def _ignore_reason(name: str) -> str:
    """Why a file of the folder is not a partition of the survey; empty if it is one."""
    if name.startswith(RUN_CATALOGUE + "/"):
        return "is a part of the catalogue of a run"
    if "/" in name:
        return "lies in a sub-folder"
    if name.startswith((".", "_")):
        return f"begins with {name[0]}"
    if name == RUN_CATALOGUE:
        return "is the catalogue of a run"
    if name == RUN_RATINGS:
        return "holds the ratings of a run"
    if not suffix_of(name):
        return "has a suffix that is not read"
    return ""


def _is_data(key: str) -> bool:
    return any(suffix.lower() in DATA_SUFFIXES for suffix in PurePosixPath(key).suffixes[-2:])


def _sorted(found: Iterable[ObjectInfo]) -> tuple[ObjectInfo, ...]:
    return tuple(sorted(found, key=lambda info: natural_key(info.key)))


def _nothing(place: Location, ignored: Sequence[Ignored]) -> BadInputError | NotFoundError:
    if not ignored and _is_file(place):
        return _unknown_suffix(place)
    if not ignored:
        where = "path" if place.path is not None else "bucket and prefix"
        return NotFoundError(f"there is nothing at {place}: check the {where}")
    shown = [entry for entry in ignored if entry.is_data] or ignored
    return BadInputError(
        f"{place} holds no partition ({', '.join((*suffixes(), *READ_ONLY))}), only "
        f"{_counted(len(ignored), 'other object', 'other objects')} ({_named(shown)}): name the "
        "folder that the partitions lie in"
    )


def _unknown_suffix(place: Location) -> BadInputError:
    known = ", ".join((*suffixes(), *READ_ONLY))
    return BadInputError(
        f"{place} is not read: its suffix is none of {known}; rename it to the suffix of its "
        "format, or write it in one of these formats"
    )


def _named(entries: Sequence[Ignored]) -> str:
    """Name the first few with their reasons, and count the rest."""
    said = [f"{_printable(entry.key)} {entry.reason}" for entry in entries[:NAMED]]
    more = len(entries) - NAMED
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def _printable(key: str) -> str:
    """Escape control characters, which would otherwise reach the terminal."""
    return key if key.isprintable() else repr(key)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
