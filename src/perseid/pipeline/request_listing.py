"""The partitions that a request names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from perseid.pipeline.items import PartitionRef
from perseid.pipeline.overlap import refuse_overlap
from perseid.pipeline.request import RunRequest
from perseid.plaintext import counted
from perseid.storage import Location, Storage
from perseid.survey.description import SurveyDescription, description_of
from perseid.survey.discovery import Layout, discover
from perseid.survey.hats import rows_of_files
from perseid.survey.read_options import ReadOptions, channels_last


@dataclass(frozen=True)
class Listing:
    """The partitions that a request names, and what the survey says about itself."""

    data_url: str
    """URL that the keys of the partitions are relative to."""
    partitions: tuple[PartitionRef, ...]
    """Partitions in natural order, limited to the request's `file_limit`."""
    warnings: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""
    said: SurveyDescription = field(default_factory=SurveyDescription)
    """The survey's description of itself."""
    uneven: bool = False
    """Whether ranks are given equal numbers of rows instead of partitions, because HATS pixels are
    uneven."""

    def read_options(self, request: RunRequest) -> ReadOptions:
        """How the files are read; the request takes precedence over the survey's description."""
        return ReadOptions(
            names={**self.said.columns, **request.column_names},
            channels_last=channels_last(request.layout or self.said.layout),
            bands=request.band_names or self.said.bands,
        )

    @property
    def weights(self) -> Sequence[int] | None:
        """The weight of each partition, if the survey's partitions are uneven by design."""
        if not self.uneven:
            return None
        rows = [ref.rows for ref in self.partitions]
        known = [count for count in rows if count is not None]
        return known if len(known) == len(rows) else [ref.size for ref in self.partitions]


def list_partitions(request: RunRequest) -> Listing:
    """Every partition that the request names: all pages of the listing, in natural order, limited
    to `file_limit`.

    Raises
    ------
    NotFoundError
        The folder (or one of the listed files) does not exist.
    BadInputError
        The folder holds no partition, the list names one twice, or the results would lie in the
        data, or the data in a run.
    """
    if request.data:
        found = discover(request.data)
        folder = found.location
    else:
        bucket = Location.parse(request.bucket_url(request.data_bucket or ""))
        folder = bucket / (request.data_prefix or "")
        found = discover(folder, base=bucket)
    named = found.layout is Layout.FILES or not (request.data or request.data_prefix)
    refuse_overlap(folder, Location.parse(request.results_url), results_may_lie_below=named)
    refs = tuple(PartitionRef(info.key, info.size, info.etag) for info in found.partitions)
    if found.layout is Layout.HATS:
        rows = rows_of_files(Storage(found.location), [ref.key for ref in refs])
        refs = tuple(replace(ref, rows=rows.get(ref.key)) for ref in refs)
    said, uneven = description_of(found), found.layout is Layout.HATS
    listing = Listing(found.location.url, refs, (*found.notes, *said.notes), said, uneven)
    limit, count = request.file_limit, len(refs)
    if limit is None or limit == count:
        return listing
    if limit > count:
        fewer = (
            f"file_limit is {limit}, but there {'is' if count == 1 else 'are'} only "
            f"{counted(count, 'partition')}: all are used"
        )
        return replace(listing, warnings=(*listing.warnings, fewer))
    return replace(listing, partitions=refs[:limit])
