"""Estimate time, memory and cost of a run on this machine without starting it."""

from __future__ import annotations

from typing import Any

from perseid.api.runs import Data, request_of
from perseid.compat.scripts.script_job import script_job
from perseid.engines import worker_speed
from perseid.engines.local import LocalEngine
from perseid.engines.local.local_options import options_of
from perseid.engines.run_plan import RunPlan, make_plan
from perseid.errors import BadInputError
from perseid.pipeline import initialize
from perseid.pipeline.checks import count_rows
from perseid.pipeline.claim import FormerRun, refuse_if_taken
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.survey_columns import read_options
from perseid.storage import Storage


def estimate(
    data: Data | None = None, *, replace: bool = False, rate: float | None = None, **keys: Any
) -> RunPlan:
    """Estimate time, memory and cost of a run, like ``perseid run --dry-run``.

    Parameters
    ----------
    data, **keys
        As for `run`.
    replace
        Whether there may be an earlier run at the place of the results.
    rate
        Rows per second of one worker; None times the model for a second.

    Returns
    -------
    RunPlan
        Rows, seconds of each rank and of all together on this machine, memory of a worker, and
        the cost on AWS.

    Raises
    ------
    BadInputError
        The request is for a script or is impossible, or a worker needs more memory than a rank
        may take.
    RunError
        There is already a run at the place of the results.

    Examples
    --------
    >>> perseid.estimate("survey/", world_size=8).map_seconds  # doctest: +SKIP
    12.4
    """
    request = request_of(data, LocalEngine(), keys)
    manifest = look_ahead(request, replace=replace)
    if manifest.script is not None:
        raise BadInputError(
            "the request is for a script, whose time cannot be estimated: give `model` to use "
            "perseid's runtime"
        )
    return estimate_run(manifest, request, rate=rate)


def look_ahead(request: RunRequest, *, replace: bool = False) -> Manifest:
    """The manifest with which a run of this request would begin.

    Raises
    ------
    BadInputError, NotFoundError, RunError
        As when the run is started.
    """
    place = Storage(request.results_url)
    if replace:
        FormerRun.at(place)
    else:
        refuse_if_taken(place)
    return initialize.plan(request, script_job(request))


def estimate_run(manifest: Manifest, request: RunRequest, *, rate: float | None = None) -> RunPlan:
    """Count the rows of a run, time its model and estimate time, memory and cost."""
    options = options_of(request)
    counts = count_rows(
        Storage(manifest.data_url), manifest.partitions, read_options(manifest.settings)
    )
    pace = worker_speed.measure(manifest.item(0), options.threads)
    if rate is not None:
        pace = worker_speed.at_rate(pace, rate)
    return make_plan(manifest, options, pace, counts)
