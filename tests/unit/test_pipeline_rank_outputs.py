"""What ranks left in the store is checked before it is merged: each doubt has its sentence."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model, tiny_survey

from perseid.pipeline import layout
from perseid.pipeline.columns import NpzWriter, Stamp, add_moments, read_moments
from perseid.pipeline.initialize import initialize
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.rank_outputs import (
    BrokenRankError,
    read_records,
    stream_moments,
    stream_results,
)
from perseid.pipeline.request import RunRequest
from perseid.pipeline.work import work
from perseid.storage import Storage


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that have worked and one without data, not merged yet; three files."""
    folder = tmp_path_factory.mktemp("worked")
    tiny_survey(folder / "data", rows=6, per_partition=2)
    tiny_model(folder / "m.onnx")
    given = {"data": str(folder / "data"), "model": str(folder / "m.onnx"), "world_size": 4}
    for item in initialize(RunRequest.parse({**given, "results": str(folder / "run")})).items:
        work(item)
    return folder / "run"


@pytest.fixture
def run(worked: Path, tmp_path: Path) -> Storage:
    """A copy of it."""
    shutil.copytree(worked, tmp_path / "run")
    return Storage(tmp_path / "run")


def records(run: Storage) -> tuple[dict, dict]:
    return read_records(run, Manifest.load(run))


def test_what_is_whole_is_taken(run: Storage) -> None:
    found, missing = records(run)
    assert (sorted(found), missing) == ([0, 1, 2, 3], {})
    with_features = list(stream_results(run, found))
    without = list(stream_results(run, found, features=False))
    assert [rank for rank, _ in without] == [0, 1, 2]  # the fourth has no data
    for (_, parts), (_, lean) in zip(with_features, without, strict=True):
        assert [part.key for part in parts] == [part.key for part in lean]
        assert lean[0].features is None
        assert parts[0].features is not None
        np.testing.assert_array_equal(parts[0].z_pred, lean[0].z_pred)
    assert [rank for rank, _, _ in stream_moments(run, found)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run_id": "another"}, "belongs to another run"),
        ({"rank": 1}, "is not a record of rank 0"),
        ({"partitions": []}, "does not account for each of its partitions once"),
        ({"partitions": [{"key": "1.pt", "rows": 2, "bytes": 9}] * 2}, "does not account for each"),
        ({"partitions": [{"key": "2.pt", "rows": 2, "bytes": 9}]}, "does not account for each"),
        *(({"partitions": [{"key": "1.pt", "rows": rows}]}, "'partitions' is wrong in it")
          for rows in (-1, 1.5, "2", True, 10**30)),
        *(({key: value}, f"{key!r} is wrong in it")
          for key, value in (("attempt", 0), ("world_size", 0), ("rows", -1), ("rows", 1 << 63),
                             ("rows_flagged", True), ("peak_memory_mb", math.inf))),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_record_that_does_not_fit_counts_as_missing(run: Storage, change, says: str) -> None:
    key = layout.record(0)
    run.put(key, json.dumps({**json.loads(run.get(key)), **change}).encode())
    found, missing = records(run)
    assert sorted(found) == [1, 2, 3]
    assert list(missing) == [0]
    assert says in missing[0]


def test_statistics_of_other_partitions_are_refused(run: Storage, tmp_path: Path) -> None:
    found, _ = records(run)
    key = layout.moments(1)
    stamp, [(_, moments)] = read_moments(run.get(key), key)
    for stamped, part, says in (
        (stamp, "3.pt", "to other partitions than its record names"),
        (Stamp("another", 1, stamp.groups), "2.pt", "its objects belong to run another, rank 1"),
        (Stamp(stamp.run_id, 0, stamp.groups), "2.pt", "rank 0"),
    ):
        with NpzWriter(tmp_path / "changed", stamped) as writer:
            add_moments(writer, part, moments)
        run.put(key, tmp_path / "changed")
        with pytest.raises(BrokenRankError) as caught:
            list(stream_moments(run, found))
        assert caught.value.rank == 1
        assert says in caught.value.reason


def test_columns_of_other_rows_are_refused(run: Storage) -> None:
    found, _ = records(run)
    run.put(layout.features(1), run.get(layout.features(2)))
    with pytest.raises(BrokenRankError, match="rank 2"):
        list(stream_results(run, found))


@pytest.mark.parametrize("features", [True, False])
def test_objects_that_are_gone_or_cut_are_named(run: Storage, features: bool) -> None:
    found, _ = records(run)
    run.put(layout.features(1), run.get(layout.features(1))[:-30])
    with pytest.raises(BrokenRankError) as caught:
        list(stream_results(run, found, features=features))
    assert caught.value.rank == 1
    run.delete([layout.features(1)])
    with pytest.raises(BrokenRankError, match="its record is there, but"):
        list(stream_results(run, found, features=features))


def test_a_rank_without_data_has_no_time_a_batch(run: Storage) -> None:
    record = json.loads(run.get(layout.record(3)))
    assert (record["rows"], record["execution_time (seconds/batch)"]) == (0, 0.0)
    assert (record["throughput_bps"], record["sample_persec"]) == (0.0, 0.0)


def test_a_scripts_rank_without_data_needs_no_result_of_its_own(run: Storage) -> None:
    manifest = replace(Manifest.load(run), script={})
    for rank in range(4):
        run.put(layout.done_record(rank, script=True), run.get(layout.record(rank)))
    run.delete([layout.record(0), layout.record(3)])
    found, missing = read_records(run, manifest)
    assert (sorted(found), list(missing)) == ([1, 2, 3], [0])  # the fourth has no data


def test_the_manifest_says_which_model_is_the_runs_and_else_the_first_record(run: Storage) -> None:
    manifest = Manifest.load(run)
    record = json.loads(run.get(layout.record(0)))
    record["model"]["digest"] = "sha256:" + "0" * 64
    run.put(layout.record(0), json.dumps(record).encode())
    _, missing = read_records(run, manifest)
    assert list(missing) == [0]
    assert "another model" in missing[0]
    _, missing = read_records(run, replace(manifest, model=None))  # as earlier versions wrote it
    assert list(missing) == [1, 2, 3]
