"""A catalogue in parts says the same as one file, whoever writes it and however it is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from meeting import all_meet, begin, rendezvous
from tiny import tiny_model, tiny_survey

from perseid.api.catalogue import Catalogue
from perseid.errors import RunIncompleteError
from perseid.pipeline import layout
from perseid.pipeline.catalogue_limits import CatalogueLimits
from perseid.pipeline.catalogue_reader import StoredCatalogue
from perseid.pipeline.collective_merge import merge_collectively
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage

PARTS = CatalogueLimits(single_file=0, part=40)
FIRST_TEN = CatalogueLimits(single_file=0, part=40, exact_ranks=129, ranked=10)
BENCHMARK = Path(__file__).parents[2] / "benchmarks/terabyte.py"
NEAR = ("nmad", "roc_auc", "average_precision")
"""Figures that are of bins where a survey is large."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    tiny_model(folder / "m.onnx")
    tiny_survey(folder / "whole", rows=130, per_partition=10)
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with rendezvous() as found:
        yield found


@pytest.fixture(scope="module")
def one_file(survey: Path) -> tuple[Storage, dict]:
    """The run of 130 rows as a small one: one file."""
    _, storage = begin(survey, survey / "one-file", 4, transport="store")
    return storage, summarize(storage)


def through_store(survey: Path, place: Path, address: str, ranks: int, limits: CatalogueLimits):
    _, storage = begin(survey, place, ranks, transport="store")
    return storage, summarize(storage, limits=limits)


def together(survey: Path, place: Path, address: str, ranks: int, limits: CatalogueLimits):
    items, storage = begin(survey, place, ranks)
    all_meet(
        items, storage, address, lambda left, meeting: merge_collectively(left, meeting, limits)
    )
    summary = summarize(storage)
    assert summary["transport"]["used"] == ("direct" if ranks > 1 else "alone")
    return storage, summary


@pytest.mark.parametrize("merge", [through_store, together])
@pytest.mark.parametrize(("ranks", "limits", "parts"), [
    (1, PARTS, 1), (3, PARTS, 3), (7, PARTS, 4), (16, PARTS, 4),
])  # fmt: skip
def test_parts_say_what_one_file_says(
    survey, tmp_path, address, one_file, merge, ranks, limits, parts
):
    storage, summary = merge(survey, tmp_path / "run", address, ranks, limits)
    written = min(ranks, 13) if merge is together else parts
    found = StoredCatalogue(storage).parts
    assert [info.key for info in found] == [layout.catalogue_part(n) for n in range(written)]
    assert summary["catalogue_bytes"] == sum(info.size for info in found)
    assert Catalogue(storage).difference(Catalogue(one_file[0])) is None
    assert StoredCatalogue(storage).table().equals(StoredCatalogue(one_file[0]).table())
    assert all(layout.is_of_run(info.key) for info in found)
    for key in ("redshift", "anomaly", "top", "rows", "status", "missing", "warnings"):
        close(summary[key], one_file[1][key], key)


def close(got: object, expected: object, name: str) -> None:
    """The same to rounding, or to the width of a bin where the figure is one of bins."""
    if isinstance(expected, dict):
        assert isinstance(got, dict)
        assert list(got) == list(expected), name
        for key in expected:
            close(got[key], expected[key], key)
    elif isinstance(expected, list):
        assert isinstance(got, list)
        assert len(got) == len(expected), name
        for one, other in zip(got, expected, strict=True):
            close(one, other, name)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=2e-3 if name in NEAR else 1e-9), name
    else:
        assert got == expected, name


@pytest.mark.parametrize("merge", [through_store, together])
def test_more_rows_than_can_be_ranked(survey, tmp_path, address, one_file, merge):
    storage, summary = merge(survey, tmp_path / "run", address, 5, FIRST_TEN)
    got = StoredCatalogue(storage).table()
    exact = StoredCatalogue(one_file[0]).table()
    ranks = exact["anomaly_rank"].to_numpy()
    assert got["anomaly_rank"].to_pylist() == [int(r) if r <= 10 else None for r in ranks]
    assert got["anomaly_score"].equals(exact["anomaly_score"])
    percentile = got["anomaly_percentile"].to_numpy()
    np.testing.assert_allclose(percentile, 100 * (130 - ranks + 0.5) / 130, atol=1.0)
    order = np.argsort(exact["anomaly_score"].to_numpy(), kind="stable")
    assert (np.diff(percentile[order]) >= 0).all()
    assert summary["top"][:10] == one_file[1]["top"][:10]


def test_a_run_that_is_published_again_leaves_no_part_of_before(survey, tmp_path, one_file):
    """With fewer rows, more, in parts and as one file again: a catalogue is one of these forms."""
    _, storage = begin(survey, tmp_path / "run", 7, transport="store")
    summarize(storage, limits=PARTS)
    lost = storage.get(layout.record(3))
    storage.delete([layout.record(3)])
    with pytest.raises(RunIncompleteError):
        summarize(storage, limits=CatalogueLimits(single_file=0, part=1000))
    assert len(StoredCatalogue(storage).parts) == 1
    assert StoredCatalogue(storage).num_rows == 110
    with pytest.raises(RunIncompleteError):
        summarize(storage)
    assert [info.key for info in StoredCatalogue(storage).parts] == [layout.CATALOGUE]
    storage.put(layout.record(3), lost)
    assert summarize(storage, limits=PARTS)["status"] == "complete"
    assert Catalogue(storage).difference(Catalogue(one_file[0])) is None


@pytest.mark.parametrize("limits", [PARTS, CatalogueLimits()])
def test_a_rank_whose_objects_are_broken_is_left_out(survey, tmp_path, limits):
    _, storage = begin(survey, tmp_path / "run", 5, transport="store")
    storage.put(layout.features(2), storage.get(layout.features(2))[:-100])
    storage.put(layout.moments(4), storage.get(layout.moments(3)))
    with pytest.raises(RunIncompleteError, match="ranks 2, 4 of 5"):
        summarize(storage, limits=limits)
    summary = json.loads(storage.get(layout.SUMMARY))
    assert StoredCatalogue(storage).num_rows == summary["rows"]["received"] == 80


def test_an_object_store(survey, one_file):
    """There only the bytes of the columns are read again."""
    request = {"results": "memory://large/run"}
    _, storage = begin(survey, Path("unused"), 3, transport="store", **request)
    assert summarize(storage, limits=PARTS)["status"] == "complete"
    assert Catalogue(storage).difference(Catalogue(one_file[0])) is None


@pytest.mark.slow
def test_the_benchmark_of_a_terabyte_at_a_small_size(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--ranks", "5", "--rows", "20", "--width", "4",
               "--folder", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        "initialize", "summarize", "local", "slurm", "aws"
    ]  # fmt: skip
    assert "100 rows" in lines[1]
    assert "complete" in lines[1]
    assert "complete" in lines[2]
    assert "5 tasks" in lines[3]
