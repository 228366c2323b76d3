"""A model says what it takes and gives, and a run makes named columns of it: whole runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from tiny import CLASSES, classifier_signature, tiny_classifier, tiny_survey

import perseid
from perseid.cli import main
from perseid.errors import BadInputError, BadModelError
from perseid.model.outputs import ModelOutput
from perseid.model.signature import ModelSignature
from perseid.survey import Cutouts

ROWS, PER_PARTITION = 36, 10
LABELLED = [f"p_{name.replace(' ', '_')}" for name in CLASSES]


@pytest.fixture
def survey(tmp_path: Path):
    return tiny_survey(tmp_path / "survey", ROWS, PER_PARTITION)


def probabilities(cutouts, model: Path) -> np.ndarray:
    """What the classifier says, computed with onnxruntime alone."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (votes,) = session.run(["votes"], {"pixels": np.ascontiguousarray(cutouts.images)})
    e = np.exp(votes - votes.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("transport", ["store", "direct"])
def test_a_classifier_without_a_redshift_runs_to_the_end(survey, tmp_path, transport, capsys):
    model = tiny_classifier(tmp_path / "c.onnx")
    arguments = ["run", "--data", str(tmp_path / "survey"), "--model", str(model), "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--transport", transport]) == 0
    table = pq.read_table(tmp_path / "run" / "catalogue.parquet")
    wanted = probabilities(survey, model)
    found = np.column_stack([table[name].to_numpy() for name in LABELLED])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert table["class"].to_pylist() == [CLASSES[place] for place in wanted.argmax(axis=1)]
    assert "z_pred" not in table.column_names
    assert table["object_id"].to_pylist() == survey.object_id.tolist()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["transport"]["used"] == transport
    assert summary["redshift"] is None
    for command in ("table", "report", "status"):
        assert main([command, str(tmp_path / "run")]) == 0, capsys.readouterr().err


def test_a_classifiers_run_is_resumed(survey, tmp_path):
    model = tiny_classifier(tmp_path / "c.onnx", metadata=False)
    beside = Path(f"{model}.signature.json")
    beside.write_text(classifier_signature().to_json())
    run = perseid.run(str(tmp_path / "survey"), model=str(model), results=str(tmp_path / "run"),
                      progress=False)  # fmt: skip
    before = run.catalogue()
    assert len(before) == ROWS
    for name in ("1.json", "summary.json", "merged.json", "catalogue.parquet"):
        (tmp_path / "run" / name).unlink()
    beside.write_text(classifier_signature(classes=("a", "b", "c")).to_json())
    again = perseid.resume(str(tmp_path / "run"), progress=False)
    assert again.incomplete is None
    assert again.catalogue().difference(before) is None


def test_option_before_the_file_beside_before_the_metadata(survey, tmp_path):
    model = tiny_classifier(tmp_path / "c.onnx")

    def columns(name: str, **keys: object) -> list[str]:
        out = str(tmp_path / name)
        run = perseid.run(str(tmp_path / "survey"), model=str(model), results=out, progress=False,
                          transport="store", **keys)  # fmt: skip
        return [c for c in run.catalogue().column_names if c.startswith("p_")]

    assert columns("one") == LABELLED
    beside = classifier_signature(classes=("a", "b", "c"))
    Path(f"{model}.signature.json").write_text(beside.to_json())
    assert columns("two") == ["p_a", "p_b", "p_c"]
    option = classifier_signature(classes=("x", "y", "z"))
    (tmp_path / "s.json").write_text(option.to_json())
    for number, given in enumerate((option.to_plain(), option, str(tmp_path / "s.json"))):
        assert columns(f"option-{number}", signature=given) == ["p_x", "p_y", "p_z"]
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["settings"]["signature"] == json.loads(beside.to_json())
    assert manifest["model"]["signature"] == beside.digest()
    other = json.loads((tmp_path / "option-0" / "manifest.json").read_text())["model"]
    assert (other["digest"], other["signature"]) == (manifest["model"]["digest"], option.digest())


def test_a_row_without_a_finite_pixel_has_no_class(survey, tmp_path):
    cutouts = tiny_survey(tmp_path / "bad", 8, 8)
    images = cutouts.images.copy()
    images[3, 1, 2, 2] = np.nan
    perseid.survey.write_cutouts(replace(cutouts, images=images), tmp_path / "bad" / "1.pt")
    model = tiny_classifier(tmp_path / "c.onnx")
    run = perseid.run(str(tmp_path / "bad"), model=str(model), results=str(tmp_path / "run"),
                      progress=False)  # fmt: skip
    table = run.catalogue().to_arrow()
    assert table["class"].is_null().to_pylist() == [row == 3 for row in range(8)]
    assert table["flag"].to_pylist() == [int(row == 3) for row in range(8)]
    assert np.isnan(table[LABELLED[0]].to_numpy()[3])


