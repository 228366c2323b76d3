"""Input data: cutouts, the file formats, splitting into partitions, and the simulated survey."""

from perseid.survey.cutouts import UGRIZ, Cutouts
from perseid.survey.discovery import Ignored, Layout, SurveyListing, discover
from perseid.survey.formats import suffix_of, suffixes
from perseid.survey.missing import MissingValues
from perseid.survey.partition import natural_key, parse_size, rows_per_partition
from perseid.survey.reader import PartitionReader, open_partition, read_cutouts, write_cutouts
from perseid.survey.split import SplitProgress, SplitResult, split
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
    "split",
    "suffix_of",
    "suffixes",
    "write_cutouts",
]
