"""Which partitions, how many workers and how much memory a run on AWS should take."""

from __future__ import annotations

from pathlib import Path

from perseid.errors import BadInputError
from perseid.measure.advice import Advice, Ask, advise
from perseid.measure.calibration import Calibration
from perseid.measure.prices import Prices
from perseid.survey import discover


def plan(
    data: str | Path | float,
    *,
    deadline: float | None = None,
    budget: float | None = None,
    calibration: Calibration | str | Path,
    prices: Prices | None = None,
) -> Advice:
    """Partition size, world size and memory for a deadline and a budget, as ``perseid plan``.

    Parameters
    ----------
    data
        Folder that holds the data (path or URL), or how much there is, bytes.
    deadline
        Of the whole run, seconds.
    budget
        As billed, USD.
    calibration
        How fast a worker is: what ``perseid calibrate --out`` wrote, or its path.
    prices
        Other than the list.

    Raises
    ------
    NotFoundError, BadInputError
        There is nothing at the folder, or no partition in it: see `perseid.survey.discover`.

    Examples
    --------
    >>> advice = perseid.plan(12.6e9, deadline=60, calibration="c.json")  # doctest: +SKIP
    >>> advice.option.memory_mb  # doctest: +SKIP
    1769
    """
    if isinstance(data, int | float):
        size = float(data)
    else:
        size = float(sum(partition.size for partition in discover(str(data)).partitions))
    if not size > 0:
        raise BadInputError(f"there is nothing at {data}")
    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    question = Ask(data_bytes=size, deadline=deadline, budget=budget)
    return advise(question, calibration, prices or Prices())
