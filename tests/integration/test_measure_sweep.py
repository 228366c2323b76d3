"""A micro grid, really run: resumed, measured and drawn."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.measure.present.report import render_report
from perseid.measure.sources.load import load_runs


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    tiny_survey(tmp_path / "survey", rows=48, per_partition=48)
    model = tiny_model(tmp_path / "model.onnx")
    return [
        "sweep", "--data", str(tmp_path / "survey"), "--out", str(tmp_path / "sweep"),
        "--model", str(model), "--partition-sizes", "16KB,32KB", "--workers", "2",
        "--repeat", "1",
    ]  # fmt: skip


def test_a_sweep_from_python_and_as_json(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [run["status"] for run in said["runs"]] == ["complete"] * 2
    assert all(Path(path).is_file() for path in said["files"])
    done = perseid.sweep(
        tmp_path / "survey",
        tmp_path / "sweep",
        partition_sizes=["16KB", "32KB"],
        repeat=1,
        model=str(tmp_path / "model.onnx"),
        engine=perseid.LocalEngine(workers=2),
    )
    assert [one.seconds for one in done.cells] == [None, None]
    assert done.incomplete == 0
    assert len(done.runs) == 2


def test_a_micro_grid_is_run_resumed_and_drawn(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    assert main([*command, "--data-sizes", "32KB,64KB"]) == 0
    said = capsys.readouterr().out
    assert said.count("complete, ") == 4
    cells = sorted(str(p.parent.relative_to(out)) for p in out.rglob("manifest.json"))
    assert cells == [
        f"result-partition-{p}/{d}/1" for p in ("16KB", "32KB") for d in ("32KB", "64KB")
    ]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("summary.json")}
    broken = out / cells[0] / "summary.json"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {"status": "incomplete"}))
    assert main([*command, "--data-sizes", "32KB,64KB", "--batch-sizes", "4,512"]) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 3
    assert said.count("complete, ") == 5
    after = {p: p.stat().st_mtime_ns for p in before}
    assert [p for p in before if before[p] != after[p]] == [broken]
    with open(out / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["Batch Size"] for row in rows} == {"4", "512"}
    assert all(float(row["Cost Estimate ($)"]) > 0 for row in rows)
    assert all(len(set(row["Ranks received / expected"].split("/"))) == 1 for row in rows)
    page = (out / "sweep.html").read_text()
    for name in ("whole-data", "a-data", "b-data", "c-data", "cost-data", "model-batch"):
        assert f'id="{name}"' in page
        assert (out / "plots" / f"{name}.svg").is_file()
    (run,) = load_runs([str(out / cells[1])])
    assert run.partition == "16KB"
    assert run.data == "64KB"
    assert {report.memory_mb for report in run.reports} == {1769}
    assert "Complete" in render_report(run)


def test_what_cannot_be_swept_is_said_before_anything_runs(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--data-sizes", "1GB"]) == 2
    assert "leave 1GB out of --data-sizes" in capsys.readouterr().err
    assert not list((tmp_path / "sweep").rglob("manifest.json"))
    tiny_survey(tmp_path / "other", rows=20, per_partition=20)
    elsewhere = [str(tmp_path / "other") if w == str(tmp_path / "survey") else w for w in command]
    assert main(elsewhere) == 2
    assert "choose another --out" in capsys.readouterr().err
