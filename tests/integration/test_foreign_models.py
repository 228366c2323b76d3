"""Models that others make, exported by torch as it does by default, run over a survey."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import qp
import torch
from foreign_models import (
    GZ_CLASSES,
    LEVELS,
    BinnedRedshift,
    GalaxyClassifier,
    QuantileRedshift,
    ViTEncoder,
    export,
)
from tiny import tiny_cutouts

import perseid
from perseid.cli import main
from perseid.survey import write_cutouts

ROWS, SIDE = 20, 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder of models, each with its signature beside it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    image, magnitude = torch.randn(2, 3, SIDE, SIDE), torch.full((2, 5), 18.0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        export(classifier(), folder / "zoo.onnx", image, names=("image", "votes"))
        export(ViTEncoder(), folder / "vit.onnx", image, names=("image", "embedding"))
        export(QuantileRedshift(), folder / "q.onnx", magnitude, names=("mags", "quantiles"))
        export(BinnedRedshift(), folder / "pdf.onnx", magnitude, names=("mags", "bins"))
    for name in ("zoo", "vit", "q", "pdf"):
        assert main(["model", "describe", str(folder / f"{name}.onnx"), "--yes"]) == 0
    edit(folder / "zoo.onnx", "votes", classes=list(GZ_CLASSES))
    edit(folder / "q.onnx", "quantiles", levels=list(LEVELS))
    grid = np.linspace(0, 1, 21).tolist()
    edit(folder / "pdf.onnx", "bins", kind="pdf", classes=None, grid=grid, bins=True)
    return folder


def classifier() -> GalaxyClassifier:
    """The same weights each time."""
    torch.manual_seed(1)
    return GalaxyClassifier()


def edit(model: Path, output: str, **changes: object) -> None:
    """What a user changes in the file that `perseid model describe` wrote."""
    path = Path(f"{model}.signature.json")
    signature = json.loads(path.read_text())
    found = signature["outputs"][output] | changes
    signature["outputs"][output] = {k: v for k, v in found.items() if v is not None}
    path.write_text(json.dumps(signature))


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    cutouts = {}
    for bands, name in ((3, "grz"), (5, "ugriz")):
        cutouts[name] = tiny_cutouts(ROWS, side=SIDE, bands=bands)
        (folder / name).mkdir()
        write_cutouts(cutouts[name][:12], folder / name / "1.pt")
        write_cutouts(cutouts[name][12:], folder / name / "2.pt")
    return folder, cutouts


def run(folder: Path, survey: Path, model: Path, **keys: object):
    run = perseid.run(
        str(survey), model=str(model), results=str(folder / "run"), progress=False, **keys
    )
    assert run.incomplete is None
    return run.catalogue().to_arrow()


def test_a_classifier_of_ten_classes_and_three_bands(exported, survey, tmp_path):
    folder, cutouts = survey
    table = run(tmp_path, folder / "grz", exported / "zoo.onnx")
    with torch.no_grad():
        logits = classifier().eval()(torch.from_numpy(cutouts["grz"].images))
    wanted = torch.softmax(logits, 1).numpy()
    np.testing.assert_allclose(table["p_round_smooth"].to_numpy(), wanted[:, 2], atol=1e-5)
    assert table["class"].to_pylist() == [GZ_CLASSES[i] for i in wanted.argmax(axis=1)]
    assert (exported / "zoo.onnx.data").exists()


def test_an_encoder_without_a_head_gives_scores_and_lists(exported, survey, tmp_path):
    folder, _ = survey
    table = run(tmp_path, folder / "grz", exported / "vit.onnx", lists="embedding")
    vectors = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    assert vectors.shape == (ROWS, 24)
    assert np.isfinite(vectors).all()
    assert table["anomaly_score"].null_count == 0
    assert "z_pred" not in table.column_names


def test_quantiles_become_a_redshift_and_an_interval(exported, survey, tmp_path):
    folder, _ = survey
    table = run(tmp_path, folder / "ugriz", exported / "q.onnx")
    q = np.column_stack([table[f"z_q{name}"].to_numpy() for name in ("05", "16", "50", "84", "95")])
    assert (np.diff(q, axis=1) > 0).all()
    for name, place in (("z_lo", 1), ("z_pred", 2), ("z_hi", 3)):
        np.testing.assert_array_equal(table[name].to_numpy(), q[:, place])


def test_a_pdf_in_bins_becomes_a_redshift_an_interval_and_a_list(exported, survey, tmp_path):
    folder, _ = survey
    table = run(tmp_path, folder / "ugriz", exported / "pdf.onnx", lists=["pdf"])
    pdf = np.stack(table["z_pdf"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(pdf.sum(axis=1), 1.0, atol=1e-5)
    below = np.concatenate([np.zeros((ROWS, 1)), pdf.cumsum(axis=1)], axis=1)
    for name, level in (("z_lo", 0.16), ("z_pred", 0.5), ("z_hi", 0.84)):
        wanted = [np.interp(level, row, np.linspace(0, 1, 21)) for row in below]
        np.testing.assert_allclose(table[name].to_numpy(), wanted, atol=1e-5)


def test_pdfs_are_compared_with_redshifts_and_opened_by_qp(exported, survey, tmp_path):
    """PIT of each object is what qp says of the same PDF, and the summary counts them."""
    folder, cutouts = survey
    truth = np.asarray(cutouts["ugriz"].redshift, float)
    table = run(tmp_path, folder / "ugriz", exported / "pdf.onnx", lists=["pdf"])
    done = perseid.open_run(tmp_path / "run")
    assert done.catalogue().write(tmp_path / "pdf.hdf5").rows == ROWS
    ensemble = qp.read(str(tmp_path / "pdf.hdf5"))
    wanted = ensemble.cdf(truth[:, None])[:, 0]
    np.testing.assert_allclose(table["z_pit"].to_numpy(), wanted, atol=1e-5)
    found = done.summary["distributions"]
    assert (found["n"], sum(found["pit"])) == (ROWS, ROWS)
    assert found["crps"] == pytest.approx(float(np.mean(table["z_crps"].to_numpy())), rel=1e-5)
    inside = np.mean(np.abs(wanted - 0.5) <= 0.34)
    assert found["coverage"]["0.68"] == pytest.approx(inside)
