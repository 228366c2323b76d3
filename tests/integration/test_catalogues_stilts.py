"""TOPCAT's own library (STILTS) opens what is written as FITS and VOTable, and finds no fault."""

from __future__ import annotations

import csv
import shutil
import subprocess
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perseid import Catalogue, Storage
from perseid.pipeline.voparquet import VOField, votable_pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("stilts") is None, reason="no stilts (apt install stilts)"),
]
COLUMNS = {
    "object_id": pa.array([3963300000000000007, 2**62 + 1, 3], pa.int64()),
    "survey_id": pa.array([2**64 - 1, 2**63, 5], pa.uint64()),
    "name": ["LS-1", None, "Ångström <&>"],
    "ra": [150.1, 150.2, 150.3],
    "dec": [2.1, 2.2, -2.3],
    "z_pred": pa.array([0.1, None, 0.25], pa.float32()),
    "label": pa.array([1, None, 3], pa.int32()),
    "flag": pa.array([0, 2, 0], pa.int32()),
}
ABOUT = {"ra": ("deg", "pos.eq.ra;meta.main"), "dec": ("deg", "pos.eq.dec;meta.main"),
         "z_pred": ("", "src.redshift.phot")}  # fmt: skip


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    store = Storage(f"memory://{uuid.uuid4().hex}")
    fields = (VOField(name, "double", "", *ABOUT.get(name, ("", ""))) for name in COLUMNS)
    table = pa.table(COLUMNS).replace_schema_metadata(votable_pairs(fields) | {"run_id": "r"})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put("catalogue.parquet", sink.getvalue().to_pybytes())
    return Catalogue(store)


def stilts(*words: str) -> str:
    done = subprocess.run(["stilts", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("suffix", [".fits", ".vot"])
def test_topcat_reads_every_value_and_its_meaning(
    suffix: str, catalogue: Catalogue, tmp_path: Path
) -> None:
    path = str(tmp_path / f"out{suffix}")
    catalogue.write(path)
    (tmp_path / "rows.csv").write_text(stilts("tpipe", f"in={path}", "ofmt=csv"))
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [int(row["object_id"]) for row in rows] == COLUMNS["object_id"].to_pylist()
    assert [int(row["survey_id"]) for row in rows] == COLUMNS["survey_id"].to_pylist()
    assert [row["label"] for row in rows] == ["1", "", "3"]
    assert [row["z_pred"] for row in rows] == ["0.1", "", "0.25"]
    assert rows[0]["name"] == "LS-1"
    meta = stilts("tpipe", f"in={path}", "cmd=meta name units ucd", "ofmt=csv").splitlines()
    assert "ra,deg,pos.eq.ra;meta.main" in meta
    assert "z_pred,,src.redshift.phot" in meta


def test_the_votable_is_valid(catalogue: Catalogue, tmp_path: Path) -> None:
    path = str(tmp_path / "out.vot")
    catalogue.write(path)
    assert stilts("votlint", f"votable={path}") == ""
