"""Commands that report print the same as JSON, and nothing beside it on standard output."""

from __future__ import annotations

import json

import pytest
from engine import Lab


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    lab.survey(partitions=2)
    assert lab.run().incomplete is None
    return lab


def test_what_a_run_left_as_json(lab):
    def said(*words):
        status, out, err = lab.call(*words, "--json")
        assert status == 0, err
        return json.loads(out)

    runs, partitions = said("table", "run")
    assert runs["rows"][0]["world"] == 2
    assert runs["rows"][0]["cost"] > 0
    assert runs["columns"]["cost"] == "Cost Estimate ($)"
    assert len(partitions["rows"]) == 1
    assert said("status", "run")["status"] == "complete"
    status, out, _ = lab.call("logs", "run", "--json")
    assert status == 0
    assert {json.loads(line)["rank"] for line in out.splitlines()} <= {0, 1}
    assert said("report", "run")["bytes"] == (lab.folder / "run" / "report.html").stat().st_size
    assert said("split", "survey", "cut", "--rows", "5")["partitions"] == 2
    assert said("model", "info", "tiny.onnx")["height"] == 8
    estimates = said("comm", "model", "allreduce", "-n", "8", "-m", "8")["estimates"]
    assert [one["transport"] for one in estimates if one["chosen"]] == ["direct"]
    assert said("simulate", "made", "--rows", "3", "--seed", "1")["rows"] == 3
