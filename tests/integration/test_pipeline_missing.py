"""Missing values and ids of all types, from the file to the catalogue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import surveyfiles
from tiny import SIDE, tiny_model, tiny_redshift

from perseid.cli import main
from perseid.errors import BadInputError
from perseid.pipeline.columns import MISSING_INPUT, NOT_FINITE
from perseid.pipeline.initialize import initialize
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey import Cutouts
from perseid.survey.split import split

ROWS = 10


def arrays(seed: int = 0, **columns: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, 5, SIDE, SIDE)).astype(np.float32),
        "magnitude": rng.uniform(15, 22, (ROWS, 5)).astype(np.float32),
        "redshift": rng.uniform(0.1, 0.5, ROWS).astype(np.float32),
        **columns,
    }


def run(tmp_path: Path, **given: object) -> tuple[dict, dict]:
    """A run of two ranks: its summary, and the catalogue's columns."""
    request = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"), **given}
    request.setdefault("model", str(tiny_model(tmp_path / "tiny.onnx")))
    begun = initialize(RunRequest.parse(request))
    for item in begun.items:
        work(item)
    summary = summarize(Storage(tmp_path / "run"))
    return summary, pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pydict()


def survey(tmp_path: Path, suffix: str = ".npz", *parts: dict[str, np.ndarray]) -> None:
    (tmp_path / "data").mkdir()
    for number, part in enumerate(parts, start=1):
        surveyfiles.write(tmp_path / "data" / f"{number}{suffix}", part)


def with_gaps() -> dict[str, np.ndarray]:
    """Rows 1 to 4 lack a magnitude, 5 a pixel, 6 to 8 a redshift."""
    given = arrays()
    given["magnitude"][[1, 2, 3, 4], [0, 1, 2, 3]] = -9999, 99, np.nan, 99.99
    given["image"][5, 0, 0, 0] = np.nan
    given["redshift"][[6, 7, 8]] = -9, np.nan, -9999
    return given


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_infinite_redshift_is_missing_and_counted(tmp_path: Path) -> None:
    given = arrays()
    given["redshift"][[1, 2]] = np.inf, -np.inf
    survey(tmp_path, ".npz", given)
    summary, got = run(tmp_path)
    assert [row for row, z in enumerate(got["z_spec"]) if z is None] == [1, 2]
    assert (summary["missing"]["redshift"], summary["redshift"]["n"]) == (2, ROWS - 2)
    assert "2 objects lack a redshift" in " ".join(summary["warnings"])


def test_rows_that_lack_something(tmp_path: Path) -> None:
    survey(tmp_path, ".npz", with_gaps(), arrays(1))
    summary, got = run(tmp_path)
    assert got["flag"] == [0, *[MISSING_INPUT] * 4, NOT_FINITE, *[0] * 14]
    assert [row for row, z in enumerate(got["z_pred"]) if np.isnan(z)] == [1, 2, 3, 4, 5]
    assert [row for row, z in enumerate(got["z_spec"]) if z is None] == [6, 7, 8]
    assert summary["missing"] == {"input": 4, "redshift": 3, "object_id": 0, "label": 0}
    assert summary["rows"] == {"expected": 20, "received": 20, "flagged": 5}
    assert summary["redshift"]["n"] == 20 - 5 - 3
    assert summary["redshift"]["mae"] < 2  # a sentinel would make it hundreds
    said = " ".join(summary["warnings"])
    assert "5 objects have no prediction: a magnitude is missing (flag 3: 4)" in said
    assert "3 objects lack a redshift: they are not in the metrics" in said
    records = json.loads((tmp_path / "run" / "combined_data.json").read_text())
    assert [record["rows_missing"]["input"] for record in records] == [4, 0]


def test_the_users_rules(tmp_path: Path) -> None:
    survey(tmp_path, ".npz", with_gaps(), arrays(1))
    summary, got = run(tmp_path, missing={"magnitude": "none", "redshift": [-9]})
    assert got["flag"] == [0, 0, 0, MISSING_INPUT, 0, NOT_FINITE, *[0] * 14]
    assert got["z_spec"][8] == -9999
    assert summary["missing"]["redshift"] == 2
    begun = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert begun["settings"]["missing"] == {"magnitude": [], "redshift": [-9.0]}


@pytest.mark.parametrize("given", [{"image": [0]}, {"redshift": "x"}, {"redshift": [True]}, [1]])
def test_rules_that_are_refused(given: object, tmp_path: Path) -> None:
    survey(tmp_path, ".npz", arrays())
    with pytest.raises(BadInputError):
        run(tmp_path, missing=given)
    assert not (tmp_path / "run").exists()


