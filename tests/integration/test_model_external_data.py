"""A model whose weights lie beside it (``torch.onnx.export``): carried along wherever it goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data
from tiny import tiny_cutouts, tiny_model, tiny_redshift, tiny_survey

from perseid.cli import main
from perseid.errors import BadModelError
from perseid.model.files import external_data, on_disk
from perseid.model.identity import identify
from perseid.model.runtime import ModelRuntime
from perseid.storage import Storage

DATA = "z.onnx.data"


def external_model(folder: Path, location: str = DATA) -> Path:
    """The tiny model with its weights in another file, as torch writes them."""
    path = tiny_model(folder / "inside.onnx")
    model = onnx.load(path)
    path.unlink()
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            set_external_data(tensor, DATA)
    onnx.save(model, folder / "z.onnx")
    if location != DATA:  # onnx itself refuses to write such a path
        model = onnx.load(folder / "z.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / "z.onnx").write_bytes(model.SerializeToString())
    return folder / "z.onnx"


def answers(url: str | Path) -> np.ndarray:
    cutouts = tiny_cutouts(8)
    runtime = ModelRuntime.load(url, threads=1)
    return runtime.predict(cutouts.images, cutouts.magnitudes).redshift


RIGHT = tiny_redshift(tiny_cutouts(8))


def test_the_graph_says_which_files_it_needs(tmp_path: Path):
    path = external_model(tmp_path)
    assert list(external_data(path, "z")) == [DATA]
    assert external_data(tiny_model(tmp_path / "m.onnx"), "m") == {}
    np.testing.assert_allclose(answers(path), RIGHT, rtol=1e-5)


def test_tensors_in_attributes_and_inner_graphs_are_found(tmp_path: Path):
    """A constant node, in a branch of an If, in a function: none is passed over."""
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    names = iter("abc")

    def constant() -> onnx.NodeProto:
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", next(names)
        node = onnx.helper.make_node("Constant", [], ["x"], value=tensor)
        del tensor.external_data[:]
        return node

    branch = onnx.helper.make_graph([constant()], "branch", [], [])
    choice = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = onnx.helper.make_graph([constant(), choice], "g", [], [])
    function = onnx.helper.make_function(
        "d", "f", [], ["x"], [constant()], [onnx.helper.make_opsetid("", 18)]
    )
    model = onnx.helper.make_model(graph, functions=[function])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert list(external_data(tmp_path / "m.onnx", "m")) == ["a", "b", "c"]


@pytest.mark.parametrize("location", ["../z.onnx.data", "/etc/hostname", "a/../../b", "a\\b", ""])
def test_weights_outside_the_models_folder_are_never_read(tmp_path: Path, location: str):
    folder = tmp_path / "models"
    path = external_model(folder, location)
    shutil.copy(folder / DATA, tmp_path / DATA)
    store = Storage("memory://outside")
    store.put("models/z.onnx", path)
    store.put(DATA, folder / DATA)
    for url in (path, "memory://outside/models/z.onnx"):
        with pytest.raises(BadModelError, match="outside its own folder"):
            ModelRuntime.load(url)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path):
    path = external_model(tmp_path / "models")
    (path.parent / DATA).rename(tmp_path / "elsewhere")
    (path.parent / DATA).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadModelError, match="outside its own folder"):
        ModelRuntime.load(path)


def test_a_missing_data_file_is_named(tmp_path: Path):
    path = external_model(tmp_path)
    (tmp_path / DATA).unlink()
    Storage("memory://without").put("z.onnx", path)
    for url in (path, "memory://without/z.onnx"):
        with pytest.raises(BadModelError, match=r"keeps its weights in z\.onnx\.data, which is n"):
            ModelRuntime.load(url)


def set_entries(path: Path, **entries: str) -> None:
    """Set such entries of every tensor's external data."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            kept = {entry.key: entry.value for entry in tensor.external_data} | entries
            del tensor.external_data[:]
            for key, value in kept.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("at", ["disk", "store"])
@pytest.mark.parametrize("kept", [0, -3])
def test_a_data_file_that_is_cut_off_is_named(
    tmp_path: Path, kept: int, at: str, capfd: pytest.CaptureFixture[str]
):
    path = external_model(tmp_path)
    whole = (tmp_path / DATA).read_bytes()
    (tmp_path / DATA).write_bytes(whole[:kept])
    Storage("memory://cut").put("z.onnx", path)
    Storage("memory://cut").put(DATA, tmp_path / DATA)
    sentence = rf"z\.onnx\.data, which has {len(whole[:kept])} bytes of {len(whole)}: copy it again"
    with pytest.raises(BadModelError, match=sentence):
        ModelRuntime.load(path if at == "disk" else "memory://cut/z.onnx")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("value", ["-4", "zero", "9" * 30])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_place_in_the_data_that_cannot_be_is_a_sentence(tmp_path: Path, key: str, value: str):
    path = external_model(tmp_path)
    set_entries(path, **{key: value})
    with pytest.raises(
        BadModelError, match=rf"z\.onnx .*{value}|z\.onnx\.data, which has \d+ byte"
    ):
        ModelRuntime.load(path)


