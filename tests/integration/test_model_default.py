"""The shipped model is what its card says."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

import perseid.model
from perseid.model.runtime import ModelRuntime
from perseid.science import redshift_metrics
from perseid.survey.simulation.object_rendering import render_objects, table_rows_of
from perseid.survey.simulation.sdss import load_table
from perseid.survey.splits import TEST, assign_split

DATA = Path(perseid.model.__file__).parent / "data"
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((DATA / "default.json").read_text())


def test_it_is_under_ten_megabytes():
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 10e6


def test_the_card_is_written_from_the_figures(figures):
    write = runpy.run_path(str(SCRIPTS / "default_model_card.py"))["card"]
    card = (DATA / "MODEL_CARD.md").read_text()
    assert card == write(figures)
    model = figures["redshift"]["model"]
    assert f"{model['mae']:.5f} | {model['mse']:.6f}" in card
    for found in figures["anomalies"]["both"]:
        assert f"| {found['kind']} | {found['n']} | {found['roc_auc']:.3f} /" in card
    assert figures["model"]["bytes"] == (DATA / "default.onnx").stat().st_size


def test_it_beats_both_baselines_on_held_out_objects(figures):
    redshift = figures["redshift"]
    assert redshift["model"]["n"] >= 3000
    for baseline in ("magnitudes", "neighbours"):
        for figure in ("mae", "nmad"):
            assert redshift["model"][figure] < redshift[baseline][figure]
            assert redshift[f"over_{baseline}"][figure]["high"] < 0


def test_held_out_objects_rendered_again_give_the_figures_of_the_card(figures):
    sample = figures["sample"]
    ids = np.array(sample["object_id"])
    assert (assign_split(table_rows_of(ids)) == TEST).all()
    survey = render_objects(
        figures["data"]["training_seed"], ids, anomaly_rate=0.0, table=load_table()
    )
    got = ModelRuntime.load("default", threads=1).predict(survey.images, survey.magnitudes)
    metrics = redshift_metrics(got.redshift, survey.redshift)
    assert metrics.n == sample["n"]
    assert metrics.mae == pytest.approx(sample["mae"], abs=1e-4)
    assert metrics.nmad == pytest.approx(sample["nmad"], abs=3e-4)
    assert metrics.bias == pytest.approx(sample["bias"], abs=1e-4)
    # and the sample is one of the whole: within four standard errors
    assert metrics.mae == pytest.approx(figures["redshift"]["model"]["mae"], rel=4 / 256**0.5)
