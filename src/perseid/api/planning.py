"""Choose partition size, number of workers and memory for a run on AWS."""

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
    """Choose partition size, world size and memory for a deadline and a budget, like ``perseid
    plan``.

    Parameters
    ----------
    data
        Folder with the data (path or URL), or its size in bytes.
    deadline
        Longest duration of the whole run, seconds.
    budget
        Highest cost as billed, USD.
    calibration
        Measured speed of a worker: a file written by ``perseid calibrate --out``, or its content.
    prices
        Prices to use instead of the built-in list.

    Raises
    ------
    NotFoundError, BadInputError
        The folder does not exist or has no partition: see `perseid.survey.discover`.

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
