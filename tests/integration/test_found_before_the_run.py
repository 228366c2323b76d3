"""What no rank could use is found once, before the run starts; nothing is left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tiny import tiny_cutouts, tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.run_plan import make_plan
from perseid.errors import BadInputError
from perseid.measure.calibration import Pace
from perseid.pipeline.checks import count_rows
from perseid.pipeline.initialize import plan
from perseid.pipeline.request import RunRequest
from perseid.storage import Storage
from perseid.survey.reader import write_cutouts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    tiny_model(tmp_path / "m.onnx")
    return tmp_path


def failing_model(path: Path) -> None:
    """It loads, and cannot compute: it asks for a row that is not there."""
    model = onnx.load(tiny_model(path))
    far = onnx.numpy_helper.from_array(np.array([1000], np.int64), "far")
    model.graph.initializer.append(far)
    next(node for node in model.graph.node if "redshift" in node.output).output[0] = "almost"
    model.graph.node.append(
        helper.make_node("Cast", ["mean0"], ["near"], to=onnx.TensorProto.INT64)
    )
    model.graph.node.append(helper.make_node("Add", ["near", "far"], ["row"]))
    model.graph.node.append(helper.make_node("Gather", ["almost", "row"], ["redshift"], axis=0))
    onnx.save(model, path)


def spoil(folder: Path, what: str) -> list[str]:
    """Make a run impossible; the further words of the command line."""
    model = folder / "m.onnx"
    match what:
        case "no model":
            model.unlink()
        case "not a model":
            model.write_bytes(b"nonsense")
        case "a model that fails":
            failing_model(model)
        case "images of another size":
            tiny_model(model, side=16)
        case "images of other bands":
            tiny_model(model, bands=4)
        case "no such features":
            tiny_model(model, groups=False)
            return ["--anomaly", "embedding"]
        case "no int8 form":
            return ["--precision", "int8"]
        case "no data":
            return ["--data", "nowhere"]
        case "a place that is taken":
            (folder / "run").mkdir()
            (folder / "run" / "manifest.json").write_text("{}")
    return []


SAID = {
    "no model": "there is no model at",
    "not a model": "is not a model that onnxruntime can load",
    "a model that fails": "fails when it computes",
    "images of another size": "no partition has the inputs that the model 'tiny' takes",
    "images of other bands": "no partition has the inputs that the model 'tiny' takes",
    "no such features": "the model has no 'embedding' features",
    "no int8 form": "there is no model at",
    "no data": "there is nothing at",
    "a place that is taken": "holds results of a former run",
}


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
@pytest.mark.parametrize("what", SAID)
def test_it_is_said_once_and_nothing_is_left(folder: Path, what: str, dry: bool, capsys):
    words = ["--data", "data", "--model", "m.onnx", "--out", "run"]
    words += spoil(folder, what) + (["--dry-run"] if dry else ["--workers", "1"])
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    assert main(["run", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert SAID[what] in said[-1]
    assert [line for line in said if line.startswith("perseid:")] == said[-1:]
    assert "resume" not in said[-1]
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_partitions_that_fit_are_enough(folder: Path):
    """One partition of another shape is its rank's to name."""
    write_cutouts(tiny_cutouts(10, side=16), folder / "data" / "1.pt")
    words = ["--data", "data", "--model", "m.onnx", "--out", "run", "--workers", "1", "--quiet"]
    assert main(["run", *words]) == 3
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert [part["key"] for part in summary["partitions"]["missing"]] == ["1.pt"]


def test_a_dry_run_counts_the_rows_and_names_what_cannot_be_read(folder: Path, capsys):
    """From the headers: sizes say nothing of compressed files."""
    write_cutouts(tiny_cutouts(25), folder / "data" / "4.npz")
    (folder / "data" / "5.pt").write_bytes(b"cut off")
    words = ["--data", "data", "--model", "m.onnx", "--out", "run", "--dry-run", "--json"]
    assert main(["run", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == 55
    assert list(plan["unreadable"]) == ["5.pt"]
    assert main(["run", *words[:-1]]) == 0
    out = capsys.readouterr().out
    assert "MB, 55 objects" in out
    assert "5.pt cannot be read: " in out


def test_a_dry_run_says_that_a_worker_needs_more_memory(folder: Path):
    keys = {"data": "data", "model": "m.onnx", "results": "run"}
    manifest = plan(RunRequest.parse(keys))
    counts = count_rows(Storage(manifest.data_url), manifest.partitions)
    pace = Pace(rows_per_second=1000.0, ready_seconds=0.1, peak_mb=400.0, row_bytes=1000)
    assert make_plan(manifest, LocalOptions(memory_mb=448), pace, counts).rows == 30
    with pytest.raises(BadInputError, match=r"takes 400 MB .* 300 MB: give `memory_mb=512`"):
        make_plan(manifest, LocalOptions(memory_mb=300), pace, counts)


def test_memory_that_no_worker_can_do_with_is_refused_before_the_run(folder: Path):
    """An empty catalogue of ranks that all ran out of memory helps nobody."""

    def engine(memory_mb: int) -> perseid.LocalEngine:
        return perseid.LocalEngine(LocalOptions(workers=1, memory_mb=memory_mb))

    keys = {"model": "m.onnx", "results": "run", "progress": False}
    with pytest.raises(BadInputError, match=r"takes \d+ MB .* 40 MB: give `memory_mb=") as told:
        perseid.run("data", engine=engine(40), **keys)
    assert not (folder / "run").exists()
    enough = int(str(told.value).rpartition("=")[2].rstrip("`"))
    assert perseid.run("data", engine=engine(enough), **keys).incomplete is None


def test_a_dry_run_says_when_a_script_would_run(folder: Path, capsys):
    root = folder / "buckets"
    (root / "b" / "mine").mkdir(parents=True)
    (root / "b" / "mine" / "inference.py").write_text("raise SystemExit(1)")
    (folder / "data").rename(root / "b" / "25MB")
    payload = {
        "bucket": "b", "S3_object_name": "mine", "script": "/tmp/mine/inference.py",
        "result_path": "results", "data_bucket": "b", "data_prefix": "25MB",
        "bucket_root": str(root),
    }  # fmt: skip
    (folder / "payload.json").write_text(json.dumps(payload))
    assert main(["run", "payload.json", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "runs       the script /tmp/mine/inference.py, not a model of perseid" in out
    assert "objects/s" not in out
    assert main(["run", "payload.json", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"]["SCRIPT"] == "/tmp/mine/inference.py"


@pytest.mark.parametrize("engine", [perseid.SlurmEngine, perseid.DaskEngine])
def test_clusters_refuse_such_memory_too(folder: Path, engine: type):
    """Before they ask the cluster anything: this machine tells what a worker takes."""
    manifest = plan(RunRequest.parse({"data": "data", "model": "m.onnx", "results": "run"}))
    large = str(tiny_model(folder / "large.onnx", side=1024))  # 21 MB per row
    manifest = replace(manifest, settings=replace(manifest.settings, model_url=large))
    with pytest.raises(BadInputError, match=r"takes \d+ MB .* may take 130 MB: give `memory_mb="):
        engine(memory_mb=130).check(manifest)
