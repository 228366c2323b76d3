"""Columns of the survey in the catalogue: coordinates, kept ones, collisions, units, values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import surveyfiles
from astropy.io import fits
from astropy.table import Table
from tiny import SIDE, tiny_model

from perseid.errors import BadInputError
from perseid.pipeline.initialize import initialize, plan
from perseid.pipeline.publish import COLUMNS_KEY
from perseid.pipeline.request import RunRequest
from perseid.pipeline.summarize import summarize
from perseid.pipeline.work import work
from perseid.storage import Storage

ROWS = 8
NAMED = tuple(suffix for suffix in surveyfiles.FORMATS if suffix != ".pt")
"""Formats whose columns have names."""


def arrays(seed: int = 0, **columns: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(ROWS, 5, SIDE, SIDE)).astype(np.float32),
        "magnitude": rng.uniform(15, 22, (ROWS, 5)).astype(np.float32),
        **columns,
    }


def survey(folder: Path, suffix: str, *parts: dict[str, np.ndarray]) -> None:
    (folder / "data").mkdir()
    for number, part in enumerate(parts, start=1):
        surveyfiles.write(folder / "data" / f"{number}{suffix}", part)


def request(folder: Path, **given: object) -> RunRequest:
    keys = {"data": str(folder / "data"), "results": str(folder / "run"), **given}
    keys.setdefault("model", str(tiny_model(folder / "tiny.onnx")))
    return RunRequest.parse(keys)


def run(folder: Path, **given: object) -> tuple[pq.ParquetFile, dict[str, list]]:
    """A whole run: the catalogue's file, and its columns."""
    for item in initialize(request(folder, **given)).items:
        work(item)
    summarize(Storage(folder / "run"))
    file = pq.ParquetFile(folder / "run" / "catalogue.parquet")
    return file, file.read().to_pydict()


def of_every_type(suffix: str) -> dict[str, np.ndarray]:
    """One column a type, with the values that are lost most easily."""
    count = np.arange(ROWS)
    numbers: dict[str, np.ndarray] = {
        "f4": np.float32(0.1) * count.astype(np.float32),
        "f8": 0.1 * count,
        "i2": (count - 3).astype(np.int16),
        "i8": (1 << 62) + count.astype(np.int64),
        "u1": (250 + count % 5).astype(np.uint8),
        "u8": (np.uint64(1 << 63) + count.astype(np.uint64)),
    }
    numbers["b1"] = count % 3 == 0
    if suffix != ".safetensors":  # it holds numbers only
        accent = "" if suffix == ".fits" else "é"  # its text is ASCII
        numbers["BRICKNAME"] = np.array([f"0001p{n:03}{accent}" for n in count])
    return numbers


@pytest.mark.parametrize("suffix", NAMED)
def test_kept_columns_are_exact_in_every_format(suffix: str, tmp_path: Path) -> None:
    kept = of_every_type(suffix)
    position = {"RA": np.linspace(0, 350, ROWS), "DEC": np.linspace(-80, 80, ROWS)}
    survey(tmp_path, suffix, arrays(0, **position, **kept), arrays(1))
    _, got = run(tmp_path, keep="all", world_size=1)
    for name, values in kept.items():
        assert got[name] == [*values.tolist(), *[None] * ROWS], name
    assert got["ra"] == [*position["RA"].tolist(), *[None] * ROWS]
    assert got["dec"] == [*position["DEC"].tolist(), *[None] * ROWS]


def test_only_what_is_asked_for_is_kept_and_the_rest_is_named_once(tmp_path: Path) -> None:
    extra = {name: np.arange(ROWS, dtype=np.float64) for name in ("EBV", "SERSIC", "FLUX_G")}
    survey(tmp_path, ".parquet", *[arrays(n, **extra) for n in range(3)])
    said = plan(request(tmp_path, keep=["sersic"])).warnings
    (note,) = [one for one in said if "nothing uses" in one]
    assert "EBV, FLUX_G" in note
    assert "`keep='all'`" in note
    file, got = run(tmp_path, keep=["sersic"])
    assert got["SERSIC"] == extra["SERSIC"].tolist() * 3
    assert "EBV" not in file.schema_arrow.names


