"""What a survey says of itself: ``survey.json`` beside its partitions, or in its HATS catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from perseid.errors import BadInputError, PerseidError
from perseid.jsontext import parse_json
from perseid.storage import Location, Storage
from perseid.survey.discovery import Layout, SurveyListing
from perseid.survey.kinds import KINDS, SURVEY_FILE, label_names
from perseid.survey.names import NO_NAMES, ColumnNames, column_names
from perseid.survey.read_options import LAYOUTS, ImageLayout


@dataclass(frozen=True)
class SurveyDescription:
    """What ``survey.json`` says; empty if there is none."""

    labels: Mapping[int, str] = field(default_factory=dict)
    """Names of labels."""
    bands: tuple[str, ...] = ()
    """Names of the images' bands, in their order."""
    layout: ImageLayout | None = None
    """One of `LAYOUTS`."""
    columns: ColumnNames = field(default_factory=lambda: NO_NAMES)
    """Names of columns, as ``--columns`` gives them."""
    notes: tuple[str, ...] = ()
    """What of the file is not used, one sentence each."""

    def of_partitions(self) -> dict[str, object]:
        """The keys of a ``survey.json`` beside partitions that were split from this survey.

        Layout and columns are left out: partitions have the usual ones.
        """
        said = {KINDS: {str(label): name for label, name in self.labels.items()}}
        return {key: value for key, value in {**said, "bands": list(self.bands)}.items() if value}


def description_of(listing: SurveyListing) -> SurveyDescription:
    """What a survey says of itself. A survey that lists no such file costs no request."""
    for folder in _folders(listing):
        try:
            said = parse_json(Storage(folder).get(SURVEY_FILE))
        except (PerseidError, ValueError):
            continue
        if isinstance(said, Mapping):
            return _of(said, f"{folder}/{SURVEY_FILE}")
    return SurveyDescription()


def _folders(listing: SurveyListing) -> Sequence[Location]:
    """Where the file may lie: in a HATS catalogue, or a collection of it, not among its pixels."""
    first = listing.partitions[0].key
    if listing.layout is Layout.HATS:
        # Everything before the order of a pixel, without the folder `dataset`.
        within = first.partition("Norder=")[0].rstrip("/").removesuffix("dataset").strip("/")
        return (listing.location / within, *([listing.location] if within else []))
    folder = PurePosixPath(first).parent
    if not any(entry.key == str(folder / SURVEY_FILE) for entry in listing.ignored):
        return ()
    return (listing.location / ("" if str(folder) == "." else str(folder)),)


def _of(said: Mapping[str, object], where: str) -> SurveyDescription:
    bands, layout, columns = said.get("bands"), said.get("layout"), said.get("columns")
    notes, names = [], NO_NAMES
    listed = isinstance(bands, list) and all(isinstance(one, str) and one for one in bands)
    if bands is not None and not listed:
        notes.append(f"{where}: bands is {bands!r}, which is not a list of names: it is not used")
    if layout is not None and layout not in LAYOUTS:
        notes.append(f"{where}: layout is {layout!r}, not {' or '.join(LAYOUTS)}: it is not used")
    try:
        names = column_names(columns) if isinstance(columns, Mapping) else NO_NAMES
    except BadInputError as error:
        notes.append(f"{where}: {error}: its columns are not used")
    return SurveyDescription(
        labels=label_names(said.get(KINDS)),
        bands=tuple(bands) if isinstance(bands, list) and listed else (),
        layout=next((one for one in LAYOUTS if one == layout), None),
        columns=names,
        notes=tuple(notes),
    )
