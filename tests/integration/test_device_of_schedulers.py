"""``device`` of a run through Dask and Slurm: their workers compute what this machine's do.

Weights of AstroMAE through torch, on the processor everywhere, and on a GPU where there is one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random_network, random_rows

import perseid
from perseid.model.config import SMALL
from perseid.model.training.astromae import to_weights
from perseid.model.weights import save_weights
from perseid.pipeline import layout
from perseid.storage import Storage
from perseid.survey.cutouts import Cutouts
from perseid.survey.reader import write_cutouts

pytestmark = pytest.mark.slow
ROWS, WITHIN = 40, 1e-4
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("device")
    for number in (1, 2):
        write_cutouts(Cutouts(*random_rows(ROWS, SMALL)), folder / "survey" / f"{number}.pt")
    save_weights(to_weights(random_network(SMALL)), folder / "weights.npz")
    return {"data": str(folder / "survey"), "model": str(folder / "weights.npz"),
            "memory_mb": 8192, "progress": False}  # fmt: skip


def redshifts(run: perseid.Run) -> np.ndarray:
    assert run.incomplete is None
    return run.catalogue().to_arrow()["z_pred"].to_numpy()


def check(engine: perseid.Engine, keys: dict[str, object], folder: Path, device: str) -> None:
    here = perseid.run(**keys, results=str(folder / "here"), device=device)
    there = perseid.run(**keys, results=str(folder / "there"), device=device, engine=engine)
    found = redshifts(there)
    assert len(found) == 2 * ROWS
    np.testing.assert_allclose(
        found, redshifts(here), rtol=0, atol=0 if device == "cpu" else WITHIN
    )
    store = Storage(there.url)
    records = [json.loads(store.get(layout.record(rank.rank))) for rank in there.ranks]
    assert {record["device"] for record in records} == {device}


@pytest.mark.parametrize("device", DEVICES)
def test_dask(keys, tmp_path, device):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1",
            memory_limit=0, resources={"GPU": 1},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        check(perseid.DaskEngine(client, resources={"GPU": 1}), keys, tmp_path, device)


@pytest.mark.slurm
@pytest.mark.parametrize("device", DEVICES)
def test_slurm(slurm, keys, tmp_path, device):
    check(perseid.SlurmEngine(sbatch="--mem=0"), keys, tmp_path, device)
