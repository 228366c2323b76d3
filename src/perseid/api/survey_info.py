"""Describe a survey: rows, images, columns, and which of them a model would use or lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadInputError, BadPartitionError
from perseid.measure.present.gallery import lupton, png
from perseid.model.inputs import MAGNITUDE
from perseid.model.signature import ModelSignature
from perseid.pipeline.checks import count_rows
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.model_inputs import unfit, with_inputs
from perseid.pipeline.survey_columns import choose_columns
from perseid.plaintext import counted, html_table
from perseid.storage import Storage
from perseid.survey import open_partition
from perseid.survey.column_spec import ColumnSpec
from perseid.survey.formats import suffix_of
from perseid.survey.look import FileLook, look_at_formats
from perseid.survey.names import NAMES, POSITION
from perseid.survey.read_options import ReadOptions

GRID = 3
"""Cutouts per row and per column of the picture."""
SIDE, GAP = 192, 4
"""Least width of a cutout in the picture, and of the gap between cutouts, pixels."""


@dataclass(frozen=True)
class InputUse:
    """The survey's column that a model would use for one of its inputs."""

    name: str
    """Name of the model's input."""
    takes: str
    """What the input needs, e.g. ``3 bands of 64 x 64 pixels``."""
    source: str
    """The survey's name of the column; empty if the survey lacks it."""


@dataclass(frozen=True)
class ModelUse:
    """The survey's columns that a model would use."""

    name: str
    """Name of the model."""
    inputs: tuple[InputUse, ...]
    problem: str
    """Why the model cannot be run over the survey, and the remedy; empty if it can."""


@dataclass(frozen=True)
class SurveyInfo:
    """Description of a survey. Created by `Survey.info`.

    Examples
    --------
    >>> info = perseid.open_survey("partitions/").info()  # doctest: +SKIP
    >>> info.rows, info.formats  # doctest: +SKIP
    """

    url: str
    """Folder or bucket of the partitions."""
    partitions: int
    size: int
    """Bytes of all partitions."""
    rows: int
    """Objects in the readable partitions."""
    unreadable: Mapping[str, str]
    """Why each unreadable partition cannot be read, by its key."""
    formats: tuple[str, ...]
    """Suffixes of the files."""
    shape: tuple[int, int, int]
    """(bands, height, width) of an image in the first file; zeros if there are no images."""
    bands: tuple[str, ...]
    """Names of the bands, if the survey has them."""
    channels_last: bool
    """Whether images are stored as (height, width, bands)."""
    magnitudes: int
    """Number of magnitudes per row."""
    columns: tuple[ColumnSpec, ...]
    """Every column of the first file, with the file's own name, type, unit and UCD."""
    sources: Mapping[str, str]
    """The survey's name of each column that a run would read, by our name."""
    missing: tuple[str, ...]
    """Our names of the columns that the survey does not have."""
    notes: tuple[str, ...] = ()
    """Sentences about things to know before a run."""
    model: ModelUse | None = None
    """What the given model would use; None without a model."""

    def _repr_html_(self) -> str:
        bands, height, width = self.shape
        # The tensors of a .pt file have no names of their own.
        names = [spec.source for spec in self.columns] or list(self.sources)
        images = f"{counted(bands, 'band')} of {height} x {width} pixels" if height else "none"
        rows = [("partitions", f"{self.partitions:,}"), ("rows", f"{self.rows:,}"),
                ("images", images), ("columns", ", ".join(names)),
                ("missing", ", ".join(self.missing) or "nothing")]  # fmt: skip
        rows += [("unreadable", key) for key in self.unreadable]
        return html_table(("survey", self.url), rows)


@dataclass(frozen=True)
class SurveyFiles:
    """The files of a survey and the options for reading them."""

    url: str
    """Partition keys are relative to it."""
    partitions: tuple[PartitionRef, ...]
    notes: tuple[str, ...] = ()
    """Sentences about files that are not read."""
    options: ReadOptions = field(default_factory=ReadOptions)

    def look(self) -> FileLook:
        """The first file that can be read.

        Raises `BadPartitionError` with what is wrong with the first one, where none can.
        """
        storage = Storage(self.url)
        looks = look_at_formats(storage, [ref.key for ref in self.partitions], self.options)
        if looks:
            return looks[0]
        first = storage.where(self.partitions[0].key)
        with open_partition(storage, self.partitions[0].key, options=self.options):
            raise BadPartitionError(f"{first} cannot be read")


