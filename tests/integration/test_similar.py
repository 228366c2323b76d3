"""The objects most like one: exact, over all ranks, of runs of this version and the first."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden import golden
from tiny import tiny_model, tiny_survey

import perseid
from perseid.cli import main
from perseid.errors import BadInputError, NotFoundError
from perseid.pipeline import layout
from perseid.pipeline.columns import read_results
from perseid.storage import Storage


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of many ranks, one object of which was flagged."""
    folder = tmp_path_factory.mktemp("similar")
    tiny_survey(folder / "survey", rows=60, per_partition=7)
    tiny_model(folder / "tiny.onnx")
    return perseid.run(
        folder / "survey", model=str(folder / "tiny.onnx"), world_size=5,
        results=str(folder / "run"), progress=False,
    )  # fmt: skip


def everything(run):
    """(ids, partitions, rows, embeddings) of all objects, from the ranks' own files."""
    found = []
    store = Storage(run.url)
    for rank in range(run.manifest.world_size):
        stamp, parts = read_results(store.get(layout.features(rank)), "here")
        width = stamp.groups["embedding"]
        found += [(part.object_id[row], part.key, row, part.features[row, :width])
                  for part in parts for row in range(len(part))]  # fmt: skip
    return found


def test_the_nearest_of_all_ranks(run):
    objects = everything(run)
    features = np.array([one[3] for one in objects], float)
    for place in (0, 17, 59):
        wanted = objects[place]
        distance = np.sqrt(((features - features[place]) ** 2).sum(axis=1))
        order = np.lexsort((np.arange(len(objects)), distance))[:20]
        found = run.similar(int(wanted[0]), n=20)
        assert [one.object_id for one in found] == [objects[i][0] for i in order]
        assert [(one.partition, one.row) for one in found] == [objects[i][1:3] for i in order]
        np.testing.assert_allclose([one.distance for one in found], distance[order], rtol=1e-12)
        assert run.similar(place=wanted[1:3], n=20) == found
    catalogue = run.catalogue().to_astropy()
    row = catalogue[catalogue["object_id"] == found[3].object_id][0]
    assert (row["z_pred"], row["z_spec"]) == (np.float32(found[3].z_pred), found[3].z_spec)


def test_the_command(run, capsys):
    wanted = everything(run)[5]
    assert main(["similar", run.url, "--id", str(wanted[0]), "-n", "3", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (len(plain), plain[0]["object_id"], plain[0]["distance"]) == (3, wanted[0], 0.0)
    place = f"{wanted[1]}:{wanted[2]}"
    assert main(["similar", run.url, "--object", place, "-n", "3", "--use", "both"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(wanted[0]) in lines[-3]


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"object_id": 5}, NotFoundError, "no object of the run .* has the id '5'"),
        ({"object_id": "x"}, NotFoundError, "has the id 'x'"),
        ({"object_id": 2**70}, NotFoundError, "has the id"),
        ({"place": ("1.pt", 7)}, NotFoundError, "has no row 7 of a partition '1.pt'"),
        ({"place": ("nothing.pt", 0)}, NotFoundError, "nothing.pt"),
        ({"place": ("1.pt", 0), "n": 0}, BadInputError, "at least 1"),
        ({"place": ("1.pt", 0), "use": "colour"}, BadInputError, "not known"),
        ({}, BadInputError, "by its id, or by place"),
    ],
)
def test_what_cannot_be_asked(run, asked, error, said):
    with pytest.raises(error, match=said):
        run.similar(**asked)


def test_runs_of_the_first_version(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    golden(tmp_path)
    assert main(["similar", "runs/complete", "--object", "3.pt:5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 38
    assert [found[0][key] for key in ("partition", "row", "distance")] == ["3.pt", 5, 0.0]
    assert main(["similar", "runs/complete", "--id", "1002"]) == 2
    assert "4 objects have the id '1002' (1.pt:2, 2.pt:2, " in capsys.readouterr().err
    assert main(["similar", "bucket/result-partition-1MB/1GB/1", "--id", "1"]) != 0
    assert "has no features to compare" in capsys.readouterr().err