def test_a_column_that_has_the_name_of_one_of_ours(tmp_path: Path) -> None:
    others = {"flag": np.arange(ROWS, dtype=np.int32), "survey_flag": np.ones(ROWS),
              "Z_PRED": np.zeros(ROWS)}  # fmt: skip
    survey(tmp_path, ".npz", arrays(0, **others))
    _, got = run(tmp_path, keep="all")
    assert got["flag"] == [0] * ROWS
    assert got["survey_flag"] == others["flag"].tolist()
    assert got["survey_survey_flag"] == others["survey_flag"].tolist()
    assert got["survey_Z_PRED"] == others["Z_PRED"].tolist()


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    ints = np.ma.array(np.arange(ROWS, dtype=np.int64))
    floats = np.ma.array(np.arange(ROWS, dtype=np.float64))
    ints[2] = floats[3] = np.ma.masked
    survey(tmp_path, ".parquet", arrays(0, count=ints, ebv=floats))
    _, got = run(tmp_path, keep="count,ebv")
    assert [row for row, value in enumerate(got["count"]) if value is None] == [2]
    assert [row for row, value in enumerate(got["ebv"]) if value is None] == [3]


def test_names_units_and_ucds_of_fits_are_in_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given = arrays()
    ids = np.array([f"{'39633' + str(n):0>19}" for n in range(ROWS)])
    columns = [
        fits.Column("TARGETID", "19A", array=ids),
        fits.Column("RA", "D", unit="deg", array=np.linspace(1, 2, ROWS)),
        fits.Column("DEC", "D", unit="deg", array=np.linspace(1, 2, ROWS)),
        fits.Column("EBV", "E", unit="mag", array=np.ones(ROWS, np.float32)),
        fits.Column("mag", "5E", array=given["magnitude"]),
        fits.Column("image", f"{5 * SIDE**2}E", dim=f"({SIDE},{SIDE},5)", array=given["image"]),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TUCD4"] = "phys.absorption.gal"
    table.writeto(tmp_path / "data" / "1.fits")
    file, got = run(tmp_path, keep="EBV", columns={"magnitude": "mag"})
    assert got["object_id"] == ids.tolist()
    about = {
        spec["name"]: spec for spec in json.loads(file.metadata.metadata[COLUMNS_KEY.encode()])
    }
    assert about["object_id"]["source"] == "TARGETID"
    assert (about["ra"]["unit"], about["ra"]["ucd"]) == ("deg", "pos.eq.ra;meta.main")
    assert (about["EBV"]["unit"], about["EBV"]["ucd"]) == ("mag", "phys.absorption.gal")
    read = Table.read(tmp_path / "run" / "catalogue.parquet", format="parquet.votable")
    assert (str(read["ra"].unit), str(read["EBV"].unit)) == ("deg", "mag")
    assert "TARGETID" in read["object_id"].description


@pytest.mark.parametrize(
    ("keep", "said"),
    [("nope", r"`keep` names the column nope, which the survey lacks: it has"),
     ("magnitude", r"`keep` names the column magnitude, which has \(5,\) values per row")],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_before_the_run(
    keep: str, said: str, tmp_path: Path
) -> None:
    survey(tmp_path, ".npz", arrays())
    with pytest.raises(BadInputError, match=said):
        run(tmp_path, keep=keep)
    assert not (tmp_path / "run").exists()


def test_a_kept_column_of_another_type_in_one_file(tmp_path: Path) -> None:
    survey(tmp_path, ".npz", arrays(0, note=np.arange(ROWS)),
           arrays(1, note=np.array(["a"] * ROWS)))  # fmt: skip
    items = initialize(request(tmp_path, keep="note", world_size=1)).items
    record = work(items[0])
    (failed,) = record.failed_partitions
    assert "the column note is text here and int64 in the survey's first file" in failed["error"]