def test_the_option_of_the_command_line(tmp_path: Path, capsys) -> None:
    survey(tmp_path, ".npz", with_gaps())
    model = tiny_model(tmp_path / "tiny.onnx")
    options = ["--missing", "redshift=none", "--missing", "magnitude=-9999", "--anomaly", "none"]
    command = ["run", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main([*command, "--model", str(model), "--quiet", *options]) == 0
    got = pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pydict()
    assert got["flag"] == [0, MISSING_INPUT, 0, MISSING_INPUT, 0, NOT_FINITE, 0, 0, 0, 0]
    assert main([*command, "--missing", "pixels=0"]) == 2
    assert "'pixels' has no values that mean missing" in capsys.readouterr().err


def mean_model(path: Path) -> Path:
    """A model of images alone: the mean pixel is the redshift."""
    import onnx
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 5, SIDE, SIDE])
    answer = helper.make_tensor_value_info("redshift", TensorProto.FLOAT, ["n"])
    axes = onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    node = helper.make_node("ReduceMean", ["image", "axes"], ["redshift"], keepdims=0)
    graph = helper.make_graph([node], "mean", [image], [answer], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_magnitude_that_the_model_does_not_use(tmp_path: Path) -> None:
    survey(tmp_path, ".npz", with_gaps())
    summary, got = run(tmp_path, model=str(mean_model(tmp_path / "mean.onnx")), anomaly="none")
    assert got["flag"] == [*[0] * 5, NOT_FINITE, *[0] * 4]
    assert summary["missing"]["input"] == 0


@pytest.mark.parametrize("suffix", surveyfiles.FORMATS)
def test_a_survey_without_magnitudes(suffix: str, tmp_path: Path) -> None:
    given = arrays()
    del given["magnitude"]
    if suffix == ".pt":
        given = {"image": given["image"]}
    survey(tmp_path, suffix, given)
    with pytest.raises(BadInputError, match=r"has no magnitudes \(it has image.*model of images"):
        run(tmp_path)
    split(tmp_path / "data", tmp_path / "parts", rows=4)
    summary, got = run(
        tmp_path,
        model=str(mean_model(tmp_path / "mean.onnx")),
        anomaly="none",
        data=str(tmp_path / "parts"),
    )
    assert summary["status"] == "complete"
    means = given["image"].mean(axis=(1, 2, 3))
    assert np.allclose(got["z_pred"], means, atol=1e-6)


def test_a_survey_of_another_tool(tmp_path: Path) -> None:
    """Galaxy10-like HDF5: bands last, 8-bit, no magnitudes, and ids of DESI."""
    image = np.random.default_rng(5).integers(0, 255, (ROWS, SIDE, SIDE, 5)).astype(np.uint8)
    ids = np.arange(ROWS) + 39627000000000000
    survey(tmp_path, ".h5", {"images": image, "TARGETID": ids, "z_spec": np.full(ROWS, 0.5)})
    summary, got = run(tmp_path, model=str(mean_model(tmp_path / "mean.onnx")), anomaly="none")
    assert got["object_id"] == ids.tolist()
    assert got["z_spec"] == [0.5] * ROWS
    assert np.allclose(got["z_pred"], image.astype(np.float64).mean(axis=(1, 2, 3)), rtol=1e-6)
    said = [note for note in summary["warnings"] if "the column object_id is TARGETID" in note]
    assert len(said) == 1
    assert "the column redshift is z_spec" in said[0]


@pytest.mark.parametrize("suffix", [s for s in surveyfiles.FORMATS if s != ".pt"])
def test_columns_that_the_user_names(suffix: str, tmp_path: Path) -> None:
    """Decoys by our own names beside them are left alone."""
    given = arrays()
    bands = {f"MAG_{band}": given["magnitude"][:, n] for n, band in enumerate("UGRIZ")}
    other = {
        "PIX": given["image"], "Zbest": given["redshift"], "ID": np.arange(ROWS) + (1 << 60),
        "redshift": np.full(ROWS, 9.0), "object_id": np.zeros(ROWS, np.int64), **bands,
    }  # fmt: skip
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        (tmp_path / "data").mkdir()
        table = {n: pa.array(a) for n, a in other.items() if n != "PIX"}
        table["PIX"] = pa.FixedShapeTensorArray.from_numpy_ndarray(given["image"])
        parquet.write_table(pa.table(table), tmp_path / "data" / "1.parquet")
    else:
        survey(tmp_path, suffix, other)
    names = [f"MAG_{band}" for band in "UGRIZ"]
    columns = {"image": "PIX", "redshift": "ZBEST", "object_id": "ID", "magnitude": names}
    _, got = run(tmp_path, columns=columns)
    assert got["object_id"] == [(1 << 60) + n for n in range(ROWS)]
    assert np.allclose(got["z_spec"], given["redshift"])
    wanted = tiny_redshift(Cutouts(given["image"], given["magnitude"]))
    assert np.allclose(got["z_pred"], wanted, rtol=1e-5)
    option = "image=PIX,redshift=Zbest,object_id=ID,magnitude=[" + ",".join(names) + "]"
    parts = str(tmp_path / "parts")
    assert main(["split", str(tmp_path / "data"), parts, "--rows", "4", "--columns", option]) == 0
    (tmp_path / "again").mkdir()
    _, again = run(tmp_path / "again", data=parts)
    assert again["z_pred"] == got["z_pred"]
    with pytest.raises(BadInputError, match=r"has no column Z_BEST for redshift: it has"):
        run(tmp_path, columns={**columns, "redshift": "Z_BEST"}, results=str(tmp_path / "other"))


@pytest.mark.parametrize(
    "columns", [{"colour": "x"}, {"redshift": 3}, {"redshift": ["a", "b"]}, {"image": []}, ["x"]]
)
def test_names_that_are_refused(columns: object, tmp_path: Path) -> None:
    survey(tmp_path, ".npz", arrays())
    with pytest.raises(BadInputError):
        run(tmp_path, columns=columns)
    assert not (tmp_path / "run").exists()


IDS = {
    "int64": np.array([-(1 << 63), (1 << 63) - 1, 1237680000000000001, *range(7)], np.int64),
    "uint64": np.array([(1 << 64) - 1, 1 << 63, *range(8)], np.uint64),
    "text": np.array(["J103040.5+012233", 'é,"x"', "=1+1", "", *map(str, range(6))]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_are_exact_in_the_catalogue(kind: str, tmp_path: Path) -> None:
    ids = IDS[kind]
    survey(tmp_path, ".npz", arrays(0, object_id=ids), arrays(1, object_id=ids[::-1].copy()))
    summary, got = run(tmp_path, world_size=1)
    assert got["object_id"] == [*ids.tolist(), *ids[::-1].tolist()]
    first = pq.read_table(tmp_path / "run" / "ranks" / "0" / "predictions.parquet")
    assert first["object_id"].to_pylist() == got["object_id"]
    assert str(first.schema.field("object_id").type) == {"text": "string"}.get(kind, kind)
    assert any("10 objects have the id of another one" in said for said in summary["warnings"])
    top = {str(entry["object_id"]) for entry in summary["top"]}
    assert top <= {str(value) for value in ids.tolist()}


def test_ids_of_several_types(tmp_path: Path) -> None:
    """Each rank has one: the catalogue holds them all exactly, as text where it must."""
    parts = [arrays(n, object_id=IDS[kind]) for n, kind in enumerate(("int64", "uint64", "text"))]
    survey(tmp_path, ".npz", *parts, arrays(3))
    summary, got = run(tmp_path)
    wanted = [*map(str, IDS["int64"].tolist()), *map(str, IDS["uint64"].tolist())]
    assert got["object_id"] == [*wanted, *IDS["text"].tolist(), *[None] * ROWS]
    assert summary["status"] == "complete"


def test_missing_ids_and_labels_are_null(tmp_path: Path) -> None:
    ids = np.ma.array(np.arange(ROWS, dtype=np.uint64) + np.uint64(1 << 63))
    label = np.ma.array(np.arange(ROWS, dtype=np.int32) % 3)
    ids[3] = label[4] = label[5] = np.ma.masked
    survey(tmp_path, ".parquet", arrays(0, object_id=ids, label=label), arrays(1))
    summary, got = run(tmp_path)
    assert got["object_id"] == [*ids.tolist(), *[None] * ROWS]
    assert got["label"] == [*label.tolist(), *[None] * ROWS]
    assert summary["missing"] == {"input": 0, "redshift": 0, "object_id": 1, "label": 2}
    every = next(found for found in summary["anomaly"]["detection"] if found["kind"] == "all")
    known = label.compressed()
    assert (every["n"], every["plain"]) == (int((known > 0).sum()), int((known == 0).sum()))


@pytest.mark.parametrize(
    ("suffix", "package"), [(".h5", "h5py"), (".fits", "astropy"), (".parquet", "pyarrow")]
)
def test_a_missing_package_is_found_before_the_run(
    suffix: str, package: str, tmp_path: Path
) -> None:
    survey(tmp_path, suffix, arrays())
    model = tiny_model(tmp_path / "tiny.onnx")
    hide = f"import sys; sys.modules[{package!r}] = None; from perseid.cli import main; "
    words = ["run", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}sys.exit(main({[*words, '--model', str(model)]!r}))"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"needs {package}, which is not installed" in done.stderr
    assert f"pip install {package} there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_predictions_do_not_depend_on_gaps_beside_them(tmp_path: Path) -> None:
    given = with_gaps()
    survey(tmp_path, ".npz", given)
    _, got = run(tmp_path)
    cutouts = Cutouts(given["image"], given["magnitude"])
    good = [0, 6, 7, 8, 9]
    assert np.allclose(np.array(got["z_pred"])[good], tiny_redshift(cutouts)[good], rtol=1e-5)
