"""Calibrated intervals: from labelled objects to columns whose coverage is what was promised."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.errors import BadInputError
from perseid.model.identity import identify
from perseid.model.intervals import IntervalCalibration, read_calibration


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a survey to calibrate on, and another one."""
    folder = tmp_path_factory.mktemp("calibration")
    tiny_model(folder / "tiny.onnx")
    tiny_survey(folder / "validation", rows=400, per_partition=100, seed=1)
    tiny_survey(folder / "survey", rows=400, per_partition=100, seed=2)
    return folder


def test_a_model_is_calibrated_and_its_runs_have_intervals(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["model", "calibrate", "tiny.onnx", "validation", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["objects"] == 400
    stored = json.loads((place / "tiny.onnx.calibration.json").read_text())
    assert stored == told
    run = perseid.run("survey", model="tiny.onnx", results="run", progress=False, world_size=2)
    table = run.catalogue().to_astropy()
    z, true = np.asarray(table["z_pred"], float), np.asarray(table["z_spec"], float)
    for level, low, high in ((0.68, "z_lo", "z_hi"), (0.95, "z_lo95", "z_hi95")):
        half = told["half_width_over_1_plus_z"][f"{level:g}"] * (1 + z)
        np.testing.assert_allclose(table[low], z - half, rtol=1e-6)
        np.testing.assert_allclose(table[high], z + half, rtol=1e-6)
        inside = np.mean((table[low] <= true) & (true <= table[high]))
        assert abs(inside - level) < 0.08
        assert run.summary["redshift"]["coverage"][f"{level:g}"] == pytest.approx(inside)
    assert [one.kind for one in run.catalogue().outputs] == ["redshift", *["interval"] * 4]
    again = perseid.calibrate_model("tiny.onnx", run, to="elsewhere.json", progress=False)
    assert IntervalCalibration.from_json((place / "elsewhere.json").read_bytes(), "here") == again


def test_the_default_model_is_shipped_with_one_that_is_of_it():
    found = read_calibration("default")
    assert found is not None
    assert found.digest == identify("default").digest
    assert found.objects > 1000
    assert 0 < found.widths[0.68] < found.widths[0.95] < 0.1


def test_a_calibration_of_another_model_gives_a_note_and_no_columns(place, tmp_path):
    tiny_model(tmp_path / "other.onnx", groups=False)
    stored = IntervalCalibration({0.68: 0.1}, 10, "sha256:another").to_json()
    (tmp_path / "other.onnx.calibration.json").write_text(stored)
    run = perseid.run(place / "survey", model=str(tmp_path / "other.onnx"), anomaly="none",
                      results=str(tmp_path / "run"), progress=False)  # fmt: skip
    assert "z_lo" not in run.catalogue().column_names
    assert any("was made for another model" in note for note in run.summary["warnings"])


def test_a_run_that_began_without_goes_on_without(place, tmp_path):
    """What a run is was decided when it began: a resumption does not mix in other columns."""
    tiny_model(tmp_path / "new.onnx")
    run = perseid.run(place / "survey", model=str(tmp_path / "new.onnx"), world_size=2,
                      results=str(tmp_path / "run"), progress=False)  # fmt: skip
    before = run.catalogue()
    digest = run.manifest.model.digest
    (tmp_path / "new.onnx.calibration.json").write_text(
        IntervalCalibration({0.68: 0.1, 0.95: 0.2}, 10, digest).to_json()
    )
    (tmp_path / "run/1.json").unlink()
    again = perseid.resume(tmp_path / "run", progress=False)
    assert again.catalogue().difference(before) is None


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1}', "[1]", '{"schema": 9, "model": "a"}'])
def test_a_broken_file_is_named_before_the_run(place, tmp_path, text, capsys):
    tiny_model(tmp_path / "tiny.onnx")
    (tmp_path / "tiny.onnx.calibration.json").write_text(text)
    out = str(tmp_path / "run")
    code = main(["run", "--data", str(place / "survey"), "--model", str(tmp_path / "tiny.onnx"),
                 "--out", out, "--quiet"])  # fmt: skip
    assert code != 0
    assert "tiny.onnx.calibration.json is not a calibration" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_calibrated(place, tmp_path):
    tiny_survey(tmp_path / "few", rows=10, per_partition=10)
    with pytest.raises(BadInputError, match="10 calibration objects are too few"):
        perseid.calibrate_model(place / "tiny.onnx", tmp_path / "few", progress=False)
    with pytest.raises(BadInputError, match="name another place by `to`"):
        perseid.calibrate_model("default", place / "survey", progress=False)
