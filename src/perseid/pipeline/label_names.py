"""Convert a survey's labels in words to the numbers that the catalogue holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.model.outputs import CLASS, OutputColumn


def label_names(outputs: Iterable[OutputColumn], named: Mapping[str, str]) -> dict[str, int]:
    """Number of each label, by its name in lower case.

    Parameters
    ----------
    outputs
        The model's columns: its classes are numbered in their order.
    named
        The survey's names of its labels, by label; these names take precedence.

    Examples
    --------
    >>> votes = OutputColumn("class", CLASS, "votes", classes=("Disk", "round"))
    >>> label_names([votes], {}), label_names([votes], {"3": "disk"})
    ({'disk': 0, 'round': 1}, {'disk': 3})
    """
    if named:
        return {_plain(name): int(label) for label, name in named.items()}
    classes = next((one.classes for one in outputs if one.kind == CLASS), ())
    return {_plain(name): place for place, name in enumerate(classes)}


def label_numbers(
    label: NDArray[Any] | None, numbers: Mapping[str, int]
) -> NDArray[np.int32] | None:
    """Convert labels to numbers. A word that is not a known name becomes a missing label; labels
    that are numbers stay unchanged.

    Examples
    --------
    >>> label_numbers(np.array(["Disk", "star"]), {"disk": 2}).tolist()
    [2, None]
    """
    if label is None or label.dtype.kind != "U":
        return label
    words = [_plain(str(word)) for word in np.ma.getdata(label)]
    unknown = np.array([word not in numbers for word in words], np.bool_)
    found = np.array([numbers.get(word, 0) for word in words], np.int32)
    whole: NDArray[np.int32] = np.ma.masked_array(found, unknown | np.ma.getmaskarray(label))
    return whole


def _plain(name: str) -> str:
    return name.strip().casefold()
