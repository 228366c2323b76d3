"""What ranks computed with is in their records; a run whose ranks differ says so."""

from __future__ import annotations

import json
import platform

import numpy as np
import pytest
from golden import golden
from tiny import tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.pipeline.environment import RankEnvironment, differences


def test_each_record_names_processor_and_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_survey(tmp_path / "survey", rows=20, per_partition=10)
    tiny_model(tmp_path / "tiny.onnx")
    command = ["run", "--data", "survey", "--model", "tiny.onnx", "--out", "one", "--workers", "1"]
    assert main(command) == 0
    assert "the ranks used different" not in capsys.readouterr().out
    for rank in (0, 1):
        found = json.loads((tmp_path / f"one/{rank}.json").read_text())["environment"]
        assert found["versions"]["numpy"] == np.__version__
        assert found["versions"]["perseid"] == perseid.__version__
        assert found["versions"]["python"] == platform.python_version()
        assert set(found["versions"]) == {"python", "perseid", "numpy", "onnxruntime"}
        assert found["processor"]
        assert "AVX2" in found["instructions"] or "ASIMD" in found["instructions"]


def test_a_run_whose_ranks_differ_says_so(tmp_path, monkeypatch, capsys):
    """An interrupted run is resumed: rank 0 was computed elsewhere, with another onnxruntime."""
    monkeypatch.chdir(golden(tmp_path))
    record = tmp_path / "runs/interrupted/0.json"
    there = RankEnvironment.here().to_json() | {"processor": "Another"}
    there["versions"] = {**there["versions"], "onnxruntime": "1.20.0"}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"environment": there}))
    assert main(["resume", "runs/interrupted"]) == 0
    capsys.readouterr()
    summary = json.loads((tmp_path / "runs/interrupted/summary.json").read_text())
    notes = " ".join(summary["warnings"])
    assert "different processors" in notes
    assert "different versions of onnxruntime" in notes
    assert "1.20.0 (rank 0)" in notes
    assert "versions of numpy" not in notes


def test_ranks_without_an_environment_do_not_count():
    here = RankEnvironment.here().to_json()
    assert differences({}) == []
    assert differences({1: here, 2: json.loads(json.dumps(here))}) == []


@pytest.mark.parametrize("part", ["processor", "instructions"])
def test_one_difference_one_sentence(part):
    here = RankEnvironment.here().to_json()
    other = here | {part: ["AVX2"] if part == "instructions" else "Another"}
    [said] = differences({0: here, 1: other, 2: other})
    assert said.endswith("(2 ranks, first 1)")
