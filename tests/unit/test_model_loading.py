"""A model on a device: weights by torch give what their exported form gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from networks import random_network, random_rows

import perseid
from perseid.aws.engine import check_computable
from perseid.cli import main
from perseid.errors import BadInputError, BadModelError
from perseid.model.config import SMALL
from perseid.model.export.exporter import export_model
from perseid.model.identity import identify
from perseid.model.loading import GPU_BATCH, check_device, load_on
from perseid.model.runtime.python_runtime import PythonRuntime
from perseid.model.training.astromae import to_weights
from perseid.model.training.layers import fuse_for_inference
from perseid.model.weights import save_weights
from perseid.survey import Cutouts, write_cutouts

torch = pytest.importorskip("torch", reason="weights are computed by torch")
ROWS = 70
CONFIGS = {
    "features": dataclasses.replace(SMALL, depth=2),
    "redshift alone": dataclasses.replace(SMALL, depth=1, embedding=False, decoder_width=0),
}
WITHIN = 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def models(request, tmp_path_factory) -> Path:
    """The same network as weights and exported."""
    folder = tmp_path_factory.mktemp("device")
    weights = to_weights(random_network(CONFIGS[request.param]))
    save_weights(weights, folder / "m.npz")
    export_model(weights, folder / "m.onnx")
    return folder


def test_weights_give_what_the_exported_model_gives(models):
    images, magnitudes = random_rows(ROWS, SMALL)
    by_torch, by_onnx = load_on("cpu", models / "m.npz"), load_on("cpu", models / "m.onnx")
    assert by_torch.signature == by_onnx.signature
    got, expected = (m.predict(images, magnitudes) for m in (by_torch, by_onnx))
    np.testing.assert_allclose(got.redshift, expected.redshift, atol=WITHIN)
    if expected.features is not None:
        np.testing.assert_allclose(got.features, expected.features, atol=1e-3, rtol=1e-3)
    again = by_torch.predict(images[3:9], magnitudes[3:9])
    np.testing.assert_array_equal(again.redshift, got.redshift[3:9])


def test_the_identity_of_weights(models):
    runtime = load_on("cpu", models / "m.npz")
    assert runtime.identity.kind == "astromae"
    assert identify(str(models / "m.npz")).difference(runtime.identity) == ""
    other = identify(str(models / "m.npz"), device="cuda")
    assert other.difference(runtime.identity) == "device cpu instead of cuda"


def test_a_run_with_weights(models, tmp_path):
    images, magnitudes = random_rows(ROWS, SMALL)
    write_cutouts(Cutouts(images, magnitudes, object_id=np.arange(ROWS)), tmp_path / "s/1.npz")
    redshifts = []
    for name in ("m.npz", "m.onnx"):
        run = perseid.run(
            tmp_path / "s", model=str(models / name), results=str(tmp_path / name), progress=False
        )
        assert run.incomplete is None
        redshifts.append(run.catalogue().to_arrow()["z_pred"].to_numpy())
    np.testing.assert_allclose(redshifts[0], redshifts[1], atol=WITHIN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(("name", "said"), [
    ("m.npz", "torch sees no GPU"), ("m.onnx", "has no CUDAExecutionProvider"),
    ("default", "has no CUDAExecutionProvider"),
])  # fmt: skip
def test_no_gpu_is_one_sentence(models, tmp_path, capsys, name, said):
    images, magnitudes = random_rows(4, SMALL)
    write_cutouts(Cutouts(images, magnitudes), tmp_path / "s/1.npz")
    model = name if name == "default" else str(models / name)
    command = ["run", "--data", str(tmp_path / "s"), "--model", model, "--device", "cuda",
               "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "perseid:" in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


MOVED = """
class Model:
    signature = {"name": "m", "inputs": {"magnitude": {"kind": "column", "column": "magnitude",
                 "width": 5}}, "outputs": {"z": {"kind": "redshift"}}}
    place = "cpu"

    def to(self, device):
        if device == "mars":
            raise RuntimeError("too far")
        self.place = device

    def predict(self, images, columns):
        return {"z": columns["magnitude"][:, 0]}
"""


def test_a_python_model_is_moved_to_the_device(tmp_path):
    (tmp_path / "model_to_move.py").write_text(MOVED)
    spec = "python:model_to_move:Model"
    for device in ("cpu", "cuda"):
        runtime = PythonRuntime.load(spec, device=device, folder=str(tmp_path))
        assert runtime._model.place == device
        assert runtime.identity.device == device
    with pytest.raises(BadModelError, match="cannot be moved to mars: RuntimeError: too far"):
        PythonRuntime.load(spec, device="mars", folder=str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_python_model_needs_a_gpu_for_cuda():
    with pytest.raises(BadInputError, match="torch sees no GPU"):
        check_device("cuda", "python:some:Model")


def test_a_fused_network_computes_the_same():
    network = random_network(CONFIGS["features"]).eval()
    images, magnitudes = map(torch.from_numpy, random_rows(8, SMALL))
    with torch.no_grad():
        expected = network.predict_with_features(images, magnitudes.float())
        fuse_for_inference(network)
        got = network.predict_with_features(images, magnitudes.float())
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("keys", "said"), [
    ({"device": "cuda"}, "no GPU"), ({"model": "s3://b/weights.npz"}, "perseid model export"),
])  # fmt: skip
def test_what_functions_of_aws_cannot_compute_is_refused(keys, said):
    request = perseid.RunRequest.parse({"data": "s3://b/d", "results": "s3://b/r", **keys})
    with pytest.raises(BadInputError, match=said):
        check_computable(request)


def test_what_cannot_be_loaded_on_a_device(models, tmp_path):
    with pytest.raises(BadInputError, match="device 'tpu' is not known"):
        load_on("tpu", models / "m.onnx")
    with pytest.raises(BadInputError, match="export them"):
        load_on("cpu", models / "m.npz", precision="int8")
    with pytest.raises(BadInputError, match="leave it out with cuda"):
        load_on("cuda", models / "m.onnx", precision="int8")
    (tmp_path / "x.npz").write_bytes(b"no weights")
    with pytest.raises(BadModelError, match="not a weight file"):
        load_on("cpu", tmp_path / "x.npz")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
def test_a_gpu_gives_what_a_processor_gives(models):
    rows = 2 * GPU_BATCH + ROWS  # more batches than there is memory for at a time
    images, magnitudes = random_rows(rows, SMALL)
    runtime = load_on("cuda", models / "m.npz")
    assert runtime.micro_batch == GPU_BATCH
    got = runtime.predict(images, magnitudes)
    expected = load_on("cpu", models / "m.npz").predict(images, magnitudes)
    np.testing.assert_allclose(got.redshift, expected.redshift, atol=WITHIN)
    if expected.features is not None:
        np.testing.assert_allclose(got.features, expected.features, atol=1e-3, rtol=1e-3)
    part = runtime.predict(images[GPU_BATCH - 3 : GPU_BATCH + 3], magnitudes[GPU_BATCH - 3 :][:6])
    np.testing.assert_array_equal(part.redshift, got.redshift[GPU_BATCH - 3 :][:6])


def test_a_model_of_images_larger_than_any_survey_holds_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value, huge = onnx.helper.make_tensor_value_info, 1 << 40
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["magnitude"], ["redshift"], axes=[1], keepdims=0)],
        "huge",
        [value("image", 1, ["n", 5, huge, huge]), value("magnitude", 1, ["n", 5])],
        [value("redshift", 1, ["n"])],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(BadModelError, match=r"takes an input of .* values for each row; at most"):
        load_on("cpu", tmp_path / "huge.onnx")
