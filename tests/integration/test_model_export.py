"""``perseid model export``: from weights to what a worker loads, float32 and int8."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from networks import random_network, random_rows

from perseid.cli import main
from perseid.errors import BadInputError, BadModelError
from perseid.model.config import SMALL
from perseid.model.export.compare import compare
from perseid.model.export.exporter import export_int8, export_model
from perseid.model.export.quantize import calibrate
from perseid.model.runtime import ModelRuntime
from perseid.model.runtime.processor import has_int8_products
from perseid.model.training.astromae import to_weights
from perseid.model.weights import save_weights
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

CONFIG = dataclasses.replace(SMALL, depth=2)
needs_vnni = pytest.mark.skipif(not has_int8_products(), reason="this processor has no VNNI")


def survey(n: int, seed: int = 5, config=CONFIG) -> Cutouts:
    images, magnitudes = random_rows(n, config, seed)
    return Cutouts(images, magnitudes, np.abs(magnitudes[:, 0] - 18) * 0.05)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    weights = to_weights(random_network(CONFIG))
    export_model(weights, folder / "m.onnx")
    export_int8(weights, folder / "m.onnx", survey(200))
    return folder / "m.onnx"


def test_int8_is_the_encoder_alone(exported):
    graph = onnx.load(str(exported).replace(".onnx", ".int8.onnx")).graph
    integer = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    # 6 products a block (queries, keys, values, the sum of heads, two of the MLP) but the last
    # one's second (taken after the mean) in the plain pass
    assert len(integer) == (6 * 2 - 1) + 6 * 2 + 6 * CONFIG.decoder_depth
    assert all(node.name.startswith(("blocks.", "decoder.blocks.")) for node in integer)
    rest = [node.name for node in graph.node if node.op_type == "MatMul"]
    assert any(name.startswith("magnitude") for name in rest)
    assert any(name.startswith("head") for name in rest)


@needs_vnni
def test_int8_is_near_float32(exported):
    before, after = ModelRuntime.load(exported), ModelRuntime.load(exported, precision="int8")
    assert (after.precision, after.note) == ("int8", "")
    change = compare(before, after, survey(300, seed=8))
    assert change.rows == 300
    assert 0 < change.largest < 0.01
    assert abs(change.mae[1] - change.mae[0]) < 1e-3
    assert change.spearman > 0.98
    assert change.top > 0.7


@needs_vnni
def test_int8_bits_do_not_depend_on_the_place_of_a_row(exported):
    runtime = ModelRuntime.load(exported, precision="int8", threads=2)
    rows = survey(130)
    whole = runtime.predict(rows.images, rows.magnitudes)
    part = runtime.predict(rows.images[37:], rows.magnitudes[37:])
    assert part.redshift.tobytes() == whole.redshift[37:].tobytes()
    assert part.features.tobytes() == whole.features[37:].tobytes()


def test_without_vnni_the_model_runs_in_float32_and_says_so(exported, monkeypatch):
    monkeypatch.setattr("perseid.model.runtime.model_runtime.has_int8_products", lambda: False)
    runtime = ModelRuntime.load(exported, precision="int8")
    assert runtime.precision == "float32"
    assert "VNNI" in runtime.note


@needs_vnni
def test_a_model_without_an_int8_form(exported, tmp_path):
    (tmp_path / "alone.onnx").write_bytes(exported.read_bytes())
    with pytest.raises(BadModelError, match=r"alone\.int8\.onnx"):
        ModelRuntime.load(tmp_path / "alone.onnx", precision="int8")


def test_calibration_covers_what_goes_into_each_product():
    weights = to_weights(random_network(CONFIG))
    few, many = (calibrate(weights, survey(70)[:n]) for n in (10, 70))
    assert few.keys() == many.keys()
    for number, (low, high) in few.items():
        assert low < high
        assert many[number][0] <= low + 1e-5
        assert many[number][1] >= high - 1e-5


def test_surveys_that_cannot_calibrate():
    weights = to_weights(random_network(CONFIG))
    with pytest.raises(BadInputError, match="no usable row"):
        calibrate(weights, survey(3)[:0])
    other = Cutouts(np.zeros((2, 4, 32, 32), np.float32), np.zeros((2, 4)))
    with pytest.raises(BadModelError, match=r"\(4, 32, 32\)"):
        calibrate(weights, other)


def test_compare_says_nothing_changed_for_the_same_model(exported):
    runtime = ModelRuntime.load(exported)
    rows = survey(100)
    rows.images[3, 0, 0, 0] = np.nan  # left out
    change = compare(runtime, runtime, rows)
    assert change.rows == 99
    assert (change.largest, change.spearman, change.top) == (0.0, pytest.approx(1.0), 1.0)
    assert change.mae[0] == change.mae[1] > 0
    unknown = compare(runtime, runtime, Cutouts(rows.images, rows.magnitudes))
    assert unknown.mae is None
    assert unknown.nmad is None


def test_the_command_exports_calibrates_and_checks(tmp_path, capsys):
    save_weights(to_weights(random_network(CONFIG)), tmp_path / "w.npz")
    for number, rows in enumerate((70, 40), start=9):
        write_cutouts(survey(rows, number), tmp_path / "survey" / f"{number}.pt")
    command = ["model", "export", str(tmp_path / "w.npz"), str(tmp_path / "m.onnx")]
    data = str(tmp_path / "survey")
    assert main([*command, "--int8", "--calibrate", data, "--check", data]) == 0
    said = capsys.readouterr().out
    assert "redshift and embedding (96), residual" in said
    assert "m.int8.onnx: int8 encoder" in said
    if has_int8_products():
        assert "on 110 rows" in said
        for word in ("MAE", "NMAD", "Spearman"):
            assert word in said
    assert main(["model", "info", str(tmp_path / "m.onnx")]) == 0
    assert "32 x 32 pixels" in capsys.readouterr().out
    assert main([*command, "--int8"]) == 2
    assert "--calibrate" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*command, "--int8", "--calibrate", str(tmp_path / "empty")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
