"""A model's bands are found by name among those of a survey, in the model's order."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveyfiles
from explored import ask, served
from tiny import SIDE, tiny_model

import perseid
from perseid.cli import main
from perseid.errors import BadInputError
from perseid.explore import ExploredRun
from perseid.explore.cutout_images import PictureOptions, draw
from perseid.model.signature import ModelSignature
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage

ROWS = 6
UGRIZ = ("u", "g", "r", "i", "z")


def arrays(bands: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, bands, SIDE, SIDE)).astype(np.float32),
        "magnitude": rng.uniform(15, 22, (ROWS, bands)).astype(np.float32),
        "object_id": np.arange(ROWS),
    }


def model_of(folder: Path, *bands: str) -> str:
    """A model of images and magnitudes whose signature names its bands."""
    path = tiny_model(folder / "m.onnx", bands=len(bands), groups=False)
    signature = ModelSignature("tiny", len(bands), SIDE, SIDE, band_names=bands)
    Path(f"{path}.signature.json").write_text(signature.to_json())
    return str(path)


def run(folder: Path, *bands: str, **keys: object) -> np.ndarray:
    """Redshifts of the rows, in the survey's order; without worker processes, which take longer."""
    given = {"data": str(folder / "data"), "results": str(folder / "run"), "anomaly": "none"}
    request = RunRequest.parse({**given, "model": model_of(folder, *bands), **keys})
    for item in initialize(request, replace=(folder / "run").exists()).items:
        work(item)
    summarize(Storage(folder / "run"))
    table = perseid.open_run(folder / "run").catalogue().to_arrow()
    table = table.sort_by([("partition", "ascending"), ("row", "ascending")])
    return table["z_pred"].to_numpy()


def predicted(folder: Path, images: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    found = perseid.load_model(folder / "m.onnx").predict(perseid.Cutouts(images, magnitudes))
    return np.asarray(found.redshift)


@pytest.mark.parametrize("how", ["option", "survey.json", "both", "other case"])
def test_three_of_five_in_the_models_order(how: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given = arrays(5)
    surveyfiles.write(tmp_path / "data" / "1.npz", given)
    keys: dict[str, object] = {}
    if how in ("survey.json", "both"):
        said = list(UGRIZ) if how == "survey.json" else ["a", "b", "c", "d", "e"]
        (tmp_path / "data" / "survey.json").write_text(json.dumps({"bands": said}))
    if how != "survey.json":
        keys = {"bands": "HSC-U,HSC-G,HSC-R,HSC-I,HSC-Z" if how == "other case" else list(UGRIZ)}
    got = run(tmp_path, "z", "g", "r", **keys)
    wanted = predicted(tmp_path, given["image"][:, [4, 1, 2]], given["magnitude"][:, [4, 1, 2]])
    np.testing.assert_array_equal(got, wanted)


def test_the_page_of_a_run_shows_the_bands_that_the_model_saw(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given = arrays(5)
    surveyfiles.write(tmp_path / "data" / "1.npz", given)
    run(tmp_path, "z", "g", "r", bands=list(UGRIZ))
    explored = ExploredRun(perseid.open_run(tmp_path / "run"))
    with contextlib.closing(explored):
        assert explored.band_names(3) == ("z", "g", "r")
        for row in range(ROWS):
            seen = given["image"][row, [4, 1, 2]]
            np.testing.assert_array_equal(explored.images.image("1.npz", row), seen)
            magnitudes = explored.images.magnitudes("1.npz", row)
            np.testing.assert_array_equal(magnitudes, given["magnitude"][row, [4, 1, 2]])
        with served(perseid.open_run(tmp_path / "run")) as server:
            index = explored.needed_table().values("row", np.arange(ROWS)).index(2)
            picture = ask(server.address, f"cutout/{index}.png?bands=0")
    assert picture.status == 200
    assert picture.body == draw(given["image"][2, [4]], PictureOptions.parse("0", "", ""))


def structured(images: np.ndarray, names: list[list[str]]) -> pa.StructArray:
    flux = pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.float32()))))
    return pa.StructArray.from_arrays([pa.array(names), flux], names=["band", "flux"])


def test_files_of_other_bands_and_other_orders(tmp_path: Path) -> None:
    """As the Multimodal Universe has them: each file says which bands it has."""
    (tmp_path / "data").mkdir()
    wanted = []
    orders = (("DES-G", "DES-R", "DES-Z"), ("z", "r", "g"), ("u", "g", "r", "i", "z"))
    for number, names in enumerate(orders, 1):
        given = arrays(len(names), number)
        table = pa.table({
            "image": structured(given["image"], [list(names)] * ROWS),
            "magnitude": list(given["magnitude"]), "object_id": given["object_id"],
        })  # fmt: skip
        pq.write_table(table, tmp_path / "data" / f"{number}.parquet")
        places = [[one[-1].lower() for one in names].index(band) for band in "grz"]
        wanted.append((given["image"][:, places], given["magnitude"][:, places]))
    got = run(tmp_path, "g", "r", "z")
    images, magnitudes = (np.concatenate(parts) for parts in zip(*wanted, strict=True))
    np.testing.assert_array_equal(got, predicted(tmp_path, images, magnitudes))


def test_rows_of_one_file_in_different_orders_are_refused(tmp_path: Path) -> None:
    """The names of the first row would give the others the wrong bands, in silence."""
    (tmp_path / "data").mkdir()
    given = arrays(3)
    names = [["g", "r", "z"]] * (ROWS - 1) + [["z", "r", "g"]]
    table = pa.table({"image": structured(given["image"], names),
                      "magnitude": list(given["magnitude"])})  # fmt: skip
    pq.write_table(table, tmp_path / "data" / "1.parquet")
    with pytest.raises(BadInputError, match="its rows have different bands"):
        run(tmp_path, "g", "r", "z")


