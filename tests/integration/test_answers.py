"""How good classes and distributions are: in the summary, on the page, the same by every way."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn import metrics
from tiny import CLASSES, tiny_classifier, tiny_cutouts

import perseid
from perseid.cli import main
from perseid.model.outputs import ModelOutput
from perseid.model.signature import METADATA_KEY, ModelSignature
from perseid.pipeline.catalogue_limits import CatalogueLimits
from perseid.pipeline.initialize import initialize
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.publish import strict
from perseid.pipeline.rank_outputs import read_records
from perseid.pipeline.request import RunRequest
from perseid.pipeline.store_merge import publish_from_store
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.science.distributions import Distributions, pit_histogram
from perseid.storage import Storage
from perseid.survey import write_cutouts

ROWS = 120
LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)


def quantile_model(path):
    """A model whose quantiles lie around the sum of the magnitudes; it is too sure of itself."""
    weights = np.resize(np.array([0.11, -0.07, 0.05, -0.03, 0.02], np.float32), 5).reshape(5, 1)
    steps = np.array([[-0.01, -0.004, 0.0, 0.004, 0.01]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["magnitude", "weights"], ["middle"]),
            helper.make_node("Add", ["middle", "steps"], ["q"]),
        ],
        "quantiles",
        [helper.make_tensor_value_info("magnitude", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(steps, "steps")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    quantiles = ModelOutput("q", "quantiles", levels=LEVELS)
    signature = ModelSignature("q", 0, 0, 0, band_names=(), outputs=(quantiles,))
    helper.set_model_props(model, {METADATA_KEY: signature.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A survey whose labels are classes, some missing or of none, and the two models."""
    folder = tmp_path_factory.mktemp("answers")
    cutouts = tiny_cutouts(ROWS, seed=4)
    label = np.random.default_rng(1).integers(0, 4, ROWS).astype(np.int32)
    whole = replace(cutouts, label=np.ma.masked_array(label, np.arange(ROWS) % 11 == 0))
    redshift = whole.redshift.copy()
    redshift[::9] = np.nan
    whole = replace(whole, redshift=redshift)
    (folder / "survey").mkdir()
    for number, part in enumerate(whole.batches(25), start=1):
        write_cutouts(part, folder / f"survey/{number}.parquet")
    tiny_classifier(folder / "c.onnx")
    quantile_model(folder / "q.onnx")
    return folder


def run(place, model, name, **keys):
    return perseid.run(place / "survey", model=str(place / model), results=str(place / name),
                       progress=False, world_size=3, **keys)  # fmt: skip


def test_classes_are_compared_with_labels(place):
    done = run(place, "c.onnx", "classes")
    table = done.catalogue().to_astropy()
    found = done.summary["classification"]
    known = ~np.ma.getmaskarray(table["label"]) & (np.ma.getdata(table["label"]) < len(CLASSES))
    true = [CLASSES[place] for place in table["label"][known]]
    called = table["class"][known].tolist()
    assert (found["n"], found["excluded"]) == (known.sum(), ROWS - known.sum())
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, called))
    wanted = metrics.confusion_matrix(true, called, labels=list(CLASSES))
    assert found["confusion"] == wanted.tolist()
    report = metrics.classification_report(true, called, labels=list(CLASSES), output_dict=True,
                                           zero_division=np.nan)  # fmt: skip
    for one in found["by_class"]:
        assert one["recall"] == pytest.approx(report[one["name"]]["recall"])
        assert one["f1"] == pytest.approx(report[one["name"]]["f1-score"])
    assert sum(one["n"] for one in found["reliability"]) == found["n"]
    assert "accuracy" in str(done)


def test_labels_that_are_classes_are_no_anomalies(place):
    done = run(place, "c.onnx", "no-anomalies")
    assert (done.summary["anomaly"] or {"detection": []})["detection"] == []


def test_the_page_shows_the_matrix_and_the_curve(place, capsys):
    run(place, "c.onnx", "page")
    assert main(["report", str(place / "page"), "--out", str(place / "page.html")]) == 0
    page = (place / "page.html").read_text()
    for words in ("Confusion matrix of 3 classes", "Reliability of class probabilities", "Recall",
                  "spiral arms predicted as merger"):  # fmt: skip
        assert words in page
    assert "Predicted distributions" not in page


