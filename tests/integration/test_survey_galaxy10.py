"""A file like Galaxy10's, bands last and classes in ``ans``, is classified as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from tiny import CLASSES, tiny_classifier

from perseid.cli import main

ROWS, SIDE = 40, 69


@pytest.mark.parametrize("how", ["contiguous", "compressed"])
def test_a_classifier_runs_over_it(how: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (ROWS, SIDE, SIDE, 3)) * rng.random((ROWS, 1, 1, 3))
    images = images.astype(np.uint8)
    answers = (np.arange(ROWS) % len(CLASSES)).astype(np.uint8)
    packed = {"compression": "gzip", "chunks": (8, SIDE, SIDE, 3)} if how == "compressed" else {}
    with h5py.File(tmp_path / "Galaxy10.h5", "w") as file:
        file.create_dataset("images", data=images, **packed)
        file["ans"] = answers
        file["ra"], file["dec"] = rng.uniform(0, 360, ROWS), rng.uniform(-90, 90, ROWS)
        file["redshift"] = np.where(answers == 0, np.nan, 0.1)
        file["pxscale"] = np.full(ROWS, 0.262)
    before = hashlib.sha256((tmp_path / "Galaxy10.h5").read_bytes()).digest()
    model = tiny_classifier(tmp_path / "c.onnx", bands=3, side=SIDE)
    words = ["--data", str(tmp_path / "Galaxy10.h5"), "--model", str(model), "--quiet"]
    assert main(["run", *words, "--keep", "all", "--out", str(tmp_path / "run")]) == 0
    assert hashlib.sha256((tmp_path / "Galaxy10.h5").read_bytes()).digest() == before
    got = pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pydict()
    assert got["label"] == answers.tolist()
    assert got["pxscale"] == [0.262] * ROWS
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    pixels = np.moveaxis(images, -1, 1).astype(np.float32)
    (votes,) = session.run(["votes"], {"pixels": pixels})
    assert got["class"] == [CLASSES[place] for place in votes.argmax(axis=1)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (answers, votes.argmax(axis=1)), 1)
    assert np.count_nonzero(confusion.sum(axis=0)) > 1, "the classifier tells some apart"
    assert summary["classification"]["confusion"] == confusion.tolist()
