"""Measure how fast a worker is, from small runs or on this machine, as the basis of plans."""

from __future__ import annotations

from pathlib import Path

from perseid.engines import worker_speed
from perseid.engines.local.local_options import cores
from perseid.measure.calibration import Calibration, from_paces, from_runs
from perseid.measure.sources.load import load_runs
from perseid.model.runtime.processor import has_avx512
from perseid.pipeline.items import WorkItem
from perseid.storage import Location

__all__ = ["Calibration", "calibrate"]

REPETITIONS = 3


def calibrate(
    *runs: str | Path, model: str | Path = "default", memory_mb: float | None = None
) -> Calibration:
    """Measure how fast a worker is, like ``perseid calibrate``; `plan` is based on it.

    Parameters
    ----------
    *runs
        Small runs, on AWS or on this machine. Without any, the model is timed on this machine:
        three times with one thread, and three times with two if it has two cores. If it has
        AVX-512, the speed is lowered to 0.72 of it: Lambda promises AVX2 and nothing newer.
    model
        Path or URL of the model to time, or ``default``.
    memory_mb
        Memory of the runs' workers, MB, if their REPORT lines are missing.

    Raises
    ------
    BadInputError
        No rank of the runs has enough rows, or the memory of their workers is unknown.
    NotFoundError
        A run does not exist.
    BadModelError
        The model cannot be loaded.

    Examples
    --------
    >>> pace = perseid.calibrate()  # doctest: +SKIP
    >>> perseid.plan(12.6e9, deadline=60, calibration=pace).option.memory_mb  # doctest: +SKIP
    1769
    """
    if runs:
        return from_runs(load_runs(map(str, runs)), memory_mb)
    url = "default" if str(model) == "default" else Location.parse(str(model)).url
    place = "memory://calibration"
    item = WorkItem("calibration", 0, 1, place, place, (), model_url=url)
    one = [worker_speed.measure(item, 1) for _ in range(REPETITIONS)]
    both = range(REPETITIONS) if cores() > 1 else ()
    two = [worker_speed.measure(item, 2) for _ in both]
    return from_paces(one, two, newer_than_avx2=has_avx512())
