"""A run keeps what it began with: one model, one set of options, one whole catalogue."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny import tiny_cutouts, tiny_model, tiny_survey

from perseid import __version__
from perseid.cli import main
from perseid.errors import BadModelError, RunIncompleteError
from perseid.model.identity import ModelIdentity, identify
from perseid.model.runtime import ModelRuntime
from perseid.pipeline.initialize import initialize
from perseid.pipeline.items import RESULT_SETTINGS, WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.request import RunRequest
from perseid.pipeline.resumption import with_current_model
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey.reader import write_cutouts

OTHER = {
    "signature": {"name": "another"},
    "fit": "crop", "layout": "channels-last", "lists": ["pdf"], "intervals": {"0.68": 0.5},
    "precision": "int8", "batch_size": 8, "anomaly": "none", "top": 5,
    "missing": {"redshift": [7.0]}, "columns": {"redshift": ["Z_SPEC"]}, "bands": ["u"],
}  # fmt: skip
"""Another value of each option that changes results."""


@pytest.fixture
def begun(tmp_path: Path):
    """A run of three ranks, of which none has worked."""
    tiny_survey(tmp_path / "data", rows=30, per_partition=10)
    tiny_model(tmp_path / "m.onnx")
    keys = {"data": tmp_path / "data", "results": tmp_path / "run", "model": tmp_path / "m.onnx"}
    return initialize(RunRequest.parse({key: str(value) for key, value in keys.items()})).items


def change(model: Path, keep: Path | None = None) -> None:
    """Another model in the place of this one: the same shapes, other weights."""
    if keep is not None:
        shutil.copy(model, keep)
    graph = onnx.load(model)
    share = next(one for one in graph.graph.initializer if one.name == "share")
    share.CopyFrom(numpy_helper.from_array(np.float32(0.5), "share"))
    onnx.save(graph, model)


def resume(folder: Path, *words: str) -> int:
    return main(["resume", str(folder / "run"), "--quiet", "--workers", "1", *words])


def status(folder: Path) -> str:
    return str(json.loads((folder / "run" / "summary.json").read_text())["status"])


def test_the_identity_stands_in_the_manifest_and_in_each_record(begun, tmp_path: Path):
    records = [work(item).to_json() for item in begun]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    model = identify(str(tmp_path / "m.onnx"))
    assert (model.kind, model.precision, model.device) == ("onnx", "float32", "cpu")
    assert ModelIdentity.from_json(manifest["model"]).digest == model.digest
    for record in records:
        found = ModelIdentity.from_json(record["model"])
        assert (found.digest, model.difference(found)) == (model.digest, "")
        assert found.signature.startswith("sha256:")
        assert record["settings"] == begun[0].result_settings()
        assert list(record["settings"]) == list(RESULT_SETTINGS)
    assert summarize(Storage(tmp_path / "run"))["model"] == manifest["model"]


def test_the_default_model_is_stored_resolved():
    model = identify("default")
    assert (model.kind, model.uri, model.version) == ("default", "default", __version__)
    assert identify("default", "int8").int8_digest == identify("default.int8").digest


def test_a_model_replaced_while_the_run_goes_on_is_refused_at_work(begun, tmp_path: Path):
    work(begun[0])
    change(tmp_path / "m.onnx")
    with pytest.raises(BadModelError, match="is not the one that the run began with"):
        work(begun[1])
    with pytest.raises(RunIncompleteError, match="ranks 1, 2 of 3"):
        summarize(Storage(tmp_path / "run"))


def test_a_model_written_while_a_rank_works_is_refused(begun, tmp_path: Path):
    runtime = ModelRuntime.load(tmp_path / "m.onnx")
    change(tmp_path / "m.onnx", keep=tmp_path / "former")
    with pytest.raises(BadModelError, match="was changed while it was in use"):
        work(begun[0], runtime=runtime)
    assert not (tmp_path / "run" / "0.json").exists()
    shutil.copy(tmp_path / "former", tmp_path / "m.onnx")  # the same content counts as the same
    assert work(begun[0], runtime=runtime).rows == 10


def test_a_record_of_another_model_is_refused_at_the_merge(begun, tmp_path: Path):
    work(begun[0])
    work(begun[2])
    change(tmp_path / "m.onnx")
    work(dataclasses.replace(begun[1], model=None))  # a worker that does not look
    with pytest.raises(RunIncompleteError, match="used another model than the run"):
        summarize(Storage(tmp_path / "run"))


@pytest.mark.parametrize("name", RESULT_SETTINGS)
def test_a_record_of_other_options_is_refused_at_the_merge(begun, tmp_path: Path, name: str):
    for item in begun:
        work(item)
    path = tmp_path / "run" / "1.json"
    record = json.loads(path.read_text())
    record["settings"][name] = OTHER[name]
    path.write_text(json.dumps(record))
    with pytest.raises(RunIncompleteError, match=f"was made with {name} "):
        summarize(Storage(tmp_path / "run"))


def test_a_resumption_refuses_another_model_unless_it_may_mix(begun, tmp_path: Path, capsys):
    work(begun[0])
    change(tmp_path / "m.onnx", keep=tmp_path / "former")
    assert resume(tmp_path) == 2
    said = capsys.readouterr().err
    assert "is not the one that the run at" in said
    assert "--allow-model-change" in said
    assert said.count("\n") == 1
    assert resume(tmp_path, "--allow-model-change") == 3
    assert "is mixed: ranks 1, 2 of 3 used another model" in capsys.readouterr().err
    assert status(tmp_path) == "mixed"
    shutil.copy(tmp_path / "former", tmp_path / "m.onnx")
    assert resume(tmp_path) == 3  # never complete, whatever lies there now
    assert status(tmp_path) == "mixed"


def test_a_resumption_finds_the_model_gone(begun, tmp_path: Path, capsys):
    work(begun[0])
    (tmp_path / "m.onnx").rename(tmp_path / "former.onnx")
    assert resume(tmp_path) == 2
    assert "there is no model at" in capsys.readouterr().err
    (tmp_path / "former.onnx").rename(tmp_path / "m.onnx")
    assert resume(tmp_path) == 0
    assert status(tmp_path) == "complete"


def test_a_default_model_that_is_no_longer_shipped_is_refused(begun, tmp_path: Path, capsys):
    """As after an update that brings another default model."""
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["model_url"] = "default"
    manifest["model"] |= {"kind": "default", "uri": "default", "version": "0.0.9"}
    path.write_text(json.dumps(manifest))
    assert resume(tmp_path) == 2
    assert "the model default is not the one that the run at" in capsys.readouterr().err


def test_a_model_replaced_while_a_run_begins_is_refused(begun, tmp_path: Path):
    """On AWS a client claims the place, and a function goes on with the run of that id."""
    plain = json.loads((tmp_path / "run" / "manifest.json").read_text())
    request, run_id = RunRequest.parse(plain["request"]), plain["run_id"]
    assert initialize(request, run_id=run_id).manifest.model == begun[0].model
    change(tmp_path / "m.onnx")
    with pytest.raises(BadModelError, match="was replaced while the run began"):
        initialize(request, run_id=run_id)


def test_the_workers_own_default_model_counts(tmp_path: Path):
    """The client's may be another: the stack was deployed with `--model`, or a newer version."""
    (tmp_path / "data").mkdir()
    write_cutouts(tiny_cutouts(4, side=32), tmp_path / "data" / "1.pt")
    given = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run")}
    initialize(RunRequest.parse(given), run_id="one")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["digest"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(manifest))
    begun = initialize(RunRequest.parse(given), run_id="one").manifest
    assert begun.model is not None
    assert begun.model.digest == identify("default").digest
    theirs = Manifest.from_json(manifest)
    assert with_current_model(theirs, own_default=False).resumed_with is None
    with pytest.raises(BadModelError, match="is not the one that the run at"):
        with_current_model(theirs)


