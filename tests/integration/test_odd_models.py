"""Graphs as people bring them: batches of one, wide numbers, several questions, wrong rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import SIDE, tiny_cutouts

import perseid
from perseid.cli import main
from perseid.errors import BadModelError
from perseid.pipeline.checks import check_model
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey import write_cutouts

BANDS, ROWS = 3, 40
FLOAT = TensorProto.FLOAT


def save(
    folder: Path,
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    rows: str | int = "n",
    constants: tuple[onnx.TensorProto, ...] = (),
) -> str:
    image = helper.make_tensor_value_info("image", FLOAT, [rows, BANDS, SIDE, SIDE])
    graph = helper.make_graph(nodes, "odd", [image], outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "m.onnx"))
    return str(folder / "m.onnx")


def mean(out: str, axes: list[int]) -> onnx.NodeProto:
    return helper.make_node("ReduceMean", ["image"], [out], axes=axes, keepdims=0)


def value(name: str, shape: list[object], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def images() -> np.ndarray:
    return tiny_cutouts(ROWS, bands=BANDS).images


def predicted(model: str) -> dict[str, np.ndarray]:
    assert main(["model", "describe", model, "--yes"]) == 0
    return dict(perseid.load_model(model).predict(perseid.Cutouts(images())).columns)


def test_a_batch_of_one_whose_answer_has_no_axis_of_rows(tmp_path: Path) -> None:
    model = save(tmp_path, [mean("redshift", [0, 1, 2, 3])], [value("redshift", [])], rows=1)
    wanted = images().mean(axis=(1, 2, 3))
    np.testing.assert_allclose(predicted(model)["z_pred"], wanted, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_batches_of_one_size(rows: int, tmp_path: Path) -> None:
    model = save(tmp_path, [mean("redshift", [1, 2, 3])], [value("redshift", [rows])], rows=rows)
    wanted = images().mean(axis=(1, 2, 3))
    np.testing.assert_allclose(predicted(model)["z_pred"], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
@pytest.mark.parametrize("described", [True, False])
def test_redshifts_of_other_floating_point_types(
    kind: int, described: bool, tmp_path: Path
) -> None:
    nodes = [mean("z", [1, 2, 3]), helper.make_node("Cast", ["z"], ["redshift"], to=kind)]
    model = save(tmp_path, nodes, [value("redshift", ["n"], kind)])
    if described:
        assert main(["model", "describe", model, "--yes"]) == 0
    got = perseid.load_model(model).predict(perseid.Cutouts(images())).redshift
    np.testing.assert_allclose(got, images().mean(axis=(1, 2, 3)), atol=1e-3)


def test_several_questions_each_with_classes_of_its_own(tmp_path: Path) -> None:
    """As Galaxy Zoo asks: each question has its probabilities and its most probable answer."""
    nodes = [mean("m", [2, 3]), helper.make_node("Softmax", ["m"], ["bar"], axis=1),
             helper.make_node("Neg", ["m"], ["minus"]),
             helper.make_node("Softmax", ["minus"], ["edge-on"], axis=1)]  # fmt: skip
    model = save(tmp_path, nodes, [value("bar", ["n", 3]), value("edge-on", ["n", 3])])
    got = predicted(model)
    wanted = np.exp(images().mean(axis=(2, 3)))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["p_bar_class_1"], wanted[:, 1], atol=1e-5)
    np.testing.assert_array_equal(got["bar_class"], wanted.argmax(axis=1))
    np.testing.assert_array_equal(got["edge_on_class"], wanted.argmin(axis=1))


def test_an_answer_for_another_number_of_rows_is_found_before_the_run(tmp_path: Path) -> None:
    """One number for a whole batch would be the redshift of its first object."""
    nodes = [mean("one", [0, 1, 2, 3]), helper.make_node("Reshape", ["one", "shape"], ["z"])]
    shape = numpy_helper.from_array(np.array([1], np.int64), "shape")
    model = save(tmp_path, nodes, [value("z", [1])], constants=(shape,))
    (tmp_path / "data").mkdir()
    write_cutouts(perseid.Cutouts(images()), tmp_path / "data" / "1.npz")
    keys = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"), "model": model}
    with pytest.raises(BadModelError, match=r"gave 'redshift' as \(1,\).* for each of 32 rows"):
        initialize(RunRequest.parse({**keys, "anomaly": "none"}))
    assert not (tmp_path / "run").exists()


UNSTEADY = {
    "plain": ([mean("redshift", [1, 2, 3])], ""),
    "rows that see each other": (
        [mean("m", [1, 2, 3]), helper.make_node("ReduceMean", ["m"], ["all"], axes=[0], keepdims=1),
         helper.make_node("Sub", ["m", "all"], ["redshift"])], "other rows are in the same call",
    ),
    "random": (
        [mean("m", [1, 2, 3]), helper.make_node("RandomNormalLike", ["m"], ["r"]),
         helper.make_node("Add", ["m", "r"], ["redshift"])], "the same row in each call",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSTEADY)
def test_a_model_that_was_exported_in_training_mode_is_noted(kind: str, tmp_path: Path) -> None:
    nodes, says = UNSTEADY[kind]
    path = save(tmp_path, nodes, [value("redshift", ["n"])])
    notes = check_model(path, "float32", "none", 32).notes
    assert len(notes) == (1 if says else 0)
    assert all(says in note and "model.eval()" in note for note in notes)


@pytest.mark.parametrize("shape", [None, [0, BANDS, SIDE, SIDE], ["n", BANDS, SIDE], [2, 0, 8, 8]])
def test_an_image_of_no_shape_is_a_sentence(shape: list[object] | None, tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", FLOAT, shape)
    nodes = [helper.make_node("ReduceMean", ["image"], ["redshift"], keepdims=0)]
    graph = helper.make_graph(nodes, "odd", [image], [value("redshift", ["n"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(BadModelError, match=r"has no float32 input image|holds no numbers"):
        check_model(str(tmp_path / "m.onnx"), "float32", "none", 32)


@pytest.mark.parametrize("transport", ["store", "direct"])
def test_an_encoder_without_a_head_and_without_lists(transport: str, tmp_path: Path) -> None:
    """It gives scores and no column of its own."""
    model = save(tmp_path, [helper.make_node("Identity", ["image"], ["features"])],
                 [value("features", ["n", BANDS, SIDE, SIDE])])  # fmt: skip
    assert main(["model", "describe", model, "--yes"]) == 0
    (tmp_path / "data").mkdir()
    write_cutouts(perseid.Cutouts(images()), tmp_path / "data" / "1.npz")
    keys = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"), "model": model}
    request = RunRequest.parse({**keys, "anomaly": "embedding", "transport": transport})
    if transport == "direct":
        perseid.run(request, progress=False)
    else:
        for item in initialize(request).items:
            work(item)
        summarize(Storage(tmp_path / "run"))
    run = perseid.open_run(tmp_path / "run")
    assert run.incomplete is None
    table = run.catalogue().to_arrow()
    assert "z_pred" not in table.column_names
    assert table["anomaly_score"].null_count == 0
    assert run.catalogue().write(tmp_path / "out.fits").rows == ROWS
    assert run.similar(place=("1.npz", 0), n=3)[0].row == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"opset": 99},
            "it uses opset 99 of ai.onnx, and onnxruntime [0-9.]+ takes at most [0-9]+: export it "
            "with opset_version=[0-9]+ or lower, or install a newer onnxruntime",
        ),
        (
            {"ir": 99},
            "its file has IR version 99, and onnxruntime [0-9.]+ takes at most [0-9]+: export it "
            "with an older onnx, or install a newer onnxruntime",
        ),
        (
            {"kind": TensorProto.BFLOAT16},
            r"onnxruntime [0-9.]+ cannot compute its operator ReduceMean \(opset 18\) in the "
            "model's number type on this device: export it in float32",
        ),
        (
            {"kind": TensorProto.COMPLEX64},
            r"its operator ReduceMean takes no complex64 \(in 'image'\): export it in float32",
        ),
        (
            {"operator": "NoSuch"},
            "opset 18 has no operator NoSuch: export it again with an opset that has it",
        ),
        (
            {"operator": "Mine", "domain": "my.ops"},
            "its operator Mine belongs to my.ops, a library of its own, which workers do not have: "
            "export it with ONNX's operators",
        ),
    ],
    ids=["opset", "IR version", "bfloat16", "complex64", "unknown operator", "custom operator"],
)
def test_what_onnxruntime_refuses_is_one_sentence_of_ours(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    wanted = {
        "opset": 18,
        "ir": 8,
        "kind": FLOAT,
        "operator": "ReduceMean",
        "domain": "",
        **changes,
    }
    given = {"keepdims": 0} if wanted["operator"] == "ReduceMean" else {}
    node = helper.make_node(
        wanted["operator"], ["image"], ["redshift"], domain=wanted["domain"], **given
    )
    image = helper.make_tensor_value_info("image", wanted["kind"], ["n", BANDS, SIDE, SIDE])
    redshift = helper.make_tensor_value_info("redshift", wanted["kind"], ["n"])
    opsets = [helper.make_opsetid("", wanted["opset"])]
    opsets += [helper.make_opsetid(wanted["domain"], 1)] if wanted["domain"] else []
    graph = helper.make_graph([node], "odd", [image], [redshift])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=wanted["ir"])
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(BadModelError, match=f"m.onnx is not a model .* can load: {said}$"):
        perseid.load_model(str(tmp_path / "m.onnx"))
