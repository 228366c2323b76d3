"""A survey as a Python object: its partitions, and the cutouts in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from perseid.api.show import html_table
from perseid.errors import BadInputError
from perseid.pipeline.initialize import list_partitions
from perseid.pipeline.items import PartitionRef
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage
from perseid.survey import Cutouts, open_partition, read_cutouts

SHOWN_PARTITIONS = 10
"""Partitions that a notebook shows."""
ROWS = 1024
"""Rows of a block, unless the caller says otherwise."""


class Survey:
    """The partitions of a survey, in natural order. Made by `open_survey`.

    Examples
    --------
    >>> survey = perseid.open_survey("partitions/")  # doctest: +SKIP
    >>> len(survey), survey.partitions[0].key  # doctest: +SKIP
    (8, '1.pt')
    >>> survey.read(0).images.shape  # doctest: +SKIP
    (500, 5, 32, 32)
    """

    def __init__(self, url: str, partitions: tuple[PartitionRef, ...]) -> None:
        self.url = url
        """Folder or bucket that the partitions' keys are relative to."""
        self.partitions = partitions
        """Key and size (bytes) of each."""
        self._store = Storage(url)

    def __len__(self) -> int:
        return len(self.partitions)

    @property
    def size(self) -> int:
        """Bytes of all partitions."""
        return sum(ref.size for ref in self.partitions)

    def read(self, partition: int | str) -> Cutouts:
        """All rows of one partition, by its place or its key.

        Raises
        ------
        BadInputError
            The survey has no such partition.
        BadPartitionError
            It is corrupt, truncated or empty.
        """
        return read_cutouts((self._store.location / self._key(partition)).url)

    def blocks(self, partition: int | str, rows: int = ROWS) -> Iterator[Cutouts]:
        """One partition in consecutive blocks of at most `rows` rows."""
        with open_partition(self._store, self._key(partition)) as reader:
            yield from reader.blocks(rows)

    def __iter__(self) -> Iterator[Cutouts]:
        """All cutouts in the survey's order, in blocks."""
        for ref in self.partitions:
            yield from self.blocks(ref.key)

    def __repr__(self) -> str:
        return f"<Survey of {len(self)} partitions, {self.size / 1e6:,.1f} MB, at {self.url}>"

    def _repr_html_(self) -> str:
        rows = [(ref.key, f"{ref.size:,}") for ref in self.partitions[:SHOWN_PARTITIONS]]
        text = f"<p>{len(self)} partitions, {self.size / 1e6:,.1f} MB, at {self.url}:</p>"
        return text + html_table(("partition", "bytes"), rows)

    def _key(self, partition: int | str) -> str:
        keys = [ref.key for ref in self.partitions]
        if isinstance(partition, str) and partition in keys:
            return partition
        if isinstance(partition, int) and -len(keys) <= partition < len(keys):
            return keys[partition]
        raise BadInputError(f"the survey at {self.url} has no partition {partition!r}")


def open_survey(data: str | Path | list[str], *, file_limit: int | None = None) -> Survey:
    """The partitions of a folder, a bucket's prefix or a list of files, as a run would take them.

    Parameters
    ----------
    data
        Folder (path or URL), or a list of partitions.
    file_limit
        Only so many of them, the first in natural order.

    Raises
    ------
    NotFoundError
        There is nothing there.
    BadInputError
        It holds no partition.

    Examples
    --------
    >>> for cutouts in perseid.open_survey("s3://bucket/survey"):  # doctest: +SKIP
    ...     print(cutouts.magnitudes.mean(axis=0))
    """
    where = [str(one) for one in data] if isinstance(data, list) else str(data)
    keys = {"data": where, "results": "memory://none", "file_limit": file_limit}
    listing = list_partitions(RunRequest.parse(keys))
    return Survey(listing.data_url, listing.partitions)
