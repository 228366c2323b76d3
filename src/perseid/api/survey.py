"""A survey as a Python object: its partitions and their cutouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from perseid.api.argument_checks import places_of
from perseid.api.model import Model, load_model
from perseid.api.survey_info import SurveyFiles, SurveyInfo, survey_info, survey_picture
from perseid.errors import BadInputError
from perseid.pipeline.request import RunRequest
from perseid.pipeline.request_listing import list_partitions
from perseid.plaintext import counted, html_table, markup
from perseid.storage import Storage
from perseid.survey import Cutouts, open_partition
from perseid.survey.column_spec import ColumnSpec

SHOWN_PARTITIONS = 10
"""How many partitions a notebook shows."""
ROWS = 1024
"""Default number of rows per block."""


class Survey:
    """The partitions of a survey, in natural order. Created by `open_survey`.

    Examples
    --------
    >>> survey = perseid.open_survey("partitions/")  # doctest: +SKIP
    >>> len(survey), survey.partitions[0].key  # doctest: +SKIP
    (8, '1.pt')
    >>> survey.read(0).images.shape  # doctest: +SKIP
    (500, 5, 32, 32)
    """

    def __init__(self, files: SurveyFiles) -> None:
        self._files = files
        self.url = files.url
        """Folder or bucket that the partitions' keys are relative to."""
        self.partitions = files.partitions
        """Key and size (bytes) of each partition."""
        self._store = Storage(files.url)

    def __len__(self) -> int:
        return len(self.partitions)

    @property
    def size(self) -> int:
        """Total size of the partitions, bytes."""
        return sum(ref.size for ref in self.partitions)

    @cached_property
    def columns(self) -> tuple[ColumnSpec, ...]:
        """Every column of the first file, with the file's own name, type, unit and UCD."""
        return self._files.look().described

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Our names of the columns that the survey does not have, e.g. ``redshift``."""
        return self.info().missing

    def info(self, model: Model | str | Path | None = None, *, fit: str = "") -> SurveyInfo:
        """Describe the survey; with a model, also the columns that it would use and those it lacks.

        Rows are counted from the headers of all files.

        Parameters
        ----------
        model
            A loaded model, or what `load_model` takes.
        fit
            ``crop`` or ``pad``: how images of another size than the model's would be fitted.

        Raises
        ------
        BadPartitionError
            No file can be read.
        BadModelError
            The model cannot be loaded.
        """
        loaded = load_model(model) if isinstance(model, (str, Path)) else model
        return survey_info(self._files, loaded.signature if loaded else None, fit)

    def picture(self) -> bytes:
        """The first nine cutouts as one PNG; raises `BadInputError` if there are no images."""
        return survey_picture(self._files)

    def read(self, partition: int | str) -> Cutouts:
        """Read all rows of one partition, given its index or key.

        Raises
        ------
        BadInputError
            The survey has no such partition.
        BadPartitionError
            It is corrupt, truncated or empty.
        """
        key, options = self._key(partition), self._files.options
        with open_partition(self._store, key, options=options) as reader:
            return reader.read()

    def blocks(self, partition: int | str, rows: int = ROWS) -> Iterator[Cutouts]:
        """Read one partition in consecutive blocks of at most `rows` rows."""
        key, options = self._key(partition), self._files.options
        with open_partition(self._store, key, options=options) as reader:
            yield from reader.blocks(rows)

    def __iter__(self) -> Iterator[Cutouts]:
        """Read all cutouts in the survey's order, in blocks."""
        for ref in self.partitions:
            yield from self.blocks(ref.key)

    def __repr__(self) -> str:
        return (
            f"<Survey of {counted(len(self), 'partition')}, {self.size / 1e6:,.1f} MB, at "
            f"{self.url}>"
        )

    def _repr_html_(self) -> str:
        rows = [(ref.key, f"{ref.size:,}") for ref in self.partitions[:SHOWN_PARTITIONS]]
        text = f"{counted(len(self), 'partition')}, {self.size / 1e6:,.1f} MB, at {self.url}:"
        return f"<p>{markup(text)}</p>" + html_table(("partition", "bytes"), rows)

    def _key(self, partition: int | str) -> str:
        keys = [ref.key for ref in self.partitions]
        if isinstance(partition, str) and partition in keys:
            return partition
        if isinstance(partition, int) and -len(keys) <= partition < len(keys):
            return keys[partition]
        raise BadInputError(f"the survey at {self.url} has no partition {partition!r}")


def open_survey(
    data: str | Path | list[str],
    *,
    file_limit: int | None = None,
    columns: Mapping[str, str | list[str]] | None = None,
    layout: str | None = None,
    bands: str | list[str] | None = None,
) -> Survey:
    """Open a survey: a folder, a bucket's prefix or a list of files, found as a run would find
    them.

    Parameters
    ----------
    data
        Folder (path or URL), or a list of partitions.
    file_limit
        Take only this many partitions, the first in natural order.
    columns, layout, bands
        Names of the survey's columns, axis order of its images and names of their bands, as in a
        request. By default, as in the survey's ``survey.json``.

    Raises
    ------
    NotFoundError
        There is nothing there.
    BadInputError
        There is no partition in it.

    Examples
    --------
    >>> for cutouts in perseid.open_survey("s3://bucket/survey"):  # doctest: +SKIP
    ...     print(cutouts.magnitudes.mean(axis=0))
    """
    keys: dict[str, object] = {
        "data": places_of(data, "data"),
        "results": "memory://none",
        "file_limit": file_limit,
        "columns": columns,
        "layout": layout,
        "bands": bands,
    }
    # Parsed as the request of a run, so that the same files and columns are found; nothing is
    # written to its place for results.
    request = RunRequest.parse(keys)
    listing = list_partitions(request)
    options = listing.read_options(request)
    return Survey(SurveyFiles(listing.data_url, listing.partitions, listing.warnings, options))