@pytest.mark.parametrize("odd", [0, ROWS - 1], ids=["the first", "the last"])
@pytest.mark.parametrize("side", [SIDE - 1, SIDE + 1], ids=["smaller", "larger"])
def test_rows_of_different_sizes_are_refused_before_the_run(
    odd: int, side: int, tmp_path: Path
) -> None:
    """The footer counts the values, so that no page has to be read."""
    (tmp_path / "data").mkdir()
    images = arrays(3)["image"].tolist()
    images[odd] = np.zeros((3, side, side), np.float32).tolist()
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    table = pa.table({"image": pa.array(images, kind), "magnitude": list(arrays(3)["magnitude"])})
    pq.write_table(table, tmp_path / "data" / "1.parquet")
    with pytest.raises(BadInputError, match=r"1\.parquet: image has lists of other lengths than"):
        run(tmp_path, "g", "r", "z")
    assert not (tmp_path / "run").exists()


def test_a_hats_catalogue_says_it_in_a_file_beside_its_properties(tmp_path: Path) -> None:
    """Names of bands, columns and labels, and a layout that no shape could show."""
    pixel = tmp_path / "data" / "dataset" / "Norder=0" / "Dir=0" / "Npix=3.parquet"
    pixel.parent.mkdir(parents=True)
    (tmp_path / "data" / "hats.properties").write_text("obs_collection=small\n")
    given = arrays(SIDE)  # as many bands as pixels on a side
    names = [f"F{number}W" for number in range(SIDE)]
    last = np.ascontiguousarray(np.moveaxis(given["image"], 1, -1))
    table = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(last),
             "magnitude": list(given["magnitude"]), "zz": np.linspace(0, 1, ROWS)}  # fmt: skip
    pq.write_table(pa.table(table), pixel)
    said = {"bands": names, "layout": "channels-last", "columns": {"redshift": "zz"},
            "anomaly_kinds": {"1": "ring"}}  # fmt: skip
    (tmp_path / "data" / "survey.json").write_text(json.dumps(said))
    for place in (tmp_path / "data", tmp_path / "all"):
        got = run(tmp_path, "F3W", "F1W")
        wanted = predicted(tmp_path, given["image"][:, [3, 1]], given["magnitude"][:, [3, 1]])
        np.testing.assert_array_equal(got, wanted)
        done = perseid.open_run(tmp_path / "run")
        assert done.catalogue().to_arrow()["z_spec"].to_pylist() == table["zz"].tolist()
        assert dict(done.manifest.settings.options.label_names or {}) == {"1": "ring"}
        assert perseid.open_survey(tmp_path / "data").info().bands == tuple(names)
        if place.name == "data":  # the same in a collection, whose main catalogue it is
            shutil.move(tmp_path / "data", tmp_path / "main")
            shutil.move(tmp_path / "main", tmp_path / "data" / "main")
            (tmp_path / "data" / "collection.properties").write_text(
                "obs_collection=all\nhats_primary_table_url=main\n"
            )


REFUSED = {
    "a band that is not there": (
        5, ("g", "y"), "u,g,r,i,z", r"bands u, g, r, i, z and not y, .*`bands`",
    ),
    "as many, but others": (3, ("g", "r", "z"), "g,r,i", r"bands g, r, i and not z"),
    "names of some": (5, ("g", "r"), "g,r,z", r"images of 5 bands, and names of 3 \(g, r, z\)"),
    "no names": (5, ("g", "r"), None, r"name the survey's bands by `bands`"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_one_sentence_before_the_run(what: str, tmp_path: Path) -> None:
    count, wanted, names, sentence = REFUSED[what]
    (tmp_path / "data").mkdir()
    surveyfiles.write(tmp_path / "data" / "1.npz", arrays(count))
    with pytest.raises(BadInputError, match=sentence) as caught:
        run(tmp_path, *wanted, **({} if names is None else {"bands": names}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_of_which_the_model_knows_none_are_taken_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given = arrays(3)
    surveyfiles.write(tmp_path / "data" / "1.npz", given)
    got = run(tmp_path, "g", "r", "z", bands="blue,green,red")
    np.testing.assert_array_equal(got, predicted(tmp_path, given["image"], given["magnitude"]))
    said = perseid.open_run(tmp_path / "run").summary["warnings"]
    assert any("blue, green, red are taken for the model's g, r, z, in this order" in one
               for one in said)  # fmt: skip


def test_survey_info_says_what_a_model_would_take(tmp_path: Path, capsys) -> None:
    (tmp_path / "data").mkdir()
    surveyfiles.write(tmp_path / "data" / "1.npz", arrays(5))
    words = ["survey", "info", str(tmp_path / "data"), "--model", model_of(tmp_path, "g", "r", "z")]
    assert main(words) == 1
    assert "--bands" in capsys.readouterr().out
    assert main([*words, "--bands", "u,g,r,i,z"]) == 0
    assert "5 bands (u, g, r, i, z)" in capsys.readouterr().out


def test_a_description_that_is_none_is_named_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    surveyfiles.write(tmp_path / "data" / "1.npz", arrays(3))
    said = {"bands": 5, "layout": "sideways", "columns": {"redshift": 4}}
    (tmp_path / "data" / "survey.json").write_text(json.dumps(said))
    run(tmp_path, "g", "r", "z")
    notes = perseid.open_run(tmp_path / "run").summary["warnings"]
    for word in ("bands is 5", "layout is 'sideways'", "redshift is 4"):
        assert any(word in one and "not used" in one for one in notes)
