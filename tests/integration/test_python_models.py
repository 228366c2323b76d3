"""Models that are Python classes: scikit-learn on magnitudes alone, here and in what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from tiny import tiny_cutouts

import perseid
from perseid.aws.executions import check_places
from perseid.cli import main
from perseid.errors import BadInputError, BadModelError
from perseid.pipeline.request import RunRequest
from perseid.survey import write_cutouts

SOURCE = """
import pickle
from pathlib import Path

class Forest:
    files = ["forest.pickle"]
    signature = {
        "name": "forest",
        "inputs": {"magnitude": {"kind": "column", "column": "magnitude", "width": 5}},
        "outputs": {"z": {"kind": "redshift"}},
    }

    def __init__(self):
        self.forest = pickle.loads((Path(__file__).parent / "forest.pickle").read_bytes())

    def predict(self, images, columns):
        assert images is None
        return {"z": self.forest.predict(columns["magnitude"])}

class Undeclared(Forest):
    def __init__(self):
        super().__init__()
"""
SPEC = "python:photoz.forest:Forest"


@pytest.fixture
def place(tmp_path: Path):
    """A folder with a package of a forest, and a survey."""
    package = tmp_path / "models" / "photoz"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "forest.py").write_text(SOURCE)
    cutouts = tiny_cutouts(30)
    forest = RandomForestRegressor(8, random_state=0).fit(cutouts.magnitudes, cutouts.redshift)
    (package / "forest.pickle").write_bytes(pickle.dumps(forest))
    (tmp_path / "survey").mkdir()
    write_cutouts(cutouts[:20], tmp_path / "survey" / "1.pt")
    write_cutouts(cutouts[20:], tmp_path / "survey" / "2.pt")
    wanted = forest.predict(cutouts.magnitudes.astype(np.float32))
    return tmp_path, wanted.astype(np.float32)


def keys(folder: Path, **more: object) -> dict[str, object]:
    return {
        "model": SPEC, "model_path": str(folder / "models"), "results": str(folder / "run"),
        "progress": False, **more,
    }  # fmt: skip


def test_a_forest_on_magnitudes_alone(place):
    folder, wanted = place
    images = tiny_cutouts(30).images
    images[4] = np.nan  # the forest never sees them
    run = perseid.run(str(folder / "survey"), **keys(folder))
    assert run.incomplete is None
    np.testing.assert_array_equal(run.catalogue().to_arrow()["z_pred"].to_numpy(), wanted)
    assert run.summary["model"]["kind"] == "python"
    assert not any("not verifiable" in one for one in run.summary["warnings"])


TYPES = """
import numpy as np

class Typed:
    files = []
    signature = {
        "name": "typed",
        "inputs": {
            name: {"kind": "column", "column": name.upper(), "dtype": name}
            for name in ("float16", "float32", "float64", "int32", "int64")
        },
        "outputs": {"exact": {"kind": "value", "column": "exact"}},
    }

    def predict(self, images, columns):
        assert {name: str(array.dtype) for name, array in columns.items()} == {
            name: name for name in columns
        }
        wide = columns["int64"] - 2**40 + columns["int32"] - 2**25
        return {"exact": wide + columns["float64"] - 2.0**30}
"""


def test_columns_have_the_types_of_the_signature(tmp_path):
    """All came as float32, in which 2**40 + 1 is 2**40."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "typed.py").write_text(TYPES)
    (tmp_path / "survey").mkdir()
    steps = np.arange(5)
    np.savez(
        tmp_path / "survey" / "1.npz", INT64=2**40 + steps, INT32=2**25 + steps,
        FLOAT64=2.0**30 + 2.0**-8 * steps, FLOAT32=np.ones(5), FLOAT16=np.ones(5), object_id=steps,
    )  # fmt: skip
    run = perseid.run(str(tmp_path / "survey"), **keys(tmp_path, model="python:typed:Typed"))
    found = run.catalogue().to_arrow().sort_by("object_id")["exact"].to_numpy()
    np.testing.assert_array_equal(found, 2 * steps + 2.0**-8 * steps)


@pytest.mark.parametrize("changed", ["forest.py", "forest.pickle"])
def test_a_resumption_refuses_another_source_or_another_file(place, changed):
    folder, wanted = place
    perseid.run(str(folder / "survey"), **keys(folder))
    for name in ("1.json", "summary.json", "merged.json", "catalogue.parquet"):
        (folder / "run" / name).unlink()
    path = folder / "models" / "photoz" / changed
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    with pytest.raises(BadModelError, match="is not the one that the run at"):
        perseid.resume(str(folder / "run"), progress=False)
    path.write_bytes(before)
    again = perseid.resume(str(folder / "run"), progress=False)
    assert again.incomplete is None
    np.testing.assert_array_equal(again.catalogue().to_arrow()["z_pred"].to_numpy(), wanted)


def test_a_model_that_declares_nothing_is_not_verifiable(place):
    folder, _ = place
    run = perseid.run(
        str(folder / "survey"), **keys(folder, model="python:photoz.forest:Undeclared")
    )
    assert any("is not verifiable" in one for one in run.summary["warnings"])


def test_a_module_in_the_current_folder_is_not_found_unless_it_is_named(place, monkeypatch, capsys):
    """Planted modules: whoever may write where a command is called must not run code there."""
    folder, _ = place
    monkeypatch.chdir(folder / "models")
    arguments = ["run", "--data", str(folder / "survey"), "--model", SPEC, "--quiet"]
    assert main([*arguments, "--out", str(folder / "run")]) == 2
    said = capsys.readouterr().err
    assert "has no module photoz.forest where its workers run" in said
    assert "--model-path" in said
    assert not (folder / "run").exists()
    assert main([*arguments, "--out", str(folder / "run"), "--model-path", os.curdir]) == 0


def test_aws_has_none_of_the_code_and_names_the_image(place):
    request = RunRequest.parse({"data": "s3://b/survey", "results": "s3://b/run", "model": SPEC})
    with pytest.raises(BadInputError, match="--worker-image"):
        check_places(request)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("return {", "return ["), "cannot be imported: SyntaxError|is not a Python source"),
        (('return {"z"', 'return {"y"'), "gave no 'z', only y"),
        (('columns["magnitude"]', 'columns["mags"]'), "fails when it computes: KeyError: 'mags'"),
        (("class Forest", "class Wood"), "defines no class Forest"),
        (('"forest.pickle"]', '"gone.pickle"]'), "declares the file .*gone.pickle"),
        (('"kind": "redshift"', '"kind": "red"'), "is of the kind 'red'"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(place, change, sentence):
    folder, _ = place
    source = folder / "models" / "photoz" / "forest.py"
    source.write_text(SOURCE.replace(*change).partition("class Undeclared")[0])
    with pytest.raises(BadModelError, match=sentence):
        perseid.run(str(folder / "survey"), **keys(folder))
    assert not (folder / "run").exists()