@pytest.mark.parametrize("location", ["w" * 300, "w" * 300 + "/x", "z.onnx/x"])
def test_a_name_that_no_disk_takes_is_not_there(tmp_path: Path, location: str):
    path = external_model(tmp_path)
    set_entries(path, location=location)
    store = Storage("memory://long")
    store.put("z.onnx", path)
    if "z.onnx" not in location:
        store.put(location, b"0" * 1000)
    for url in (path, "memory://long/z.onnx"):
        with pytest.raises(BadModelError, match=r"which is not there|cannot be kept on this disk"):
            ModelRuntime.load(url)


def test_the_weights_belong_to_the_digest(tmp_path: Path):
    path = external_model(tmp_path)
    before = identify(str(path))
    Storage("memory://digest").put("p/z.onnx", path)
    Storage("memory://digest").put(f"p/{DATA}", tmp_path / DATA)
    assert identify("memory://digest/p/z.onnx").digest == before.digest
    data = bytearray((tmp_path / DATA).read_bytes())
    data[0] ^= 1
    (tmp_path / DATA).write_bytes(data)
    assert before.difference(identify(str(path)))


def test_from_a_store_the_weights_come_along_and_nothing_planted_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another user's file of the same name lies in the shared temporary folder."""
    path = external_model(tmp_path / "models")
    planted = tmp_path / "tmp"
    planted.mkdir()
    wrong = np.frombuffer((path.parent / DATA).read_bytes(), np.float32) + np.float32(1)
    (planted / DATA).write_bytes(wrong.tobytes())
    monkeypatch.setenv("TMPDIR", str(planted))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = Storage("memory://planted")
    store.put("z.onnx", path)
    with pytest.raises(BadModelError, match="which is not there"):
        ModelRuntime.load("memory://planted/z.onnx")
    store.put(DATA, path.parent / DATA)
    np.testing.assert_allclose(answers("memory://planted/z.onnx"), RIGHT, rtol=1e-5)
    with on_disk("memory://planted/z.onnx") as files:
        assert files.path.parent.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in planted.iterdir()] == [DATA]


def test_a_run_with_a_model_on_s3(s3, tmp_path: Path):
    """Every rank fetches both objects; the catalogue is that of the local model."""
    path = external_model(tmp_path)
    tiny_survey(tmp_path / "data", rows=20, per_partition=10)
    bucket = s3.bucket()
    Storage(bucket).put("models/z.onnx", path)
    Storage(bucket).put(f"models/{DATA}", tmp_path / DATA)
    found = []
    for name, model in (("here", str(path)), ("there", f"{bucket}/models/z.onnx")):
        out = str(tmp_path / name)
        words = ["--data", str(tmp_path / "data"), "--model", model, "--out", out, "--quiet"]
        assert main(["run", *words, "--workers", "2"]) == 0
        found.append((tmp_path / name / "0.json", tmp_path / name / "ranks/0/features.npz"))
    assert len({files.stat().st_size for _, files in found}) == 1


def test_the_default_model_of_a_package_may_have_external_data(tmp_path: Path):
    """`perseid aws deploy --model`: the zip of the workers holds the weights, too."""
    from perseid.aws.deploy import packaging
    from perseid.model.identity import DEFAULT_IDENTITY

    path = external_model(tmp_path / "models")
    worker = packaging._files("worker", None, path)
    control = packaging._files("control", None, path)
    inside = tmp_path / "unpacked"
    for name, source in worker.items():
        if name.startswith("perseid/"):
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            (inside / name).write_bytes(packaging._content(source))
    program = (
        "from perseid.model.identity import identify; import json\n"
        "from perseid.model.runtime import ModelRuntime\n"
        "ModelRuntime.load('default', threads=1)\n"
        "print(json.dumps(identify('default').to_json()))"
    )
    env = {**os.environ, "PYTHONPATH": str(inside)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    said = json.loads(control[f"perseid/model/data/{DEFAULT_IDENTITY}"])
    assert json.loads(done.stdout) == said
