"""Calibrate a model's redshift intervals on objects of known redshift."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from perseid.api.run import Run
from perseid.api.runs import open_run, run
from perseid.errors import BadInputError
from perseid.model.intervals import IntervalCalibration, calibration_place
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.events import Report
from perseid.plaintext import option
from perseid.storage import Storage

Z_PRED, Z_SPEC = "z_pred", "z_spec"


def calibrate_model(
    model: str | Path,
    data: str | Path | Run,
    *,
    to: str | Path | None = None,
    progress: bool | Report = True,
    **keys: Any,
) -> IntervalCalibration:
    """Calibrate intervals around a model's redshifts, for use by later runs.

    Split conformal prediction: for new objects from the same population as the calibration set, the
    intervals contain the true redshift as often as they promise (68 and 95 %), whatever the model.

    Parameters
    ----------
    model
        Path or URL of the model, or ``default``.
    data
        A survey with spectroscopic redshifts that the model was not trained on; or a finished run
        of the model over such a survey (its folder, its URL, or a `Run`).
    to
        Where to write the calibration; by default next to the model as ``MODEL.calibration.json``,
        where runs find it.
    progress
        As for `run`.
    **keys
        Keys of a request that say how the survey is read, such as ``columns``.

    Raises
    ------
    BadInputError
        The survey has no redshifts or too few objects, the model predicts no redshift, or the run
        does not state its model.

    Examples
    --------
    >>> perseid.calibrate_model("mine.onnx", "validation/").widths  # doctest: +SKIP
    {0.68: 0.0126, 0.95: 0.0312}
    """
    url = str(model)
    place = str(to) if to is not None else calibration_place(url)
    if isinstance(data, Run):
        found = _of_run(data)
    elif Storage(data).exists("manifest.json"):
        found = _of_run(open_run(data))
    else:
        with tempfile.TemporaryDirectory(prefix="perseid-calibrate-") as folder:
            # A temporary run without anomaly scores, because only its redshifts are needed.
            results = str(Path(folder) / "run")
            found = _of_run(
                run(data, model=url, anomaly="none", results=results, progress=progress, **keys)
            )
    store, key = Storage.holding(place)
    store.put(key, found.to_json().encode())
    return found


def _of_run(done: Run) -> IntervalCalibration:
    """Compute the calibration from a run's catalogue."""
    identity, stored = done.manifest.model, StoredCatalogue(Storage(done.url))
    if identity is None:
        raise BadInputError(f"the run at {done.url} does not say which model it used: run it again")
    if Z_PRED not in stored.schema.names:
        raise BadInputError(f"the model {identity.uri} predicts no redshift: nothing to calibrate")
    table = stored.table([Z_PRED, Z_SPEC])
    z_pred, z_spec = (
        np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)
        for name in (Z_PRED, Z_SPEC)
    )
    if not np.isfinite(z_spec).any():
        raise BadInputError(
            f"{done.manifest.data_url} has no redshifts to calibrate with: name the column that "
            f"holds them ({option('columns', {'redshift': 'NAME'})})"
        )
    return IntervalCalibration.of(z_pred, z_spec, identity.digest, done.manifest.data_url)