def test_quantiles_are_compared_with_redshifts(place):
    done = run(place, "q.onnx", "quantiles", anomaly="none")
    table = done.catalogue().to_astropy()
    names = [f"z_q{name}" for name in ("2p5", "16", "50", "84", "97p5")]
    quantiles = np.stack([np.asarray(table[name], float) for name in names], axis=1)
    truth = np.ma.filled(table["z_spec"].astype(float), np.nan)
    predicted = Distributions.of_quantiles(quantiles, LEVELS)
    found = done.summary["distributions"]
    assert (found["n"], found["excluded"]) == (np.isfinite(truth).sum(), np.isnan(truth).sum())
    assert found["pit"] == pit_histogram(predicted.pit(truth)).tolist()
    assert found["crps"] == pytest.approx(np.nanmean(predicted.crps(truth)), rel=1e-6)
    for level in (0.68, 0.95):
        assert found["coverage"][f"{level:g}"] == pytest.approx(predicted.coverage(truth, level))
    assert found["coverage"]["0.68"] < 0.6, "the model is too sure"
    assert done.summary["redshift"]["coverage"]["0.68"] == found["coverage"]["0.68"]
    assert main(["report", str(place / "quantiles"), "--out", str(place / "q.html")]) == 0
    page = (place / "q.html").read_text()
    assert "PIT of" in page
    assert "Inside" in page
    assert main(["catalogue", str(place / "quantiles"), "--to", str(place / "q.hdf5")]) == 0


@pytest.mark.parametrize("model", ["c.onnx", "q.onnx"])
def test_the_same_by_every_way(place, model):
    """Through the store, a communicator, in parts, and with another number of ranks."""
    keys = ("classification", "distributions", "redshift")
    found = []
    for transport, size in (("store", 3), ("direct", 2)):
        name = f"same-{model}-{transport}"
        done = perseid.run(
            place / "survey", model=str(place / model), results=str(place / name), progress=False,
            world_size=size, transport=transport, anomaly="none",
        )  # fmt: skip
        found.append({key: done.summary[key] for key in keys})
    store = Storage(str(place / f"same-{model}-store"))
    manifest = Manifest.load(store)
    records, _ = read_records(store, manifest)
    in_parts, _ = publish_from_store(store, records, manifest, CatalogueLimits(single_file=10))
    plain = strict({key: getattr(in_parts, key) for key in keys})
    assert found[0] == found[1]
    for key in keys[:2]:
        assert plain[key] == found[0][key]
    assert (plain["redshift"] or {}).get("coverage") == (found[0]["redshift"] or {}).get("coverage")


def test_galaxies_in_hdf5_as_they_are(tmp_path, capsys):
    """Images of bytes, channel-last, with classes as numbers: nothing is rewritten."""
    draw = np.random.default_rng(2)
    images = draw.integers(0, 255, (40, 69, 69, 3), dtype=np.uint8)
    answers = draw.integers(0, len(CLASSES), 40)
    with h5py.File(tmp_path / "Galaxy10.h5", "w") as file:
        file["images"], file["ans"] = images, answers.astype(np.uint8)
        file["ra"], file["dec"] = draw.uniform(0, 360, 40), draw.uniform(-90, 90, 40)
    tiny_classifier(tmp_path / "c.onnx", bands=3, side=69)
    out = str(tmp_path / "run")
    assert main(["run", "--data", str(tmp_path / "Galaxy10.h5"), "--model",
                 str(tmp_path / "c.onnx"), "--out", out, "--quiet"]) == 0  # fmt: skip
    done = perseid.open_run(out)
    table = done.catalogue().to_astropy()
    called = [CLASSES.index(name) for name in table["class"]]
    wanted = metrics.confusion_matrix(answers, called, labels=range(len(CLASSES)))
    assert done.summary["classification"]["confusion"] == wanted.tolist()
    assert main(["report", out]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "Confusion matrix of 3 classes" in page
    assert "predicted redshift" not in page  # a section that could only be empty


@pytest.mark.parametrize("named", [False, True])
def test_labels_in_words_are_the_models_classes(named, tmp_path):
    """Words that are no class are missing labels; a survey's own numbers of them come first."""
    cutouts = tiny_cutouts(30, seed=5)
    words = np.array([[*CLASSES, "star"][row % 4].upper() for row in range(30)])
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "1.h5", "w") as file:
        file["image"] = cutouts.images
        file.create_dataset("label", data=words.astype(object), dtype=h5py.string_dtype())
    if named:
        kinds = {str(10 + place): name for place, name in enumerate(CLASSES)}
        (tmp_path / "data" / "survey.json").write_text(json.dumps({"anomaly_kinds": kinds}))
    keys = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"),
            "model": str(tiny_classifier(tmp_path / "c.onnx"))}  # fmt: skip
    for item in initialize(RunRequest.parse({**keys, "anomaly": "none"})).items:
        work(item)
    summary = summarize(Storage(tmp_path / "run"))
    table = perseid.open_run(tmp_path / "run").catalogue().to_arrow()
    first = 10 if named else 0
    wanted = [None if row % 4 == 3 else first + row % 4 for row in range(30)]
    assert table["label"].to_pylist() == wanted
    found = summary["classification"]
    assert found["n"] == sum(one is not None for one in wanted)
    true = [CLASSES[row % 4] for row in range(30) if row % 4 != 3]
    called = [one for row, one in enumerate(table["class"].to_pylist()) if row % 4 != 3]
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, called))
