"""Choose partition size, number of workers and memory for a run on AWS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perseid.api.argument_checks import place_of
from perseid.api.worker_pace import calibrate
from perseid.errors import BadInputError
from perseid.measure.advice import (
    MEMORIES_MB,
    PARTITIONS_MB,
    Advice,
    Ask,
    Limits,
    PlanOption,
    advise,
)
from perseid.measure.calibration import Calibration
from perseid.measure.prices import ARCHITECTURES, Prices, prices_of
from perseid.survey import discover

__all__ = ["ARCHITECTURES", "Advice", "PlanOption", "plan"]


def plan(
    data: str | Path | float,
    *,
    deadline: float | None = None,
    budget: float | None = None,
    sure: bool = False,
    calibration: Calibration | str | Path | None = None,
    rate: float | None = None,
    partitions_mb: Sequence[float] = (),
    memories_mb: Sequence[int] = (),
    architectures: Sequence[str] = ("x86",),
    concurrency: int = 1000,
    max_memory_mb: int = 10_240,
    timeout: float = 900.0,
    prices: Prices | str | Path | None = None,
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
    sure
        Whether the upper estimates must meet deadline and budget, not the expected ones.
    calibration
        Measured speed of a worker: the result of `calibrate`, or the path of a file written by
        ``perseid calibrate --out``; None measures this machine now.
    rate
        Rows per second of one vCPU, instead of the calibration's.
    partitions_mb, memories_mb, architectures
        What to choose from: partition sizes and memory of a worker, MB of 2^20 bytes (default: 5
        to 200, and ten sizes from 512 to 10,240), and ``x86`` or ``arm``.
    concurrency
        Workers at once; new accounts may have 10.
    max_memory_mb
        Largest memory of a function, MB; new accounts may have 3,008.
    timeout
        Seconds that a worker may take.
    prices
        Prices to use instead of the built-in list, or the JSON file that contains them.

    Raises
    ------
    NotFoundError, BadInputError
        The folder does not exist or has no partition: see `perseid.survey.discover`.

    Examples
    --------
    >>> advice = perseid.plan(12.6 * 2**30, deadline=60, calibration="c.json")  # doctest: +SKIP
    >>> advice.option.memory_mb  # doctest: +SKIP
    1769
    """
    ask = Ask(
        data_bytes=_size(data),
        deadline=deadline,
        budget=budget,
        partitions_mb=tuple(partitions_mb) or PARTITIONS_MB,
        memories_mb=tuple(memories_mb) or MEMORIES_MB,
        architectures=tuple(architectures),
        limits=Limits(concurrency, memory_mb=max_memory_mb, timeout=timeout),
        sure=sure,
    )
    return advise(ask, _pace(calibration, rate), prices_of(prices))


def _size(data: str | Path | float) -> float:
    """The size of the data, bytes."""
    if isinstance(data, int | float):
        size = float(data)
    else:
        size = float(
            sum(partition.size for partition in discover(place_of(data, "data")).partitions)
        )
    if not size > 0:
        raise BadInputError(f"there is nothing at {data}")
    return size


def _pace(given: Calibration | str | Path | None, rate: float | None) -> Calibration:
    """The calibration on which a plan is based."""
    if given is None:
        given = calibrate()
    found = given if isinstance(given, Calibration) else Calibration.load(given)
    if rate is None:
        return found
    if not rate > 0:
        raise BadInputError(f"rate is {rate:g}: give rows per second, above 0")
    return replace(found, rows_per_second=rate, source=f"{found.source}; pace as given")
