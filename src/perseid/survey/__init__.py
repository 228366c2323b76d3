"""Input data: cutouts, the file formats, splitting into partitions, and the simulated survey."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perseid.lazy import lazy_names

if TYPE_CHECKING:
    from perseid.survey.cutouts import UGRIZ, Cutouts
    from perseid.survey.discovery import Ignored, Layout, SurveyListing, discover
    from perseid.survey.formats import suffix_of, suffixes
    from perseid.survey.missing import MissingValues
    from perseid.survey.partition import natural_key, parse_size, rows_per_partition
    from perseid.survey.reader import PartitionReader, open_partition, read_cutouts, write_cutouts
    from perseid.survey.split import SplitProgress, SplitResult
    from perseid.survey.torchfile import load_torch

__all__ = [
    "UGRIZ",
    "Cutouts",
    "Ignored",
    "Layout",
    "MissingValues",
    "PartitionReader",
    "SplitProgress",
    "SplitResult",
    "SurveyListing",
    "discover",
    "load_torch",
    "natural_key",
    "open_partition",
    "parse_size",
    "read_cutouts",
    "rows_per_partition",
    "suffix_of",
    "suffixes",
    "write_cutouts",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Cutouts": "perseid.survey.cutouts",
        "Ignored": "perseid.survey.discovery",
        "Layout": "perseid.survey.discovery",
        "MissingValues": "perseid.survey.missing",
        "PartitionReader": "perseid.survey.reader",
        "SplitProgress": "perseid.survey.split",
        "SplitResult": "perseid.survey.split",
        "SurveyListing": "perseid.survey.discovery",
        "UGRIZ": "perseid.survey.cutouts",
        "discover": "perseid.survey.discovery",
        "load_torch": "perseid.survey.torchfile",
        "natural_key": "perseid.survey.partition",
        "open_partition": "perseid.survey.reader",
        "parse_size": "perseid.survey.partition",
        "read_cutouts": "perseid.survey.reader",
        "rows_per_partition": "perseid.survey.partition",
        "suffix_of": "perseid.survey.formats",
        "suffixes": "perseid.survey.formats",
        "write_cutouts": "perseid.survey.reader",
    },
)
