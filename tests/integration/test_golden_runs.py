"""Runs that version 0.1.0 left are read and resumed; its code and ours give the same catalogue."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from golden import SOURCE, golden
from tiny import tiny_model, tiny_survey

from perseid.cli import main

RUNS = {
    "complete": "runs/complete",
    "resumed": "runs/resumed",
    "incomplete": "runs/incomplete",
    "aws": "runs/aws",
    "script": "bucket/result-partition-1MB/1GB/1",
}
WITH_CATALOGUE = ("complete", "resumed", "incomplete", "aws")
PARTITION_ROWS = {"1.pt": 8, "2.pt": 9, "3.pt": 10, "4.pt": 11}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The golden runs in a folder of the test's own, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return golden(tmp_path)


def catalogue(folder):
    return pq.read_table(folder / "catalogue.parquet")


def agree(one, other):
    """The same objects; numbers to the tolerance between processors."""
    assert one.column_names == other.column_names
    for name in one.column_names:
        left, right = (np.asarray(table[name].to_pylist()) for table in (one, other))
        if left.dtype.kind == "f":
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6, err_msg=name)
        else:
            assert left.tolist() == right.tolist(), name


@pytest.mark.parametrize("name", RUNS)
def test_tables_and_reports_of_old_runs(name, place, capsys):
    run = str(place / RUNS[name])
    assert main(["table", run]) == 0
    table = capsys.readouterr().out
    assert bool(re.search(r"INCOMPLETE(?!,?\s+and\s+its)", table)) is (name == "incomplete"), table
    assert main(["report", run, "--out", str(place / "report.html")]) == 0
    html = (place / "report.html").read_text()
    assert bool(re.search(r'class="[^"]*\bincomplete', html)) is (name == "incomplete")


@pytest.mark.parametrize("name", WITH_CATALOGUE)
def test_catalogues_of_old_runs(name, place):
    rows = catalogue(place / RUNS[name]).to_pylist()
    missing = "3.pt" if name == "incomplete" else None
    wanted = [(key, row) for key, n in PARTITION_ROWS.items() if key != missing for row in range(n)]
    assert [(entry["partition"], entry["row"]) for entry in rows] == wanted
    assert sorted(entry["anomaly_rank"] for entry in rows) == list(range(1, len(wanted) + 1))


@pytest.mark.parametrize("name", WITH_CATALOGUE)
def test_catalogues_of_old_runs_in_other_forms(name, place):
    """What is new opens what is old: units, conditions and formats need nothing of its footer."""
    rows = catalogue(place / RUNS[name])
    for suffix in ("fits", "vot", "parquet"):
        to = str(place / f"a.{suffix}")
        condition = ["--where", "flag == 0 and z_pred is not null"]
        assert main(["catalogue", str(place / RUNS[name]), "--to", to, *condition]) == 0
        table = Table.read(to)
        assert table["object_id"].tolist() == rows["object_id"].to_pylist()
        np.testing.assert_array_equal(table["z_pred"], rows["z_pred"])
    assert table.colnames == rows.column_names


def test_an_interrupted_run_is_resumed(place, capsys):
    kept = place / "runs/interrupted/ranks/0/predictions.parquet"
    before = kept.stat().st_mtime_ns
    assert main(["resume", "runs/interrupted"]) == 0
    assert kept.stat().st_mtime_ns == before, "what was done is not done again"
    summary = json.loads((place / "runs/interrupted/summary.json").read_text())
    assert (summary["status"], summary["rows"]["received"]) == ("complete", 38)
    agree(catalogue(place / "runs/interrupted"), catalogue(SOURCE / "runs/resumed"))


@pytest.mark.parametrize("name", ["complete", "resumed", "script"])
def test_a_complete_run_stays_as_it_is(name, place, capsys):
    folder = place / RUNS[name]
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    assert main(["resume", str(folder)]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before


def test_an_incomplete_run_stays_incomplete(place, capsys):
    assert main(["resume", "runs/incomplete"]) == 3
    assert "3.pt" in capsys.readouterr().err
    agree(catalogue(place / "runs/incomplete"), catalogue(SOURCE / "runs/incomplete"))


@pytest.mark.numbers
def test_the_old_code_and_ours_give_the_same_catalogue(tmp_path):
    """On one machine, to the bit; the files' layout and metadata do not count."""
    old = tmp_path / "old"
    with zipfile.ZipFile(SOURCE / "perseid-0.1.0-code.zip") as archive:
        archive.extractall(old)
    tiny_survey(tmp_path / "survey", rows=120, per_partition=25)
    tiny_model(tmp_path / "tiny.onnx")
    found = []
    for name, path in (("old", str(old)), ("ours", os.environ.get("PYTHONPATH", ""))):
        subprocess.run(
            [sys.executable, "-m", "perseid", "run", "--data", "survey", "--model", "tiny.onnx",
             "--world-size", "3", "--workers", "2", "--out", name, "--quiet"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=120,
        )  # fmt: skip
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert name == "ours" or manifest["version"] == "0.1.0"
        found.append(catalogue(tmp_path / name))
    for name in found[0].column_names:
        left, right = (table[name].combine_chunks() for table in found)
        assert [b and b.to_pybytes() for b in left.buffers()] == [
            b and b.to_pybytes() for b in right.buffers()
        ], name