def test_a_run_of_an_earlier_version_is_read_and_resumed(begun, tmp_path: Path):
    folder = tmp_path / "run"
    work(begun[0])
    for name in ("manifest.json", "0.json"):
        plain = json.loads((folder / name).read_text())
        for key in ("model", "model_change", "settings" if name == "0.json" else "model"):
            plain.pop(key, None)
        (folder / name).write_text(json.dumps(plain))
    assert resume(tmp_path) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert any("1 of 3 ranks were made by an earlier version" in w for w in summary["warnings"])
    (folder / "2.json").unlink()  # the ranks that name a model speak for the run
    change(tmp_path / "m.onnx")
    assert resume(tmp_path) == 3
    assert status(tmp_path) == "incomplete"


def test_an_item_of_an_earlier_version_is_worked_on(begun):
    plain = begun[0].to_json()
    for key in ("model", "model_change"):
        del plain[key]
    assert work(WorkItem.from_json(plain)).rows == 10


@pytest.mark.parametrize("damage", ["deleted", "halved", "longer"])
def test_a_damaged_catalogue_is_made_again(begun, tmp_path: Path, damage: str, capsys):
    for item in begun:
        work(item)
    summarize(Storage(tmp_path / "run"))
    path = tmp_path / "run" / "catalogue.parquet"
    whole = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "halved" else whole + b"PAR1")
    assert resume(tmp_path) == 0
    assert path.read_bytes() == whole
    assert resume(tmp_path) == 0
    assert path.read_bytes() == whole
