"""A catalogue that is a folder of parts is read by everything that reads one that is a file."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from golden import golden

import perseid
from perseid.cli import main
from perseid.pipeline import layout
from perseid.pipeline.catalogue_reader import retire_parts
from perseid.storage import Storage
from perseid.survey import discover

PARTS = ((0, 8), (8, 9), (17, 21))
"""(first row, rows) of each part."""


def split(run: Path) -> Path:
    """Make a folder of parts of a run's catalogue."""
    table = pq.read_table(run / layout.CATALOGUE)
    (run / layout.CATALOGUE).unlink()
    (run / layout.CATALOGUE).mkdir()
    for number, (first, rows) in enumerate(PARTS):
        pq.write_table(table.slice(first, rows), run / layout.catalogue_part(number))
    summary = json.loads((run / layout.SUMMARY).read_text())
    parts = (run / layout.CATALOGUE).iterdir()
    summary["catalogue_bytes"] = sum(part.stat().st_size for part in parts)
    (run / layout.SUMMARY).write_text(json.dumps(summary))
    return run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The same run twice: with a catalogue that is a file, and with one of parts."""
    monkeypatch.chdir(tmp_path)
    folder = golden(tmp_path)
    split(folder / "runs/resumed")
    golden(tmp_path / "whole")
    return tmp_path / "whole/runs/resumed", folder / "runs/resumed"


def test_the_api_reads_both(runs):
    whole, parts = (perseid.open_run(run).catalogue() for run in runs)
    assert len(parts) == len(whole) == 38
    assert parts.difference(whole) is None
    assert parts.to_arrow().equals(whole.to_arrow())
    assert parts.to_astropy()["row"].tolist() == whole.to_astropy()["row"].tolist()


def test_the_commands_read_both(runs, capsys, tmp_path):
    pages = []
    for run in runs:
        assert main(["table", str(run), "--format", "csv"]) == 0
        assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
        pages.append((tmp_path / "page.html").read_text().count("<img"))
    assert pages[0] == pages[1] > 0


def test_a_complete_run_of_parts_stays_as_it_is(runs, capsys):
    before = {path: path.read_bytes() for path in runs[1].rglob("part-*.parquet")}
    assert main(["resume", str(runs[1])]) == 0
    assert {path: path.read_bytes() for path in runs[1].rglob("part-*.parquet")} == before


@pytest.mark.parametrize("damage", ["shortened", "gone", "all gone"])
def test_parts_that_were_lost_are_made_anew(runs, damage, capsys):
    whole, run = runs
    last = run / layout.catalogue_part(len(PARTS) - 1)
    if damage == "shortened":
        last.write_bytes(last.read_bytes()[:-4])
    for path in run.glob("catalogue.parquet/*" if damage == "all gone" else last.name):
        path.unlink()
    if damage == "gone":
        last.unlink()
    assert main(["resume", str(run)]) == 0
    again, former = (perseid.open_run(one).catalogue() for one in (run, whole))
    assert len(again) == len(former)


def test_parts_come_in_the_order_of_their_numbers_and_strangers_do_not_count(tmp_path):
    store = Storage(tmp_path)
    for number in (2, 10, 100_000):
        (tmp_path / "catalogue.parquet").mkdir(exist_ok=True)
        path = tmp_path / layout.catalogue_part(number)
        pq.write_table(pq.read_table(golden_catalogue()).slice(0, number % 7), path)
    (tmp_path / "catalogue.parquet" / "_metadata").write_bytes(b"not a part")
    found = perseid.Catalogue(store)
    assert len(found) == 2 + 3 + 100_000 % 7
    retire_parts(store, [layout.catalogue_part(2)])
    assert len(perseid.Catalogue(store)) == 2


def golden_catalogue() -> Path:
    return Path(__file__).parents[1] / "data/golden/runs/resumed/catalogue.parquet"


def test_other_libraries_open_the_folder(runs):
    folder, scores = runs[1] / layout.CATALOGUE, perseid.open_run(runs[0]).catalogue().to_arrow()
    wanted = np.asarray(scores["anomaly_score"])
    parts = [Table.read(path, format="parquet") for path in sorted(folder.iterdir())]
    query = (
        f"select anomaly_score from '{folder}/part-*.parquet' order by filename, file_row_number"
    )
    for found in (
        pq.read_table(folder)["anomaly_score"],
        pandas.read_parquet(folder)["anomaly_score"],
        polars.read_parquet(folder)["anomaly_score"],
        duckdb.sql(query).fetchnumpy()["anomaly_score"],
        np.concatenate([part["anomaly_score"] for part in parts]),
    ):
        np.testing.assert_array_equal(np.asarray(found), wanted)


def test_a_folder_of_parts_beside_a_survey_is_no_partition(runs):
    data = runs[0].parents[1] / "survey"
    (data / "catalogue.parquet").mkdir()
    (data / layout.catalogue_part(0)).write_bytes(golden_catalogue().read_bytes())
    listing = discover(str(data))
    assert [entry.reason for entry in listing.ignored] == ["is a part of the catalogue of a run"]
