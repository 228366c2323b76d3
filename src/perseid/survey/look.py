"""Inspect one file of each format of a survey before a run starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec

from perseid.errors import BadPartitionError, NotInstalledError, StorageError
from perseid.plaintext import option
from perseid.storage import Storage
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.file_columns import Columns
from perseid.survey.formats import needed_package, suffix_of
from perseid.survey.hats import common_fields
from perseid.survey.picking import pick_columns
from perseid.survey.read_options import PLAIN, ReadOptions
from perseid.survey.reader import open_partition
from perseid.survey.votable_header import with_fields

NAMED_UNUSED = 12
"""How many columns a note names; it only counts the rest."""


@dataclass(frozen=True)
class FileLook:
    """What was found in one file of a survey."""

    where: str
    """The file, for messages."""
    columns: Columns
    """The columns that are read."""
    described: tuple[ColumnSpec, ...]
    """Every column under the file's own name; empty if the format has no names (``.pt``)."""
    sources: Mapping[str, str]
    """The file's name of each of our columns, by our name."""
    bands: tuple[str, ...] = ()
    """Names of the image bands, if the file has them."""
    remark: str = ""
    """A warning about the file, worded to follow "it has"; empty if there is none."""


def look_at_formats(
    storage: Storage, keys: Sequence[str], options: ReadOptions = PLAIN
) -> tuple[FileLook, ...]:
    """Check before a run that this installation can read the partitions, and see what they hold.

    One file of each format is opened. A file that is missing or corrupt is skipped here: the run
    reports it and continues without it.

    Raises
    ------
    NotInstalledError
        A package or an HDF5 filter is missing; the message says how to install it.
    """
    looks, seen = [], replace(options, needs_image=False, describe=True)
    for key in {suffix_of(key): key for key in reversed(keys)}.values():
        package = needed_package(key)
        if package is not None and find_spec(package) is None:
            raise NotInstalledError(
                f"{storage.where(key)} needs {package}, which is not installed where the run "
                f"works: pip install {package} there, or write the survey as .pt, .npz or "
                ".safetensors with `perseid split`"
            )
        with (
            suppress(BadPartitionError, StorageError),
            open_partition(storage, key, options=seen) as reader,
        ):
            named = [spec.source for spec in reader.described]
            sources = pick_columns(reader.name, named, options)
            looks.append(
                FileLook(
                    storage.where(key),
                    reader.columns,
                    with_fields(reader.described, common_fields(storage, key)),
                    sources,
                    reader.bands,
                    reader.remark,
                )
            )
    return tuple(looks)


def notes_on(
    looks: Sequence[FileLook], carried: Sequence[ColumnSpec] = (), inputs: Collection[str] = ()
) -> tuple[str, ...]:
    """Notes about columns that were recognized by another survey's names, and about unused columns.

    `carried` are the columns that go into the catalogue; `inputs` are the survey's names of the
    model's inputs.
    """
    wanted = {name.lower() for name in inputs}
    notes = []
    for look in looks:
        taken = [f"{name} is {source}" for name, source in look.columns.renamed.items()]
        used = {*look.sources.values()}
        used |= {spec.source for spec in look.described if spec.source.lower() in wanted}
        for spec in carried:
            if spec.source.lower() != spec.name.lower():
                taken.append(f"{spec.name} is {spec.source}")
            used.add(spec.source)
        if taken:
            notes.append(f"in {look.where} the column {', the column '.join(taken)}")
        notes += _unused_note(look, used)
        if look.remark:
            notes.append(f"{look.where} has {look.remark}")
    return tuple(notes)


def _unused_note(look: FileLook, used: set[str]) -> list[str]:
    unused = [spec for spec in look.described if spec.source not in used]
    if not unused:
        return []
    which = "the column" if len(unused) == 1 else "the columns"
    named = ", ".join(spec.source for spec in unused[:NAMED_UNUSED])
    more = f" and {len(unused) - NAMED_UNUSED} more" if len(unused) > NAMED_UNUSED else ""
    remedy = ""
    if any(spec.can_be_carried for spec in unused):
        them = "it" if len(unused) == 1 else "those of one value per row"
        remedy = f" ({option('keep', 'all')} carries {them} into the catalogue)"
    return [f"of {look.where} nothing uses {which} {named}{more}{remedy}"]