def test_the_catalogue_knows_what_the_model_gave(survey, tmp_path):
    model = tiny_classifier(tmp_path / "c.onnx")
    runs = [
        perseid.run(str(tmp_path / "survey"), model=str(model), results=str(tmp_path / name),
                    world_size=size, transport=transport, progress=False)
        for name, size, transport in (("a", 1, "store"), ("b", 3, "direct"), ("c", 9, "store"))
    ]  # fmt: skip
    first = runs[0].catalogue()
    assert [run.catalogue().difference(first) for run in runs] == [None] * 3
    assert first.outputs == classifier_signature().output_columns()
    assert first.outputs[-1].classes == CLASSES


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bands": 3}, r"takes pixels float32 .*its signature says images of \(3, 8, 8\)"),
        ({"classes": ("a", "b")}, r"gives votes float32 .* says 2 numbers per row"),
    ],
)
def test_a_signature_that_is_not_the_graphs_is_refused(tmp_path, change, sentence):
    model = tiny_classifier(tmp_path / "c.onnx")
    with pytest.raises(BadModelError, match=sentence):
        perseid.load_model(model, signature=classifier_signature(**change))


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ([ModelOutput("votes", "classes")], "is of the kind 'classes': use redshift, value"),
        ([ModelOutput("votes", "probabilities")], "needs `classes`"),
        ([ModelOutput("q", "quantiles", levels=(0.5, 0.1))], "needs `levels`"),
        ([ModelOutput("pdf", "pdf")], "needs a `grid`"),
        ([ModelOutput("mass", "value", column="log mass")], "cannot be the column 'log mass'"),
        ([ModelOutput("row", "value")], "becomes the column row, as does one that every"),
        ([ModelOutput("a", "redshift"), ModelOutput("b", "redshift")], "as does that of 'a'"),
    ],
)
def test_outputs_that_mean_nothing(outputs, sentence):
    with pytest.raises(BadModelError, match=sentence):
        ModelSignature("x", outputs=tuple(outputs), columns=()).check()


def test_a_signature_comes_back_from_its_json():
    whole = ModelSignature(
        "all", 3, 64, 48, {"embedding": 16},
        band_names=("g", "r", "z"),
        image=replace(classifier_signature().image, layout="channels-last", dtype="uint8",
                      scale=(1 / 255,)),
        outputs=(
            ModelOutput("z", "redshift"),
            ModelOutput("mass", "value", column="log_mass", unit="dex(Msun)"),
            ModelOutput("votes", "probabilities", classes=CLASSES, logits=True),
            ModelOutput("q", "quantiles", column="age", levels=(0.1, 0.5, 0.9)),
        ),
        features_name="tokens",
    )  # fmt: skip
    whole.check()
    again = ModelSignature.from_json(whole.to_json())
    assert (again, again.digest()) == (whole, whole.digest())
    plain = ModelSignature("line", feature_groups={"embedding": 5})
    assert set(json.loads(plain.to_json())) == {
        "name", "bands", "height", "width", "feature_groups", "allocated_bytes_per_row",
        "precision", "band_names",
    }  # fmt: skip
    assert ModelSignature.from_json(plain.to_json()) == plain


def test_a_survey_that_does_not_fit_is_refused_before_the_run(survey, tmp_path):
    model = tiny_classifier(tmp_path / "c.onnx", side=6)
    keys = {"model": str(model), "results": str(tmp_path / "run"), "progress": False}
    with pytest.raises(BadInputError, match=r"input `pixels` .* \(5, 6, 6\): fit them by `fit='cr"):
        perseid.run(str(tmp_path / "survey"), **keys)
    assert not (tmp_path / "run").exists()
    run = perseid.run(str(tmp_path / "survey"), fit="crop", **keys)
    middle = replace(survey, images=survey.images[:, :, 1:7, 1:7])
    found = run.catalogue().to_arrow()[LABELLED[0]].to_numpy()
    np.testing.assert_allclose(found, probabilities(middle, model)[:, 0], atol=1e-6)


def test_describe_writes_what_the_graph_shows_beside_the_model(tmp_path, capsys):
    """Probabilities are told from logits by computing; what cannot be seen is a guess."""
    model = tiny_classifier(tmp_path / "c.onnx", metadata=False, logits=False)
    before = model.read_bytes()
    assert main(["model", "describe", str(model), "--yes"]) == 0
    assert model.read_bytes() == before
    found = ModelSignature.from_json(Path(f"{model}.signature.json").read_text())
    classes = ("class_0", "class_1", "class_2")
    assert found == replace(classifier_signature(logits=False, classes=classes), name="c")
    assert main(["model", "info", str(model)]) == 0
    assert "columns: p_class_0, p_class_1, p_class_2, class" in capsys.readouterr().out


def test_describe_asks_what_it_cannot_see(tmp_path, monkeypatch, capsys):
    model = tiny_classifier(tmp_path / "c.onnx", metadata=False)
    asked = []

    def answer(question: str) -> str:
        asked.append(question)
        return "" if "What is" in question else "smooth, spiral arms, merger"

    monkeypatch.setattr("builtins.input", answer)
    assert main(["model", "describe", str(model)]) == 0
    assert [question.split()[0] for question in asked] == ["What", "Names"]
    found = ModelSignature.from_json(Path(f"{model}.signature.json").read_text())
    assert found == replace(classifier_signature(), name="c")


