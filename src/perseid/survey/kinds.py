"""Names of the labels of a survey."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from perseid.errors import PerseidError
from perseid.jsontext import parse_json
from perseid.storage import Location, Storage

ANOMALY_KINDS = MappingProxyType(
    {
        0: "none",
        1: "merger",
        2: "ring",
        3: "tidal stream",
        4: "satellite trail",
        5: "cosmic ray",
        6: "bad column",
        7: "saturated star",
        8: "band offset",
        9: "dead band",
    }
)
"""Meaning of each label in a simulated survey; 0 is a plain object."""

SURVEY_FILE = "survey.json"
"""A survey's description of itself, next to its partitions. Its key `KINDS` names the labels."""
KINDS = "anomaly_kinds"
OPTION = "label_names"
"""Key of these names in the options of a run."""


def label_name(label: int, names: Mapping[int, str]) -> str:
    """The survey's name of a label; ``label N`` if it has none.

    Examples
    --------
    >>> label_name(1, {1: "merger"}), label_name(1, {})
    ('merger', 'label 1')
    """
    return names.get(label, f"label {label}")


def read_label_names(folder: Location) -> dict[int, str]:
    """The label names in a survey's ``survey.json``; empty if there are none.

    Labels of foreign surveys have meanings of their own, so no default names are assumed.
    """
    try:
        said = parse_json(Storage(folder).get(SURVEY_FILE))
    except (PerseidError, ValueError):
        return {}
    return label_names(said.get(KINDS) if isinstance(said, Mapping) else None)


def stored_label_names(options: Mapping[str, object], data_url: str) -> dict[int, str]:
    """The label names in a run's options. Runs of earlier versions lack them; then those next to
    its data."""
    if OPTION in options:
        return label_names(options[OPTION])
    return read_label_names(Location.parse(data_url))


def label_names(value: object) -> dict[int, str]:
    """Names by label, from JSON values; what is not a name of a label is left out."""
    if not isinstance(value, Mapping):
        return {}
    return {
        int(label): name
        for label, name in value.items()
        if isinstance(name, str) and name and re.fullmatch(r"-?[0-9]{1,18}", str(label))
    }
