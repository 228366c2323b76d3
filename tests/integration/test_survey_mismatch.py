"""Each mismatch between survey and model is one sentence before the run, with what mends it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveyfiles
from onnx import TensorProto, helper
from tiny import SIDE, tiny_cutouts, tiny_model, tiny_redshift

from perseid.cli import main
from perseid.errors import BadInputError
from perseid.model.inputs import ColumnInput
from perseid.model.outputs import REDSHIFT
from perseid.model.signature import ModelSignature
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage
from perseid.survey import Cutouts
from perseid.survey.reader import write_cutouts

ROWS = 6


def dust_model(folder: Path) -> str:
    """A model of one column alone: its redshift is twice the reddening."""
    numbers = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"])
               for n in ("dust", "redshift")]  # fmt: skip
    node = helper.make_node("Add", ["dust", "dust"], ["redshift"])
    graph = helper.make_graph([node], "dust", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "dust.onnx")
    signature = ModelSignature(
        "dust", 0, 0, 0, band_names=(), columns=(ColumnInput("dust", "ebv"),), outputs=(REDSHIFT,)
    )
    (folder / "dust.onnx.signature.json").write_text(signature.to_json())
    return str(folder / "dust.onnx")


def request(folder: Path, arrays: dict[str, np.ndarray], **given: object) -> RunRequest:
    (folder / "data").mkdir()
    surveyfiles.write(folder / "data" / "1.npz", arrays)
    keys = {"data": str(folder / "data"), "results": str(folder / "run"), "anomaly": "none"}
    return RunRequest.parse({**keys, **given})


def images(bands: int = 5, side: int = SIDE) -> np.ndarray:
    return np.ones((ROWS, bands, side, side), np.float32)


@pytest.mark.parametrize("name", ["ebv", "EBV", "EBV_SFD"])
def test_a_model_of_one_column_needs_nothing_else(name: str, tmp_path: Path) -> None:
    dust = np.arange(ROWS, dtype=np.float64)
    dust[2] = np.nan
    columns = {"columns": {"ebv": name}} if name == "EBV_SFD" else {}
    wanted = request(tmp_path, {name: dust}, model=dust_model(tmp_path), **columns)
    assert not [said for said in plan(wanted).warnings if "nothing uses" in said]
    for item in initialize(wanted).items:
        assert not work(item).failed_partitions
    summarize(Storage(tmp_path / "run"))
    got = pq.read_table(tmp_path / "run" / "catalogue.parquet").to_pydict()
    assert got["flag"] == [0, 0, 3, 0, 0, 0]
    assert [got["z_pred"][row] for row in (0, 1, 3, 4, 5)] == [0, 2, 6, 8, 10]


MISMATCHES = {
    "no such column": (
        "dust", {"EBV_SFD": np.ones(ROWS)}, {},
        r"no column ebv \(it has EBV_SFD\), which the input `dust` of the model 'dust' takes: name "
        "the survey's column by `columns={'ebv': 'NAME'}`",
    ),
    "no images": (
        "tiny", {"magnitude": np.ones((ROWS, 5), np.float32)}, {},
        r"no images \(it has magnitude\), which the input `image` of the model 'tiny' takes",
    ),
    "no magnitudes": (
        "tiny", {"image": images()}, {},
        r"no magnitudes \(it has image\), which the input `magnitude` of the model 'tiny' takes: "
        "name their columns by `columns={'magnitude'",
    ),
    "magnitudes of three bands": (
        "tiny", {"image": images(), "magnitude": np.ones((ROWS, 3), np.float32)}, {},
        "3 magnitudes a row, but the input `magnitude` of the model 'tiny' takes 5: .*`columns=",
    ),
    "larger images": (
        "tiny", {"image": images(side=SIDE + 2), "magnitude": np.ones((ROWS, 5))}, {},
        "`fit='crop'`",
    ),
    "smaller images": (
        "tiny", {"image": images(side=SIDE - 3), "magnitude": np.ones((ROWS, 5))}, {},
        "`fit='pad'`",
    ),
    "one side larger and one smaller": (
        "tiny", {"image": images()[:, :, 1:].repeat(2, 3), "magnitude": np.ones((ROWS, 5))}, {},
        "neither `fit='crop'` nor `fit='pad'` makes both sides fit",
    ),
    "cropped where it is to be padded": (
        "tiny", {"image": images(side=SIDE - 3), "magnitude": np.ones((ROWS, 5))}, {"fit": "crop"},
        r"\(5, 5, 5\), but .* takes \(5, 8, 8\): fit them by `fit='pad'`",
    ),
    "bands that are last": (
        "tiny", {"image": np.ones((ROWS, SIDE, SIDE + 1, 5), np.uint8)}, {},
        "`layout='channels-last'`",
    ),
    "a column that is not an input": (
        "tiny", {"image": images(), "magnitude": np.ones((ROWS, 5))}, {"columns": {"ebv": "x"}},
        "'ebv' is not a column: use image, magnitude, redshift, object_id, label, ra, dec",
    ),
    "a column that is not there": (
        "tiny", {"image": images(), "magnitude": np.ones((ROWS, 5))}, {"columns": {"ra": "RA2"}},
        "the survey has no column RA2 for ra: it has image, magnitude",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISMATCHES)
def test_it_is_said_before_the_run(what: str, tmp_path: Path) -> None:
    model, arrays, given, sentence = MISMATCHES[what]
    url = dust_model(tmp_path) if model == "dust" else str(tiny_model(tmp_path / "tiny.onnx"))
    with pytest.raises(BadInputError, match=sentence) as caught:
        initialize(request(tmp_path, arrays, model=url, **given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "height", "width"),
    [("pad", SIDE - 3, SIDE - 2), ("pad", 1, SIDE), ("crop", SIDE + 3, SIDE + 2),
     ("crop", SIDE, SIDE + 1)],
)  # fmt: skip
def test_images_of_another_size_are_fitted_about_their_middle(
    how: str, height: int, width: int, tmp_path: Path
) -> None:
    """A pixel in the middle stays there; of an odd difference, the spare pixel is at the end."""
    given = np.random.default_rng(1).normal(size=(ROWS, 5, height, width)).astype(np.float32)
    wanted = np.zeros((ROWS, 5, SIDE, SIDE), np.float32)
    for row in range(SIDE):
        for column in range(SIDE):
            y, x = row + (height - SIDE) // 2, column + (width - SIDE) // 2
            if how == "pad":
                y, x = row - (SIDE - height) // 2, column - (SIDE - width) // 2
            if 0 <= y < height and 0 <= x < width:
                wanted[:, :, row, column] = given[:, :, y, x]
    magnitude = np.full((ROWS, 5), 18.0)
    url = str(tiny_model(tmp_path / "tiny.onnx"))
    asked = request(tmp_path, {"image": given, "magnitude": magnitude}, model=url, fit=how)
    for item in initialize(asked).items:
        assert not work(item).failed_partitions
    summarize(Storage(tmp_path / "run"))
    got = pq.read_table(tmp_path / "run" / "catalogue.parquet")["z_pred"].to_numpy()
    np.testing.assert_allclose(got, tiny_redshift(Cutouts(wanted, magnitude)), rtol=1e-5)


@pytest.mark.parametrize(
    ("array", "said"),
    [(np.ones((ROWS, 5, SIDE, SIDE), complex), "image must be numbers, not complex128"),
     (np.ones((ROWS, SIDE), np.float32), r"or \(n, height, width\) of one band, not \(6, 8\)")],
    ids=["complex", "rows"],
)  # fmt: skip
def test_a_survey_of_which_no_file_can_be_read_starts_no_run(
    array: np.ndarray, said: str, tmp_path: Path
) -> None:
    arrays = {"image": array, "magnitude": np.ones((ROWS, 5))}
    model = str(tiny_model(tmp_path / "tiny.onnx"))
    with pytest.raises(BadInputError, match=f"no partition of the survey can be read: .*{said}"):
        initialize(request(tmp_path, arrays, model=model))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors", ".hdf5", ".fits", ".parquet"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside-rows"])
def test_a_survey_without_rows_starts_no_run(suffix: str, alone: bool, tmp_path: Path) -> None:
    model, data = str(tiny_model(tmp_path / "tiny.onnx")), tmp_path / "data"
    data.mkdir()
    write_cutouts(tiny_cutouts(4)[:0], data / f"0{suffix}")
    plain = {"data": str(data), "results": str(tmp_path / "run"), "model": model}
    if alone:
        with pytest.raises(BadInputError, match=r"no partition .* holds no rows: take it out"):
            initialize(RunRequest.parse(plain))
        assert not (tmp_path / "run").exists()
    else:
        write_cutouts(tiny_cutouts(4), data / f"1{suffix}")
        assert len(initialize(RunRequest.parse(plain)).items) == 2


def test_lists_of_no_rows_have_no_length_to_speak_of(tmp_path: Path, capsys) -> None:
    """Nested lists as other tools write them; our own files state the shape."""
    (tmp_path / "data").mkdir()
    numbers = pa.list_(pa.float32())
    table = pa.table({"image": pa.array([], pa.list_(pa.list_(numbers))),
                      "magnitude": pa.array([], numbers)})  # fmt: skip
    pq.write_table(table, tmp_path / "data" / "0.parquet")
    plain = {"data": str(tmp_path / "data"), "results": str(tmp_path / "run"),
             "model": str(tiny_model(tmp_path / "tiny.onnx"))}  # fmt: skip
    with pytest.raises(BadInputError, match="holds no rows: take it out"):
        initialize(RunRequest.parse(plain))
    assert main(["survey", "info", plain["data"]]) == 0
    assert "images      not known, since there are no rows" in capsys.readouterr().out


def test_what_the_model_does_not_use_may_be_missing(tmp_path: Path) -> None:
    """Magnitudes and redshifts of rows are gone: a model of one column predicts them."""
    arrays = {"ebv": np.ones(ROWS), "magnitude": np.full((ROWS, 3), np.nan),
              "redshift": np.full(ROWS, -9999.0), "image": images(2) * np.nan}  # fmt: skip
    for item in initialize(request(tmp_path, arrays, model=dust_model(tmp_path))).items:
        record = work(item)
        assert (record.rows, record.rows_flagged) == (ROWS, 0)


def test_the_sentences_name_an_option_that_there_is() -> None:
    from perseid.cli import make_parser

    known = make_parser(["run"]).parse_args
    for *_, sentence in MISMATCHES.values():
        for option in re.findall(r"--[a-z]+", sentence):
            values = {"--fit": "crop", "--layout": "channels-last"}
            known(["run", option, values.get(option, "x")])
