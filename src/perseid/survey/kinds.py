"""What the labels of a survey mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from perseid.errors import PerseidError
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
"""What a label means in a simulated survey; 0 is a plain object."""

SURVEY_FILE = "survey.json"
"""Beside the partitions: what a survey says of itself. Its key `KINDS` names the labels."""
KINDS = "anomaly_kinds"
OPTION = "label_names"
"""Where a run's settings keep these names, among the options."""


def label_name(label: int, names: Mapping[int, str]) -> str:
    """What the survey calls a label; a label that it does not name is called by its number.

    Examples
    --------
    >>> label_name(1, {1: "merger"}), label_name(1, {})
    ('merger', 'label 1')
    """
    return names.get(label, f"label {label}")


def read_label_names(folder: Location) -> dict[int, str]:
    """The names that a survey's own ``survey.json`` gives its labels; empty where it has none.

    A survey from elsewhere has labels of its own meaning, so nothing is assumed.
    """
    try:
        said = json.loads(Storage(folder).get(SURVEY_FILE))
    except (PerseidError, ValueError, RecursionError):
        return {}
    return _names(said.get(KINDS) if isinstance(said, Mapping) else None)


def stored_label_names(options: Mapping[str, object], data_url: str) -> dict[int, str]:
    """The names in a run's options; of a run of an earlier version, those beside its data."""
    if OPTION in options:
        return _names(options[OPTION])
    return read_label_names(Location.parse(data_url))


def _names(value: object) -> dict[int, str]:
    if not isinstance(value, Mapping):
        return {}
    return {
        int(label): name
        for label, name in value.items()
        if isinstance(name, str) and name and re.fullmatch(r"-?[0-9]{1,18}", str(label))
    }
