"""Calibrate the default model's intervals: ``python scripts/calibrate_default_model.py``.

On fresh drawings of the validation galaxies, which the training used to choose its epoch and never
to fit; then the coverage on the held-out galaxies, which nothing was chosen on, is printed. Plain
objects only, as for the other figures of the model card. Takes minutes.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perseid.model.identity import identify
from perseid.model.intervals import SHIPPED, IntervalCalibration
from perseid.model.runtime import DEFAULT, ModelRuntime
from perseid.science import interval_coverage
from perseid.survey.simulation.object_rendering import object_ids, render_objects, table_rows_of
from perseid.survey.simulation.sdss import load_table
from perseid.survey.splits import TEST, VALIDATION, assign_split

SEED = 11
"""Of the drawings: neither the training's nor that of the model card's figures."""
PLACE = Path(__file__).parents[1] / "src/perseid/model/data" / SHIPPED


def main() -> None:
    """Write the calibration, and say what it promises and holds."""
    digest = identify(DEFAULT).digest
    z_pred, z_spec = predicted(VALIDATION)
    data = f"simulated survey, seed {SEED}: validation galaxies without anomalies"
    calibration = IntervalCalibration.of(z_pred, z_spec, digest, data)
    PLACE.write_text(calibration.to_json(), encoding="utf-8")
    print(PLACE.read_text(encoding="utf-8"))
    z_pred, z_spec = predicted(TEST)
    for level, width in calibration.widths.items():
        half = width * (1 + z_pred)
        held = interval_coverage(z_pred - half, z_pred + half, z_spec)
        print(f"{level:.0%} intervals hold {held:.2%} of {len(z_spec)} held-out galaxies")


def predicted(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and true redshifts of one drawing of the galaxies on one side of the split."""
    table = load_table()
    ids = object_ids(SEED, len(table), len(table))
    ids = ids[assign_split(table_rows_of(ids)) == side]
    render = partial(render_objects, SEED, anomaly_rate=0.0, table=table)
    parts = np.array_split(ids, max(1, len(ids) // 256))
    runtime = ModelRuntime.load(DEFAULT)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        found = [
            (np.asarray(runtime.predict(cutouts.images, cutouts.magnitudes).redshift, np.float64),
             np.asarray(cutouts.redshift, np.float64))
            for cutouts in pool.map(render, parts)
        ]  # fmt: skip
    return np.concatenate([z for z, _ in found]), np.concatenate([z for _, z in found])


if __name__ == "__main__":
    main()