def test_describe_without_anybody_to_ask_says_so(tmp_path, monkeypatch, capsys):
    model = tiny_classifier(tmp_path / "c.onnx", metadata=False)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    assert main(["model", "describe", str(model)]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert not Path(f"{model}.signature.json").exists()


def test_a_galaxy10_file_is_classified_as_it_is(tmp_path):
    """(n, 69, 69, 3) of 8 bits with `ans`: nothing of it is written again."""
    random = np.random.default_rng(4)
    images = random.integers(0, 256, (12, 69, 69, 3), np.uint8)
    answers = random.integers(0, len(CLASSES), 12).astype(np.uint8)
    (tmp_path / "survey").mkdir()
    with h5py.File(tmp_path / "survey" / "Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = images, answers
    model = tiny_classifier(tmp_path / "c.onnx", bands=3, side=69)
    run = perseid.run(str(tmp_path / "survey"), model=str(model), results=str(tmp_path / "run"),
                      progress=False)  # fmt: skip
    table = run.catalogue().to_arrow()
    first = np.moveaxis(images, -1, 1).astype(np.float32)
    wanted = probabilities(Cutouts(first), model)
    np.testing.assert_allclose(table[LABELLED[0]].to_numpy(), wanted[:, 0], atol=1e-5)
    assert table["label"].to_pylist() == answers.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
@pytest.mark.parametrize("layout", ["channels-first", "channels-last"])
@pytest.mark.parametrize("rows", ["n", 4])
def test_images_as_the_graph_wants_them(tmp_path, dtype, layout, rows):
    """The mean pixel, times two and one more, whatever type and layout the graph takes."""
    kinds = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
             "uint8": TensorProto.UINT8}  # fmt: skip
    shape = [rows, 3, 6, 5] if layout == "channels-first" else [rows, 6, 5, 3]
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "mean",
        [helper.make_tensor_value_info("x", kinds[dtype], shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [rows])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert main(["model", "describe", str(tmp_path / "m.onnx"), "--yes"]) == 0
    beside = tmp_path / "m.onnx.signature.json"
    found = ModelSignature.from_json(beside.read_text())
    assert (found.shape, found.image.layout, found.image.dtype) == ((3, 6, 5), layout, dtype)
    scaled = replace(found, image=replace(found.image, scale=(2.0,), offset=(1.0,)))
    images = np.random.default_rng(0).integers(0, 100, (11, 3, 6, 5)).astype(np.float32)
    answer = perseid.load_model(tmp_path / "m.onnx", signature=scaled).predict(Cutouts(images))
    np.testing.assert_allclose(answer.columns["mean"], 2 * images.mean(axis=(1, 2, 3)) + 1, 1e-3)


def test_a_column_of_the_survey_by_its_name(tmp_path):
    """A model of images and of the extinction; a row that lacks it is not predicted."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Add", ["mean", "ebv"], ["z"]),
        ],
        "two inputs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 5, 8, 8]),
         helper.make_tensor_value_info("ebv", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert main(["model", "describe", str(tmp_path / "m.onnx"), "--yes"]) == 0
    images = np.random.default_rng(0).normal(size=(6, 5, 8, 8)).astype(np.float32)
    ebv = np.array([0.1, 0.2, np.nan, 0.4, 0.5, 0.6])
    (tmp_path / "survey").mkdir()
    with h5py.File(tmp_path / "survey" / "1.h5", "w") as file:
        file["image"], file["EBV"] = images, ebv
    keys = {"model": str(tmp_path / "m.onnx"), "progress": False, "anomaly": "none"}
    run = perseid.run(str(tmp_path / "survey"), results=str(tmp_path / "run"), **keys)
    table = run.catalogue().to_arrow()
    np.testing.assert_allclose(
        table["z_pred"].to_numpy(), images.mean(axis=(1, 2, 3)) + ebv, atol=1e-6
    )
    assert table["flag"].to_pylist() == [0, 0, 3, 0, 0, 0]
    with h5py.File(tmp_path / "survey" / "1.h5", "a") as file:
        file.move("EBV", "AV")
    with pytest.raises(BadInputError, match=r"no column ebv .*the input `ebv` .*`columns="):
        perseid.run(str(tmp_path / "survey"), results=str(tmp_path / "other"), **keys)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [41, 517])
def test_a_classifier_over_as_many_ranks_as_were_published(tmp_path, ranks):
    tiny_survey(tmp_path / "survey", 2 * ranks, 2)
    model = tiny_classifier(tmp_path / "c.onnx")
    tables = [
        perseid.run(str(tmp_path / "survey"), model=str(model), results=str(tmp_path / name),
                    world_size=size, transport=transport, progress=False).catalogue()
        for name, size, transport in (("many", ranks, "direct"), ("store", ranks, "store"),
                                      ("one", 1, "store"))
    ]  # fmt: skip
    assert [table.difference(tables[0]) for table in tables] == [None] * 3