def survey_info(
    files: SurveyFiles, signature: ModelSignature | None = None, fit: str = ""
) -> SurveyInfo:
    """Inspect one file of each format, and count the rows of all files from their headers.

    Parameters
    ----------
    files
        Of the survey.
    signature, fit
        Signature of the model that would be run over the survey, and how images of another size
        would be fitted.

    Raises
    ------
    BadPartitionError
        No file can be read.
    NotInstalledError
        A package that a format needs is missing.
    """
    look, storage = files.look(), Storage(files.url)
    seen = replace(files.options, needs_image=False)
    unknown = [ref for ref in files.partitions if ref.rows is None]
    counts = count_rows(storage, unknown, seen)
    sources = _sources(look, files.options)
    return SurveyInfo(
        url=files.url,
        partitions=len(files.partitions),
        size=sum(ref.size for ref in files.partitions),
        rows=sum(ref.rows or 0 for ref in files.partitions) + sum(one.rows for one in counts),
        unreadable={one.key: one.error for one in counts if one.error},
        formats=tuple(sorted({suffix_of(ref.key) for ref in files.partitions})),
        shape=look.columns.shape,
        bands=look.bands,
        channels_last=look.columns.channels_last,
        magnitudes=look.columns.magnitudes,
        columns=look.described,
        sources=sources,
        missing=tuple(name for name in (*NAMES, *POSITION) if name not in sources),
        notes=(*files.notes, *([f"{look.where} has {look.remark}"] if look.remark else [])),
        model=None if signature is None else _use(files, look, sources, signature, fit),
    )


def _sources(look: FileLook, options: ReadOptions) -> dict[str, str]:
    """Map our names of the columns that are read to the survey's names."""
    kept = [name for name in NAMES if name in look.columns.dtypes]
    bands = ", ".join(look.sources[band] for band in look.columns.bands)
    found = {name: look.sources.get(name, bands or name) for name in kept}
    positions = choose_columns([look], options.names, (), ())
    return found | {spec.name: spec.source for spec in positions if spec.name in POSITION}


def _use(
    files: SurveyFiles,
    look: FileLook,
    sources: Mapping[str, str],
    signature: ModelSignature,
    fit: str,
) -> ModelUse:
    options = replace(with_inputs(files.options, signature), needs_image=False, reads_image=True)
    again = replace(files, options=options).look()
    used = []
    if signature.bands:
        bands, height, width = signature.shape
        takes = f"{counted(bands, 'band')} of {height} x {width} pixels"
        used.append(InputUse(signature.image.name, takes, sources.get("image", "")))
    there = {spec.source.lower(): spec.source for spec in look.described}
    for one in signature.columns:
        count = one.width or (signature.bands if one.column == MAGNITUDE else 1)
        named = files.options.names.get(one.column, (one.column,))[0].lower()
        source = sources.get(one.column, there.get(named, ""))
        takes = f"{count} number{'' if count == 1 else 's'} per row"
        used.append(InputUse(one.name, takes, source))
    every = [spec.source for spec in look.described]
    problem = unfit(signature, again.columns, fit, every, look.bands)
    return ModelUse(signature.name, tuple(used), f"the survey has {problem}" if problem else "")


def survey_picture(files: SurveyFiles) -> bytes:
    """Draw the first nine cutouts of a survey as one PNG, in color if there are enough bands.

    Raises `BadInputError` if the survey has no images.
    """
    storage, pictures = Storage(files.url), list[NDArray[np.uint8]]()
    for ref in files.partitions:
        with open_partition(storage, ref.key, options=files.options) as reader:
            wanted = min(GRID * GRID - len(pictures), reader.rows)
            images = reader.rows_at(0, wanted).images if wanted else ()
            pictures += [_enlarged(lupton(image)) for image in islice(images, wanted)]
        if len(pictures) == GRID * GRID:
            break
    if not pictures:
        raise BadInputError(f"the survey at {files.url} has no cutouts to draw")
    return png(_grid(pictures))


def _enlarged(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, -(-SIDE // max(rgb.shape[:2])))
    return rgb.repeat(times, axis=0).repeat(times, axis=1)


def _grid(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Arrange pictures on white in rows of `GRID`."""
    height = max(one.shape[0] for one in pictures) + GAP
    width = max(one.shape[1] for one in pictures) + GAP
    rows = -(-len(pictures) // GRID)
    sheet = np.full((rows * height - GAP, GRID * width - GAP, 3), 255, np.uint8)
    for number, one in enumerate(pictures):
        top, left = number // GRID * height, number % GRID * width
        sheet[top : top + one.shape[0], left : left + one.shape[1]] = one
    return sheet
